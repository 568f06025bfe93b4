"""The audit of a vector field: is it a gradient, and if not, how far from one is it?

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    for Asym and NAsym; https://arxiv.org/abs/2209.12753
    The dark side of the forces (Bigi et al., 2024), for λ; https://arxiv.org/abs/2412.11569
"""

import hashlib
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from qcsbm.adapters.field import Field
from qcsbm.auditing.checks import of_tensors, require_auditable, scale_warnings
from qcsbm.auditing.conclusion import conclusion
from qcsbm.auditing.measurement import Measurement, Probes, like, over_levels
from qcsbm.auditing.report import Report
from qcsbm.conservativeness.estimates import Products
from qcsbm.runtime.errors import BadInput
from qcsbm.score.kinds import Kind
from qcsbm.score.schedules import EDM, RectifiedFlow, Schedule, ends, levels
from qcsbm.score.sde import SDE

# Levels of a schedule, where no times are given.
LEVELS = 5
# Noise levels beyond those of a schedule, relative to these, that are no reason to refuse a time.
SLACK = 1e-3
DTYPES = {"float32": torch.float32, "float64": torch.float64}
PACKAGES = ("qcsbm", "torch", "numpy", "scipy", "diffusers", "azula", "ase")

Samples = Tensor | np.ndarray


def audit(
    field: Field | Callable[..., object],
    x: Samples,
    t: float | Sequence[float] | Tensor | None = None,
    *,
    kind: Kind | None = None,
    schedule: Schedule | None = None,
    kinds: Sequence[Kind] = (),
    products: Products | None = None,
    probes: Probes = None,
    relative_error: float = 0.02,
    step: float | None = None,
    dtype: Literal["float32", "float64"] | None = None,
    circulation: bool = True,
    spectrum: int = 1,
    planes: int = 4,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Whether ``field`` is a gradient at samples x (n, ...), at every time t.

    ``field`` is a `Field`, or a function of x and t (B,) that gives a tensor like x, or of x alone
    where no t is given. Where x is a NumPy array, so are all that a function is called with and
    what it gives. A module of PyTorch's is always called with tensors, and left in the mode it is
    in.

    With a ``schedule``, which a `Field` may bring along, x are data: every t is a noise level, and
    the field is audited at the data with this noise; without t there are five levels. Without a
    schedule the field is audited at x itself. ``kind`` says what the values of a function are
    (``score`` if nothing is said), ``kinds`` as what else NAsym is wanted.

    ``products`` is how Jacobians are multiplied, one of ``autograd``, ``finite_differences`` and
    ``forward``; the first that works unless it is given. ``step`` is that of difference quotients,
    in units of the noise or, without a schedule, of the samples' standard deviation. Jacobians of
    at most 64 dimensions, and all of them with ``probes="exact"``, are computed as a whole;
    otherwise there are so many ``probes`` that they alone make a ``relative_error`` of a level's
    Asym. In
    ``dtype`` float64 the parameters of a module are converted for the time of the audit.

    ``circulation`` is that around triangles through triples of samples. ``spectrum`` samples of
    each level have the ``planes`` fastest rotations and the extreme eigenvalues of their Jacobians
    computed. ``batch_size`` samples are evaluated together. ``progress`` shows a bar on standard
    error. One ``seed`` gives the same report but for the time it took.

    Raises:
        BadInput: the field does not do what an audit needs, or arguments do not fit.
        Diverged: the field is not finite at some sample.

    >>> import torch, qcsbm
    >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    >>> rotating = lambda x: x @ torch.tensor([[-1.0, -0.5], [0.5, -1.0]])
    >>> report = qcsbm.audit(rotating, x)
    >>> round(report.mean.nasym.value, 6)
    0.2
    >>> gradient = qcsbm.audit(lambda x: -x, x)
    >>> gradient.mean.zero_within is not None
    True
    """
    start = time.perf_counter()
    if schedule is not None and (isinstance(schedule, type) or not hasattr(schedule, "std")):
        raise BadInput(f"schedule: found {schedule!r}, expected a schedule such as qcsbm.VE()")
    field = as_field(field, kind, schedule, isinstance(x, np.ndarray), t is not None)
    x, digest = samples_of(x, dtype)
    if field.shape is not None and tuple(x.shape[1:]) != field.shape:
        raise BadInput(
            f"x: found samples of shape {tuple(x.shape[1:])}, expected {field.shape}, that of "
            f"{field.name}"
        )
    _require_kinds(field, kinds)
    _require_sizes(relative_error, step, spectrum, planes, batch_size)
    times = times_of(t, field.schedule)
    around = circulation and len(x) >= 3
    total = (1 + around + (spectrum > 0)) * len(times)
    # A sentence on bad input stands by itself: the bar is cleared.
    bar = tqdm(desc="checks", total=total, disable=not progress, unit="part", leave=False)
    with bar, converted(field.module, x):
        run = Measurement(field, x, seed, batch_size, step)
        first = run.noisy(0, times[0])
        require_auditable(field, first, like(times[0], first[:2]))
        warnings = list(scale_warnings(field, x))
        chosen, why = run.choose(products, times[0])
        if spectrum and chosen == "forward":
            spectrum = 0
            bar.total = (1 + around) * len(times)
            warnings.append("no spectrum: it needs the transposed Jacobian, which forward has not")
        count = run.probes(chosen, probes, relative_error, times[0])
        measured = []
        for number, time_of_level in enumerate(times):
            within = partial(_shown, bar, f"level {number + 1} of {len(times)}")
            measured.append(
                run.level(
                    number, time_of_level, chosen, count, kinds, around, spectrum, planes, within
                )
            )
    if circulation and not around:
        warnings.append("no circulation: it needs three samples or more")
    audited = run.audited()
    protocol = run.protocol(chosen, why, count, digest)
    mean = over_levels(measured)
    return Report(
        field=audited,
        protocol=protocol,
        levels=tuple(measured),
        mean=mean,
        warnings=(*warnings, *run.warnings),
        conclusion=tuple(conclusion(audited, protocol, measured, mean)),
        cost=run.cost(start),
        versions=dict(versions()),
    )


def asymmetry(
    field: Field | Callable[..., object],
    x: Samples,
    t: float | Sequence[float] | Tensor | None = None,
    *,
    kind: Kind | None = None,
    schedule: Schedule | None = None,
    kinds: Sequence[Kind] = (),
    products: Products | None = None,
    probes: Probes = None,
    relative_error: float = 0.02,
    step: float | None = None,
    dtype: Literal["float32", "float64"] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Asym, NAsym, λ and κ² alone: `audit` without circulation and spectrum.

    >>> import numpy as np, qcsbm
    >>> x = np.random.default_rng(0).standard_normal((50, 3))
    >>> field = lambda x: np.stack([-x[:, 1], x[:, 0], 0 * x[:, 2]], axis=1)
    >>> report = qcsbm.asymmetry(field, x)
    >>> report.protocol.products, round(report.mean.lambda_.value, 6)
    ('forward', 1.0)
    """
    return audit(
        field,
        x,
        t,
        kind=kind,
        schedule=schedule,
        kinds=kinds,
        products=products,
        probes=probes,
        relative_error=relative_error,
        step=step,
        dtype=dtype,
        circulation=False,
        spectrum=0,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )


def samples_of(x: Samples, dtype: str | None) -> tuple[Tensor, str]:
    """The samples as a tensor of ``dtype``, and the SHA-256 of what was given.

    Raises:
        BadInput: they are no samples of floats.
    """
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(x))
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or not x.numel():
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise BadInput(f"x: found {what}, expected samples (n, ...) of floats, at least one")
    if not x.isfinite().all():
        raise BadInput("x: found values that are not finite, expected finite samples")
    x = x.detach()
    if dtype is not None:
        if dtype not in DTYPES:
            raise BadInput(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    elif x.dtype not in DTYPES.values():
        raise BadInput(f"x: found {x.dtype}, expected float32 or float64")
    given = x.contiguous().cpu()
    digest = hashlib.sha256(str((given.dtype, tuple(given.shape))).encode())
    digest.update(given.double().numpy().tobytes())
    return x if dtype is None else x.to(DTYPES[dtype]), digest.hexdigest()


def as_field(
    field: Field | Callable[..., object],
    kind: Kind | None,
    schedule: Schedule | None,
    arrays: bool,
    timed: bool,
) -> Field:
    """A `Field` of whatever was given, perhaps a function of ``arrays``, perhaps a ``timed`` one.

    Raises:
        BadInput: it cannot be called.
    """
    if isinstance(field, Field):
        return replace(field, kind=kind or field.kind, schedule=schedule or field.schedule)
    if not callable(field):
        found_type = type(field).__name__
        raise BadInput(f"field: found an object of type {found_type}, expected a function or Field")
    module = field if isinstance(field, nn.Module) else None
    arrays = arrays and module is None
    of_x_and_t: Callable[..., Any] = of_tensors(field) if arrays else field
    timed = timed or schedule is not None
    name = getattr(field, "__name__", type(field).__name__)
    return Field(
        of_x_and_t if timed else lambda x, t: of_x_and_t(x),
        kind=kind or "score",
        schedule=schedule,
        name="field" if name == "<lambda>" else name,
        module=module,
        differentiable=not arrays,
    )


def times_of(
    t: float | Sequence[float] | Tensor | None, schedule: Schedule | None
) -> list[float | None]:
    if t is None:
        return [None] if schedule is None else levels(schedule, LEVELS).tolist()
    try:
        times = torch.as_tensor(t, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError):
        raise BadInput(f"t: found {t!r}, expected one time or several") from None
    if not len(times) or not times.isfinite().all():
        raise BadInput(f"t: found {t!r}, expected one finite time or more")
    if isinstance(schedule, SDE | EDM | RectifiedFlow):
        _require_known(times, schedule)
    return times.tolist()


def _require_known(times: Tensor, schedule: SDE | EDM | RectifiedFlow) -> None:
    """Refuse times at which no model of the ``schedule`` was trained.

    Noise levels in their place would give numbers too.
    """
    low, high = ends(schedule)
    sigma = schedule.sigma(times)
    # The first time of an SDE is a little after 0.
    unknown = (sigma < low * (1 - SLACK)) | (sigma > high * (1 + SLACK))
    if unknown.any():
        t, found = float(times[unknown][0]), float(sigma[unknown][0])
        raise BadInput(
            f"t: found {t:g}, a noise level of {found:.3g} relative to the data, expected a time "
            f"at which it is {low:.3g} to {high:.3g}, as of {schedule}"
        )


def _require_sizes(
    relative_error: float, step: float | None, spectrum: int, planes: int, batch_size: int
) -> None:
    for name, number in (("relative_error", relative_error), ("step", step)):
        if number is not None and not 0 < number < math.inf:
            raise BadInput(f"{name}: found {number:g}, expected a positive number")
    for name, count, least in (
        ("spectrum", spectrum, 0),
        ("planes", planes, 1),
        ("batch_size", batch_size, 1),
    ):
        if count < least:
            raise BadInput(f"{name}: found {count}, expected at least {least}")


def _require_kinds(field: Field, kinds: Sequence[Kind]) -> None:
    for kind in (field.kind, *kinds):
        if kind not in get_args(Kind):
            raise BadInput(f"kind: found {kind!r}, expected one of {', '.join(get_args(Kind))}")
    if kinds and (field.schedule is None or field.kind == "force"):
        raise BadInput(
            f"kinds: found {', '.join(kinds)} for a field of kind {field.kind!r} with schedule "
            f"{field.schedule}, expected a model of data with noise"
        )


@contextmanager
def _shown(bar: "tqdm[NoReturn]", level: str, part: str) -> Iterator[None]:
    """Within, the ``bar`` says which part of which level is being measured."""
    bar.set_description(f"{level}: {part}")
    yield
    bar.update()


@contextmanager
def converted(module: nn.Module | None, x: Tensor) -> Iterator[None]:
    """Within, the floats of ``module`` are on the device and of the dtype of ``x``.

    The tensors themselves are put back afterwards, so that a conversion there and back, or a copy
    that a function knows nothing of, cannot change anything.
    """
    if module is None:
        yield
        return
    tensors = [*module.parameters(), *module.buffers()]
    kept = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            floats = x.dtype if tensor.is_floating_point() else tensor.dtype
            tensor.data = tensor.data.to(x.device, floats)
        yield
    finally:
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data


def versions() -> Iterator[tuple[str, str]]:
    """The packages that the numbers of this process depend on, and Python itself."""
    yield "python", platform.python_version()
    for name in PACKAGES:
        # A package that was not imported had no part in the numbers.
        if name in sys.modules:
            try:
                yield name, version(name)
            except PackageNotFoundError:
                continue
