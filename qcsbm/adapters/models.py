r"""Models from outside as scores, under whichever SDE they are to be measured.

With m and std the coefficients of the SDE's perturbation kernel, y = x / m is the data with noise
of level σ = std / m added, of which a model of any kind and schedule has a score, and

.. math:: s(x, t) = \frac{1}{m} \nabla \log p(x / m; \, \mathrm{std} / m).

So a model that was trained under one SDE, or none, is sampled and has its likelihood under any
other one whose noise levels it knows.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), Eq. 4
    and Appendix B; https://arxiv.org/abs/2206.00364
"""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qcsbm.adapters.denoiser import Denoiser
from qcsbm.adapters.diffusers import from_diffusers
from qcsbm.adapters.field import Field
from qcsbm.adapters.functions import from_function
from qcsbm.nets.precision import InPrecision
from qcsbm.runtime.errors import BadInput
from qcsbm.schema.outside import Diffusers, Function
from qcsbm.schema.specifications import ModelFromOutside
from qcsbm.score import sde
from qcsbm.score.schedules import NAMED, ends
from qcsbm.score.sde import SDE, bcast


class OutsideModel(InPrecision):
    """The score of a model from outside: ``forward(x, t)`` is like x (B, ...), for t (B,).

    Where gradients are enabled, attention is computed by operations that are twice differentiable.
    """

    def __init__(self, denoiser: Denoiser, sde: SDE):
        super().__init__()
        self.denoiser = denoiser
        self.sde = sde

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        mean = bcast(self.sde.mean(t), x)
        twice = sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else nullcontext()
        with twice, self.lowered(x):
            return self.denoiser.score(x / mean, self.sde.sigma(t)) / mean


def build(shape: tuple[int, int, int], model: ModelFromOutside) -> OutsideModel:
    """The ``model`` with its weights, ready for evaluation on images of ``shape`` (C, H, W).

    Raises:
        BadInput: it cannot be read, is of other images, or does not know all noise levels of the
            SDE.
    """
    given = denoiser(model.source, shape)
    process = sde.MEMBERS[model.sde.type](**model.sde.model_dump(exclude={"type"}))
    times = torch.tensor([process.t_min, 1.0], dtype=torch.float64)
    first, last = process.sigma(times).tolist()
    low, high = levels(given)
    # Rounding of float32 must not lead out of what the model knows.
    if first < low * (1 + 1e-5) or last > high * (1 - 1e-5):
        raise BadInput(
            f"{given.field.name}: found noise levels from {first:.4g} to {last:.4g} in the SDE, "
            f"expected some between {low:.4g} and {high:.4g}, those that the model knows for data "
            "in [0, 1]"
        )
    return OutsideModel(given, process).eval().requires_grad_(False)


def denoiser(source: Diffusers | Function, shape: tuple[int, int, int]) -> Denoiser:
    """The model that ``source`` names, for images of ``shape`` (C, H, W).

    Raises:
        BadInput: it cannot be read, or is of other images.
    """
    field = _field(source)
    if field.shape is not None and field.shape != shape:
        found, expected = (" × ".join(map(str, size)) for size in (field.shape, shape))
        raise BadInput(
            f"{field.name}: found a model of {found} images, expected {expected} as the data are"
        )
    return Denoiser(field)


def levels(denoiser: Denoiser) -> tuple[float, float]:
    """The lowest and the highest noise level that the model knows, for data in [0, 1]."""
    low, high = ends(denoiser.schedule)
    return low / denoiser.width, high / denoiser.width


def _field(source: Diffusers | Function) -> Field:
    if isinstance(source, Diffusers):
        return from_diffusers(
            source.path,
            label=source.label,
            guidance=source.guidance,
            null_label=source.null_label,
            variant=source.variant,
        )
    told = source.schedule
    schedule = NAMED[told.type](**told.model_dump(exclude={"type"})) if told else None
    return from_function(
        source.type,
        source.kind,
        schedule,
        data_range=(source.data_range[0], source.data_range[1]) if source.data_range else None,
        files=source.files,
    )
