r"""The audit of classifier-free guidance: asymmetry against the weight.

With f_c a model of data of class c and f_∅ one of all data, guidance has the field

.. math:: f_w = f_\varnothing + w (f_c - f_\varnothing),

which is affine in w. So are products with its Jacobian, and line integrals. Those of the two models
with the same probes, and around the same triangles, make the numbers of every weight.

References:
    Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), Eq. 6, whose weight is w − 1;
    https://arxiv.org/abs/2207.12598
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from qcsbm.adapters.diffusers import pair_from_diffusers
from qcsbm.adapters.field import Field
from qcsbm.auditing import report as found
from qcsbm.auditing.audit import Samples, as_field, converted, samples_of, times_of, versions
from qcsbm.auditing.checks import require_auditable, scale_warnings
from qcsbm.auditing.guidance_report import (
    GuidanceReport,
    GuidedLevel,
    GuidedMean,
    GuidedWeight,
    conclusion,
)
from qcsbm.auditing.measurement import (
    INTERVALS,
    TOLERANCE,
    Function,
    Measurement,
    Probes,
    like,
    over_levels,
)
from qcsbm.conservativeness import circulation as paths
from qcsbm.conservativeness.estimates import (
    Estimates,
    Products,
    estimate_combinations,
    exact_combinations,
)
from qcsbm.conservativeness.interval import mean
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.seeding import generator
from qcsbm.score.kinds import Kind
from qcsbm.score.schedules import Schedule

WEIGHTS = (0.0, 1.0, 2.0, 4.0, 7.5)

AnyField = Field | Callable[..., object]


def audit_guidance(
    model: tuple[AnyField, AnyField] | str | Path,
    x: Samples,
    t: float | Sequence[float] | Tensor | None = None,
    weights: Sequence[float] = WEIGHTS,
    *,
    label: int | None = None,
    null_label: int | None = None,
    kind: Kind | None = None,
    schedule: Schedule | None = None,
    products: Products | None = None,
    probes: Probes = None,
    relative_error: float = 0.02,
    step: float | None = None,
    dtype: Literal["float32", "float64"] | None = None,
    circulation: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> GuidanceReport:
    """Whether f_∅ + w (f_c − f_∅) is a gradient at samples x (n, ...), for every weight w.

    ``model`` is the pair (f_c, f_∅), two of what `audit` takes and of the same kind and schedule,
    or the folder of a class-conditional model of diffusers. Of the latter f_c has the class
    ``label`` and f_∅ the class ``null_label``, the last one unless it is given. Weight 0 is f_∅
    and weight 1 is f_c.

    All weights share their samples, noise, probes and triangles, and both fields are evaluated once
    for all of them. There are as many probes as the weight that needs most takes. Circulation is
    that of the scores. Other arguments are those of `audit`, and with one ``seed`` the numbers of a
    weight are those of `audit` for this guided field with as many probes.

    Raises:
        BadInput: a field does not do what an audit needs, the two do not belong together, or
            arguments do not fit.
        Diverged: a field is not finite at some sample.

    >>> import torch, qcsbm
    >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    >>> turn = torch.tensor([[0.0, -0.1], [0.1, 0.0]])
    >>> report = qcsbm.audit_guidance((lambda x: x @ turn - x, lambda x: -x), x, weights=[0, 1, 4])
    >>> [round(mean.kappa_squared.value, 3) for mean in report.means]
    [0.0, 0.04, 0.552]
    """
    start = time.perf_counter()
    weights = [float(weight) for weight in weights]
    if not weights or not np.isfinite(weights).all() or len(set(weights)) < len(weights):
        raise BadInput(f"weights: found {weights}, expected different finite numbers, one at least")
    pair = _pair(model, label, null_label)
    arrays, timed = isinstance(x, np.ndarray), t is not None
    conditional, unconditional = (as_field(f, kind, schedule, arrays, timed) for f in pair)
    x, digest = samples_of(x, dtype)
    times = times_of(t, conditional.schedule)
    _require_pair(conditional, unconditional, x, times)
    with converted(conditional.module, x), converted(unconditional.module, x):
        run = _Guidance(conditional, unconditional, weights, x, seed, batch_size, step)
        first = run.noisy(0, times[0])
        for field in (conditional, unconditional):
            require_auditable(field, first, like(times[0], first[:2]))
        # Of all data the model without a class is the denoiser.
        warnings = list(scale_warnings(unconditional, x))
        chosen, why = run.choose(products, times[0])
        count = run.probes(chosen, probes, relative_error, times[0])
        with tqdm(total=2 * len(times), disable=not progress, unit="part") as bar:
            levels = [
                run.guided_level(number, at, chosen, count, circulation, bar.update)
                for number, at in enumerate(times)
            ]
    if circulation and len(x) < 3:
        warnings.append(f"no circulation: {len(x)} samples make no triangle")
    means = tuple(_means(levels))
    return GuidanceReport(
        field=run.audited(),
        protocol=run.protocol(chosen, why, count, digest),
        levels=tuple(levels),
        means=means,
        warnings=(*warnings, *run.warnings),
        conclusion=tuple(conclusion(run.field.name, levels, means)),
        cost=run.cost(start),
        versions=dict(versions()),
    )


def _means(levels: Sequence[GuidedLevel]) -> Iterator[GuidedMean]:
    by_weight = list(zip(*(level.weights for level in levels), strict=True))
    nasym = torch.tensor(
        [[one.samples.nasym for one in same] for same in by_weight], dtype=torch.float64
    )
    # (W, n)
    kappa_squared = 4 * nasym.mean(1)
    for same, values in zip(by_weight, kappa_squared, strict=True):
        change = found.Quantity.of(mean(values - kappa_squared[0]))
        yield GuidedMean(weight=same[0].weight, change=change, **dict(over_levels(same)))


class _Guidance(Measurement):
    """Two fields at samples; ``field`` is what guidance makes of them with the largest weight."""

    def __init__(
        self,
        conditional: Field,
        unconditional: Field,
        weights: Sequence[float],
        x: Tensor,
        seed: int,
        batch_size: int,
        step: float | None,
    ) -> None:
        largest = max(weights, key=abs)
        guided = _guided(conditional, unconditional, largest)
        super().__init__(guided, x, seed, batch_size, step)
        self.weights = weights
        self.both = [
            Measurement(field, x, seed, batch_size, step) for field in (unconditional, conditional)
        ]

    def functions(self, t: float | None) -> list[Function]:
        """The model without a class and that of the class, at time t."""
        return [part.function(t) for part in self.both]

    def pilots(
        self, x: Tensor, probes: int, products: Products, t: float | None
    ) -> list[Estimates]:
        combined = estimate_combinations(
            self.functions(t), x, probes, products, self.length(t), generator(self.seed, "pilot")
        )
        return [combined.at(1 - weight, weight) for weight in self.weights]

    def guided_level(
        self,
        number: int,
        t: float | None,
        products: Products,
        probes: int | None,
        circulation: bool,
        done: Callable[[], object],
    ) -> GuidedLevel:
        """All numbers of one level."""
        x = self.noisy(number, t)
        functions, length = self.functions(t), self.length(t)
        by_weight: list[list[Estimates]] = [[] for _ in self.weights]
        for batch, part in enumerate(x.split(self.batch_size)):
            draws = generator(self.seed, "probes", number, batch)
            combined = (
                exact_combinations(functions, part, products, length)
                if probes is None
                else estimate_combinations(functions, part, probes, products, length, draws)
            )
            for weight, parts in zip(self.weights, by_weight, strict=True):
                parts.append(combined.at(1 - weight, weight))
        evaluations = self._count("asymmetry", len(x) * by_weight[0][0].evaluations)
        done()
        around: list[found.Integrals | None] = [None] * len(self.weights)
        if circulation and len(x) >= 3:
            integrals = self._integrals(x, t)
            used = sum(part.evaluations for part in integrals)
            evaluations += self._count("circulation", used)
            around = [self._around(integrals, weight) for weight in self.weights]
        done()
        return GuidedLevel(
            t=t,
            sigma=self.noise(t),
            n=len(x),
            evaluations=evaluations,
            weights=tuple(
                GuidedWeight(weight=weight, circulation=circle, **self.numbers(parts, t))
                for weight, circle, parts in zip(self.weights, around, by_weight, strict=True)
            ),
        )

    def _integrals(self, x: Tensor, t: float | None) -> list[paths.Circulation]:
        """The circulation of both scores, so exact that no weight errs by more than TOLERANCE of
        the larger one."""
        triangles = paths.triangles_of(x)
        growth = max(abs(1 - weight) + abs(weight) for weight in self.weights)
        return [
            paths.circulation(
                part.score(t), triangles, TOLERANCE / growth, INTERVALS, batch_size=self.batch_size
            )
            for part in self.both
        ]

    def _around(self, integrals: list[paths.Circulation], weight: float) -> found.Integrals:
        unconditional, conditional = integrals
        values = (1 - weight) * unconditional.values + weight * conditional.values
        error = abs(1 - weight) * unconditional.error + abs(weight) * conditional.error
        return found.Integrals(
            rms=found.Quantity.of(paths.root_mean_square(values)),
            error=float(error.square().mean().sqrt()),
            unit=self.unit(),
            values=tuple(values.tolist()),
        )


def _pair(
    model: tuple[AnyField, AnyField] | str | Path, label: int | None, null_label: int | None
) -> tuple[AnyField, AnyField]:
    if isinstance(model, str | Path):
        if label is None:
            raise BadInput(f"{model}: found no label, expected that of the class to guide to")
        return pair_from_diffusers(model, label, null_label)
    if not isinstance(model, tuple | list) or len(model) != 2:
        raise BadInput(
            f"model: found a {type(model).__name__}, expected two fields, that of a class and that "
            "of all data, or the folder of a model of diffusers"
        )
    if (label, null_label) != (None, None):
        raise BadInput("label: found one with two fields, expected it with a folder of diffusers")
    return model


def _require_pair(
    conditional: Field, unconditional: Field, x: Tensor, times: Sequence[float | None]
) -> None:
    """Refuse two fields that are not of the same kind at the same noise.

    Raises:
        BadInput: what differs.
    """
    for field in (conditional, unconditional):
        if field.shape is not None and tuple(x.shape[1:]) != field.shape:
            raise BadInput(
                f"x: found samples of shape {tuple(x.shape[1:])}, expected {field.shape}, that of "
                f"{field.name}"
            )
    facts = [(f.kind, repr(f.schedule), _noise(f, times)) for f in (conditional, unconditional)]
    if facts[0] != facts[1]:
        shown = [f"{kind} under {schedule}" for kind, schedule, _ in facts]
        raise BadInput(
            f"{unconditional.name}: found {shown[1]}, expected {shown[0]} with the same noise, as "
            f"{conditional.name} is: guidance adds up fields of one kind"
        )


def _noise(field: Field, times: Sequence[float | None]) -> list[float] | None:
    if field.schedule is None:
        return None
    at = torch.tensor([time for time in times if time is not None], dtype=torch.float64)
    return [*field.schedule.mean(at).tolist(), *field.schedule.std(at).tolist()]


def _guided(conditional: Field, unconditional: Field, weight: float) -> Field:
    def function(x: Tensor, t: Tensor) -> Tensor:
        without = unconditional.function(x, t)
        return without + weight * (conditional.function(x, t) - without)

    return Field(
        function,
        conditional.kind,
        conditional.schedule,
        f"{conditional.name} guided from {unconditional.name}",
        shape=conditional.shape,
        data_range=conditional.data_range,
        files=conditional.files | unconditional.files,
        differentiable=conditional.differentiable and unconditional.differentiable,
    )
