"""The numbers of an audit: which products, how many probes, and all that one level has."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from qcsbm.adapters.field import Field
from qcsbm.auditing import report as found
from qcsbm.auditing.guidance_report import GuidedWeight
from qcsbm.auditing.report import Quantity
from qcsbm.conservativeness import circulation as paths
from qcsbm.conservativeness import spectrum as planes_of
from qcsbm.conservativeness.estimates import (
    PRODUCTS,
    Estimates,
    Products,
    estimate,
    exact,
    probes_for,
    zero_within,
)
from qcsbm.conservativeness.interval import mean
from qcsbm.conservativeness.products import central_difference, rademacher, vjp
from qcsbm.runtime.errors import BadInput, Diverged
from qcsbm.runtime.seeding import generator
from qcsbm.score.kinds import Kind, conversion, to_score

# Up to so many dimensions a whole Jacobian costs no more than a good estimate.
AFFORDABLE = 64
# Samples of the trial that the number of probes is chosen by, and its probes: of those of single
# probes the variance is seen, that of pairs needs more.
PILOT, PILOT_PROBES, PILOT_PAIRS = 8, 4, 16
MOST_PROBES = 1024
# Of each triangle, which differs more from the next one: the error of its circulation, and the most
# intervals that it is given for it, with 15 evaluations each.
TOLERANCE, INTERVALS = 0.02, 12
# A difference quotient has to come as near to Jv, relative to ‖Jv‖, with one of these multiples of
# the step: nobody knows here over which lengths a field changes.
NEAR, MULTIPLES = 0.1, (1.0, 10.0, 100.0)

Function = Callable[[Tensor], Tensor]
Probes = int | Literal["exact"] | None


class Measurement:
    """A field at samples, and what is done with it."""

    def __init__(
        self, field: Field, x: Tensor, seed: int, batch_size: int, step: float | None
    ) -> None:
        self.field, self.x, self.seed = field, x, seed
        self.batch_size = batch_size
        # Where truncation and rounding of a central difference are about equal.
        self.step = 2 * torch.finfo(x.dtype).eps ** (1 / 3) if step is None else step
        self.evaluations: dict[str, int] = {}
        self.warnings: list[str] = []

    def audited(self) -> found.Audited:
        """What a report says of the field."""
        field = self.field
        return found.Audited(
            name=field.name,
            kind=field.kind,
            schedule=None if field.schedule is None else repr(field.schedule),
            shape=tuple(self.x.shape[1:]),
            dimensions=self.x[0].numel(),
            data_range=field.data_range,
            files=field.files,
        )

    def protocol(
        self, products: Products, why: str, probes: int | None, data: str
    ) -> found.Protocol:
        """How it is measured; ``data`` is the SHA-256 of what was given."""
        return found.Protocol(
            products=products,
            why=why,
            estimator="exact" if probes is None else "probes",
            probes=probes,
            step=None if products == "autograd" else self.step,
            samples=len(self.x),
            seed=self.seed,
            dtype=str(self.x.dtype).removeprefix("torch."),
            device=self.x.device.type,
            threads=torch.get_num_threads(),
            data=data,
        )

    def cost(self, start: float) -> found.Cost:
        """What was spent since ``start``, of `time.perf_counter`."""
        return found.Cost(
            evaluations=sum(self.evaluations.values()),
            parts=self.evaluations,
            seconds=round(time.perf_counter() - start, 3),
        )

    def noisy(self, number: int, t: float | None) -> Tensor:
        """The samples with the noise of level ``number``, where there is a schedule."""
        schedule = self.field.schedule
        if schedule is None or t is None:
            return self.x
        at = torch.full((1,), t, dtype=torch.float64)
        mean, std = (float(of_time(at)) for of_time in (schedule.mean, schedule.std))
        z = torch.randn(self.x.shape, generator=generator(self.seed, "noise", number))
        return mean * self.x + std * z.to(self.x)

    def function(self, t: float | None) -> Function:
        """The field at time t, of x (B, ...) alone."""

        def at_t(x: Tensor) -> Tensor:
            return self.field(x, like(t, x))

        return at_t

    def score(self, t: float | None) -> Function:
        """The score at time t where it follows from the field, else the field itself."""
        schedule, kind = self.field.schedule, self.field.kind
        if schedule is None or kind == "force":
            return self.function(t)

        def at_t(x: Tensor) -> Tensor:
            times = like(t, x)
            return to_score(kind, schedule, self.field(x, times), x, times)

        return at_t

    def length(self, t: float | None) -> float:
        """The step of difference quotients in units of x."""
        schedule = self.field.schedule
        if schedule is None or t is None:
            spread = float(self.x.double().std()) if self.x.numel() > 1 else 0.0
            return self.step * (spread or 1.0)
        return self.step * float(schedule.std(torch.full((1,), t, dtype=torch.float64)))

    def choose(self, products: Products | None, t: float | None) -> tuple[Products, str]:
        """How to multiply with Jacobians, and why so.

        Raises:
            BadInput: the field does not allow for the ``products`` asked for.
        """
        if products is not None and products not in PRODUCTS:
            raise BadInput(f"products: found {products!r}, expected one of {', '.join(PRODUCTS)}")
        if products == "forward":
            return products, "as asked for"
        if not self.field.differentiable:
            reason = "PyTorch cannot differentiate the field"
            return self._allowed(products, "forward", reason)
        first = self._first_derivative(t)
        if first is not None:
            return self._allowed(products, "forward", first)
        if products == "finite_differences":
            return products, "as asked for"
        second = self._second_derivative(t)
        if second is not None:
            return self._allowed(products, "finite_differences", second)
        return "autograd", "as asked for" if products else "the field has second derivatives"

    def _allowed(
        self, wanted: Products | None, possible: Products, why: str
    ) -> tuple[Products, str]:
        if wanted is not None:
            raise BadInput(f"products: found {wanted!r}, expected {possible!r}, as {why}")
        return possible, why

    def _first_derivative(self, t: float | None) -> str | None:
        """What is wrong with the first derivative."""
        function, x = self.function(t), self.noisy(0, t)[:1]
        v = rademacher(x.shape, generator(self.seed, "trial")).to(x)
        try:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                s = function(x)
                if not s.requires_grad:
                    return "the field has no derivative by autograd"
                jt_v = vjp(s, x, v)
        except (RuntimeError, NotImplementedError) as error:
            return f"the field has no derivative by autograd ({_first_line(error)})"
        x = x.detach()
        slope = float((jt_v * v).sum())
        # vᵀJv both ways: a part of the field that is detached is missing in the first.
        steps = [multiple * self.length(t) for multiple in MULTIPLES]
        slopes = [float((v * central_difference(function, x, v, h)).sum()) for h in steps]
        scale = max(abs(slope), float(jt_v.norm()))
        nearest = min(abs(other - slope) for other in slopes)
        if nearest > NEAR * scale:
            return (
                "the field's derivative by autograd is not that of its difference quotients, "
                f"{nearest / scale if scale else math.inf:.2g} of its size apart"
            )
        return None

    def _second_derivative(self, t: float | None) -> str | None:
        """What is wrong with the second derivative."""
        x, trial = self.noisy(0, t)[:1], generator(self.seed, "trial")
        try:
            estimate(self.function(t), x, 2, "autograd", self.length(t), trial)
        except (RuntimeError, NotImplementedError) as error:
            return f"the field has no second derivative ({_first_line(error)})"
        return None

    def probes(
        self,
        products: Products,
        wanted: Probes,
        relative_error: float,
        t: float | None,
    ) -> int | None:
        """How many probes a sample gets; None for whole Jacobians.

        Raises:
            BadInput: ``wanted`` is neither a number nor "exact".
        """
        if wanted == "exact" or (wanted is None and self.x[0].numel() <= AFFORDABLE):
            return None
        if isinstance(wanted, int) and wanted > 0:
            return wanted
        if wanted is not None:
            raise BadInput(f"probes: found {wanted!r}, expected a positive number or 'exact'")
        x = self.noisy(0, t)[:PILOT]
        count = PILOT_PAIRS if products == "forward" else PILOT_PROBES
        pilots = self.pilots(x, count, products, t)
        self._count("pilot", len(x) * pilots[0].evaluations)
        rho = max(_rho(pilot) for pilot in pilots)
        enough = probes_for(relative_error, len(self.x), products, rho)
        return min(max(enough, count), MOST_PROBES)

    def pilots(
        self, x: Tensor, probes: int, products: Products, t: float | None
    ) -> list[Estimates]:
        """The trial by which the number of probes is chosen, of all fields that are to have it."""
        trial = generator(self.seed, "pilot")
        return [estimate(self.function(t), x, probes, products, self.length(t), trial)]

    def level(
        self,
        number: int,
        t: float | None,
        products: Products,
        probes: int | None,
        kinds: Sequence[Kind],
        circulation: bool,
        spectrum: int,
        planes: int,
        within: Callable[[str], AbstractContextManager[None]],
    ) -> found.Level:
        """All numbers of one level; each part is done ``within`` a context by its name."""
        x = self.noisy(number, t)
        with within("asymmetry"):
            parts = self._estimates(x, number, t, products, probes)
        numbers = self.numbers(parts, t)
        evaluations = self._count("asymmetry", len(x) * parts[0].evaluations)
        around, spectra = None, list[found.Spectrum]()
        # Edges and steps lead away from the samples: what is not finite there leaves the rest.
        if circulation:
            with within("circulation"), self._warned("circulation", t):
                around, used = self._circulation(x, t)
                evaluations += self._count("circulation", used)
        if spectrum:
            with within("spectrum"), self._warned("spectrum", t):
                spectra, used = self._spectra(x[:spectrum], t, planes, products)
                evaluations += self._count("spectrum", used)
        return found.Level(
            t=t,
            sigma=self.noise(t),
            n=len(x),
            evaluations=evaluations,
            nasym_by_kind={kind: self._as(kind, t, parts) for kind in kinds},
            circulation=around,
            spectrum=tuple(spectra),
            **numbers,
        )

    def numbers(self, parts: list[Estimates], t: float | None) -> dict[str, Any]:
        """What a level has of the estimates of its batches, by name.

        Raises:
            Diverged: some are not finite.
        """
        asym = torch.cat([part.asym for part in parts])
        nasym = torch.cat([part.nasym() for part in parts])
        if not (asym.isfinite().all() and nasym.isfinite().all()):
            raise Diverged(f"{self.field.name}: found an asymmetry that is not finite{_at(t)}")
        of_nasym = Quantity.of(mean(nasym))
        return {
            "asym": Quantity.of(mean(asym)),
            "nasym": of_nasym,
            "lambda_": of_nasym.root(),
            "kappa_squared": of_nasym.times(4),
            "floor": float(torch.cat([part.floor for part in parts]).mean()),
            "zero_within": _zero(parts),
            "samples": found.Values(asym=tuple(asym.tolist()), nasym=tuple(nasym.tolist())),
        }

    def _estimates(
        self, x: Tensor, number: int, t: float | None, products: Products, probes: int | None
    ) -> list[Estimates]:
        """Of every batch."""
        function, length = self.function(t), self.length(t)
        parts = []
        for batch, part in enumerate(x.split(self.batch_size)):
            draws = generator(self.seed, "probes", number, batch)
            if probes is None:
                parts.append(exact(function, part, products, length))
            else:
                parts.append(estimate(function, part, probes, products, length, draws))
        return parts

    def _spectra(
        self, x: Tensor, t: float | None, planes: int, products: Products
    ) -> tuple[list[found.Spectrum], int]:
        """Of every sample, and the evaluations of all."""
        spectra, evaluations = [], 0
        for sample in x.split(1):
            computed = planes_of.spectrum(
                self.function(t), sample, planes, products, self.length(t)
            )
            spectra.append(_spectrum(computed, self._denoiser(t)))
            if computed.unconverged is not None:
                self.warnings.append(f"the spectrum{_at(t)} has {computed.unconverged}")
            evaluations += computed.evaluations
        return spectra, evaluations

    @contextmanager
    def _warned(self, part: str, t: float | None) -> Iterator[None]:
        """Within, a failed computation is a warning that there is no such ``part``."""
        try:
            yield
        except Diverged as error:
            reason = str(error).removeprefix(f"{part}: ")
            self.warnings.append(f"no {part}{_at(t)}: {reason}")

    def _count(self, part: str, evaluations: int) -> int:
        self.evaluations[part] = self.evaluations.get(part, 0) + evaluations
        return evaluations

    def _circulation(self, x: Tensor, t: float | None) -> tuple[found.Circulation, int]:
        triangles = paths.triangles_of(x)
        c = paths.circulation(
            self.score(t), triangles, TOLERANCE, INTERVALS, batch_size=self.batch_size
        )
        absolute = float(c.absolute.square().mean().sqrt())
        rms = paths.root_mean_square(c.values)
        circulation = found.Circulation(
            rms=Quantity.of(rms),
            relative=rms.value / absolute if absolute else 0.0,
            error=float(c.error.square().mean().sqrt()),
            unit=self.unit(),
            values=tuple(c.values.tolist()),
        )
        return circulation, c.evaluations

    def unit(self) -> str:
        if self.field.kind == "force":
            return "units of energy"
        return "nats" if self.field.kind == "score" or self.field.schedule else "units of field x"

    def noise(self, t: float | None) -> float | None:
        schedule = self.field.schedule
        if schedule is None or t is None:
            return None
        at = torch.full((1,), t, dtype=torch.float64)
        return float(schedule.std(at) / schedule.mean(at))

    def _conversion(self, target: Kind, t: float | None) -> tuple[float, float]:
        """a and b, with which ``target`` is a x + b times the field."""
        assert self.field.schedule is not None and t is not None
        at = torch.full((1,), t, dtype=torch.float64)
        a, b = conversion(self.field.kind, target, self.field.schedule, at)
        return float(a), float(b)

    def _denoiser(self, t: float | None) -> tuple[float, float] | None:
        """The denoiser's Jacobian in x / α is a I + b J."""
        if self.field.schedule is None and self.field.kind in ("denoiser", "x0"):
            return 0.0, 1.0
        if self.field.schedule is None or self.field.kind == "force" or t is None:
            return None
        a, b = self._conversion("denoiser", t)
        alpha = float(self.field.schedule.mean(torch.full((1,), t, dtype=torch.float64)))
        return alpha * a, alpha * b

    def _as(self, kind: Kind, t: float | None, parts: list[Estimates]) -> Quantity:
        a, b = (0.0, 1.0) if kind == self.field.kind else self._conversion(kind, t)
        return Quantity.of(mean(torch.cat([part.nasym(a, b) for part in parts])))


def _rho(pilot: Estimates) -> float:
    """ρ of `qcsbm.conservativeness.estimates`: the relative variance of Asym from one probe."""
    square = float(pilot.asym.mean()) ** 2
    if square == 0 or _zero([pilot]) is not None:
        return 0.0
    rho = float(pilot.rotation.var(1).mean()) / square
    if not pilot.pairs:
        return rho
    # Each probe's own pairs have a mean with a relative variance of ρ + (2 + 3ρ) / (K - 1).
    others = pilot.rotation.shape[1] - 1
    return max((rho - 2 / others) / (1 + 3 / others), 0.0)


def _zero(parts: list[Estimates]) -> found.Zero | None:
    """What the asymmetry is below where no more of it is left than errors of products make."""
    asym, floor, norm = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("asym", "floor", "squared_norm")
    )
    bound = zero_within(asym, floor, parts[0].comparisons)
    if bound is None:
        return None
    nasym = bound / (2 * float(norm.mean())) if bound else 0.0
    return found.Zero(asym=bound, nasym=nasym, lambda_=math.sqrt(nasym))


def _spectrum(computed: planes_of.Spectrum, denoiser: tuple[float, float] | None) -> found.Spectrum:
    ends = None
    if denoiser is not None:
        a, b = denoiser
        low, high = (None if end is None else a + b * end for end in computed.symmetric)
        ends = (low, high) if b > 0 else (high, low)
    return found.Spectrum(
        rotation=tuple(computed.rotation.tolist()),
        share=computed.share,
        share_stderr=computed.share_stderr,
        symmetric=computed.symmetric,
        denoiser=ends,
    )


def over_levels(measured: Sequence[found.Level | GuidedWeight]) -> found.Mean:
    asym, nasym = (
        Quantity.of(
            mean(
                torch.tensor(
                    [getattr(level.samples, name) for level in measured], dtype=torch.float64
                ).mean(0)
            )
        )
        for name in ("asym", "nasym")
    )
    zeros = [level.zero_within for level in measured if level.zero_within]
    zero = None
    if len(zeros) == len(measured):
        bound = {name: max(getattr(z, name) for z in zeros) for name in found.Zero.model_fields}
        zero = found.Zero(**bound)
    return found.Mean(
        asym=asym,
        nasym=nasym,
        lambda_=nasym.root(),
        kappa_squared=nasym.times(4),
        zero_within=zero,
    )


def like(t: float | None, x: Tensor) -> Tensor:
    """The time of every sample of ``x``; 0 where there is none."""
    return x.new_full((len(x),), 0.0 if t is None else t)


def _at(t: float | None) -> str:
    return "" if t is None else f" at t = {t:.3g}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
