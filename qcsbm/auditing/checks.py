"""Whether a field can be audited: tried on two samples, before any work.

Each fault is one sentence. A field that mixes the samples of a batch has a Jacobian that is not
block diagonal, and one that draws random numbers has none: both would give numbers, and wrong ones.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from qcsbm.adapters.field import Field
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.seeding import generator
from qcsbm.score.kinds import to_score
from qcsbm.score.schedules import Schedule
from qcsbm.score.sde import bcast

# Two outputs are the same if they differ by less than this many units of rounding of the largest
# entry: kernels on GPUs do not always add in the same order.
ROUNDINGS = 1e3
# Samples that are denoised for it.
TRIED = 64
# Denoising has to be so much better at another scale before anybody is warned.
CLEARLY = 0.8
# Entries outside the range of the data, relative to its width, that are no reason to warn.
BEYOND = 0.05


def require_auditable(field: Field, x: Tensor, t: Tensor) -> None:
    """Try ``field`` at noisy samples x (B, ...) and t (B,).

    Raises:
        BadInput: what was found, and what is expected.
    """
    if len(x) == 1:
        x, t = torch.cat([x, x]), torch.cat([t, t])
    x, t = x[:2].clone(), t[:2]
    with torch.no_grad():
        for fault in _faults(field, x, t):
            raise BadInput(f"{field.name}: {fault}")


def _faults(field: Field, x: Tensor, t: Tensor) -> Iterator[str]:
    before = x.clone()
    y = called(field, x, t)
    if not isinstance(y, Tensor):
        yield (
            f"found a {type(y).__name__} for a value, expected a tensor like x; a function of "
            "NumPy arrays is audited at samples that are one"
        )
    if y.shape != x.shape:
        yield (
            f"found a value of shape {tuple(y.shape)} at x of shape {tuple(x.shape)}, expected one "
            "like x"
        )
    if (y.dtype, y.device) != (x.dtype, x.device):
        yield (
            f"found a value of {y.dtype} on {y.device} at x of {x.dtype} on {x.device}, expected "
            "one like x"
        )
    if not torch.equal(x, before):
        yield "found that x is changed in place, expected it to stay as it is"
    if not y.isfinite().all():
        yield f"found a value that is not finite at t = {float(t[0]):.3g}, expected finite numbers"
    rounding = min(ROUNDINGS * torch.finfo(y.dtype).eps, BEYOND) * float(y.abs().max())
    again = called(field, x, t)
    if not _same(y, again, rounding):
        yield (
            f"found two values at one x, {_change(y, again):.2g} of the largest entry apart, "
            "expected the same one: dropout is off after .eval()"
        )
    other = x.clone()
    draws = torch.randn(x[1:].shape, generator=generator(0, "other samples"))
    other[1:] = x[1:].flip(-1) + x.std() * draws.to(x)
    mixed = called(field, other, t)[:1]
    if not _same(y[:1], mixed, rounding):
        yield (
            f"found that a sample's value changes with the others of its batch, by "
            f"{_change(y[:1], mixed):.2g} of the largest entry, expected samples that do not "
            "interact: batch normalisation is fixed after .eval()"
        )


def called(field: Field, x: Tensor, t: Tensor) -> Tensor:
    """The field's value at x (B, ...) and t (B,), whose own errors become a sentence.

    Raises:
        BadInput: the field raised an exception.
    """
    try:
        return field(x, t)
    except BadInput:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        found = f"{field.name}: found {type(error).__name__}: {reason}"
        if isinstance(error, TypeError | ValueError):
            raise BadInput(
                f"{found}, expected a function of x and t, or of x alone where neither t nor a "
                "schedule is given; a model that needs labels is given them first, as in "
                "lambda x, t: model(x, t, labels)"
            ) from error
        raise BadInput(
            f"{found}, expected a value like x {tuple(x.shape)}, {x.dtype} on {x.device}"
        ) from error


def _same(y: Tensor, other: Tensor, rounding: float) -> bool:
    return bool((y - other).abs().max() <= rounding)


def _change(y: Tensor, other: Tensor) -> float:
    return float((y - other).abs().max() / y.abs().max())


def scale_warnings(field: Field, x: Tensor) -> Iterator[str]:
    """Sentences on data x (n, ...) that seem to have another scale than the field's own."""
    low, high = float(x.min()), float(x.max())
    found = f"the data lie in [{low:.3g}, {high:.3g}]"
    if field.data_range is not None:
        expected_low, expected_high = field.data_range
        middle = (expected_low + expected_high) / 2
        slack = BEYOND * (expected_high - expected_low)
        expected = f"{field.name} expects [{expected_low:g}, {expected_high:g}]"
        if low < expected_low - slack or high > expected_high + slack:
            yield f"{found}, {expected}"
            return
        if low >= middle or high <= middle:
            yield f"{found}, {expected}: they fill one half of it alone"
            return
    if field.schedule is not None and field.kind != "force":
        yield from _other_scale(field, field.schedule, x, low, high)


def _other_scale(
    field: Field, schedule: Schedule, x: Tensor, low: float, high: float
) -> Iterator[str]:
    """Compare how well the data are denoised with the data on [0, 1] and [−1, 1] exchanged.

    The noise is scaled with the data, so that denoising is as hard on both scales.
    """
    if low >= 0 and high <= 1:
        mapped, factor, scale, other = 2 * x - 1, 2.0, "[0, 1]", "[-1, 1]"
    elif low >= -1 and high <= 1:
        mapped, factor, scale, other = (x + 1) / 2, 0.5, "[-1, 1]", "[0, 1]"
    else:
        return
    # Where there is as much noise as data, where the data lie matters most.
    noise = float(x.std())
    try:
        losses = [
            denoising_loss(field, schedule, data[:TRIED], scaled * noise)
            for data, scaled in ((x, 1.0), (mapped, factor))
        ]
    except BadInput:  # the schedule has no such level
        return
    if losses[1] < CLEARLY * losses[0]:
        yield (
            f"the data lie in {scale}, but {field.name} denoises them better when they are mapped "
            f"to {other}: its loss is {losses[1]:.3g} instead of {losses[0]:.3g}"
        )


def denoising_loss(field: Field, schedule: Schedule, x: Tensor, noise: float) -> float:
    """E‖σ s + z‖² / D at data x (n, ...) with noise of level ``noise`` relative to them."""
    n = len(x)
    t = schedule.time(torch.full((n,), noise, dtype=torch.float64))
    alpha, sigma = (bcast(c(t), x).to(x) for c in (schedule.mean, schedule.std))
    z = torch.randn(x.shape, generator=generator(0, "scale")).to(x)
    x_t, t = alpha * x + sigma * z, t.to(x)
    with torch.no_grad():
        s = to_score(field.kind, schedule, called(field, x_t, t), x_t, t)
    return float((sigma * s + z).double().square().mean())


def of_tensors(function: Callable[..., object]) -> Callable[..., Tensor]:
    """A ``function`` of NumPy arrays as one of tensors."""

    def called_with_arrays(*arguments: Tensor) -> Tensor:
        y = function(*(argument.detach().cpu().numpy() for argument in arguments))
        if not isinstance(y, np.ndarray):
            raise BadInput(
                f"field: found an object of type {type(y).__name__} for a value, expected an array "
                "like x, as x is one"
            )
        return torch.from_numpy(np.ascontiguousarray(y)).to(arguments[0].device)

    return called_with_arrays
