r"""Unconstrained and conservative score models over the same network.

With h the network's output, or x minus it where ``residual`` (Eq. 10 of the paper to the letter):

.. math:: s_U(x, t) = \frac{h(x, \sigma_t)}{\mathrm{std}_t}, \qquad
   s_C(x, t) = -\nabla_x \frac{\|h(x, \sigma_t)\|^2}{2 \, \mathrm{std}_t}.

The score of x_t is of the order of 1 / std, which divides the output. What the network is told is
σ = std / m, the noise level in units of the data, by its logarithm: under the VE SDE the two are
one, and under the VP SDE log σ tells all levels apart, where std is within 1 % of 1 from t = 0.63
on. A quasi-conservative model is an unconstrained one; only its training differs.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Eq. 10; https://arxiv.org/abs/2209.12753
    Should EBMs Model the Energy or the Score? (Salimans & Ho, 2021);
    https://openreview.net/forum?id=9AS-TF2jRNb
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from qcsbm.nets import own
from qcsbm.nets.ncsnpp import NCSNpp
from qcsbm.nets.precision import InPrecision
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.seeding import global_generator
from qcsbm.schema import networks
from qcsbm.schema.specifications import Model
from qcsbm.score.sde import MEMBERS, SDE, bcast


class ScoreModel(InPrecision):
    """s_U: any vector field. ``forward(x, t)`` maps x (B, ...) and t (B,) to a score like x."""

    def __init__(self, network: nn.Module, sde: SDE, residual: bool = False):
        super().__init__()
        self.network = network
        self.sde = sde
        self.residual = residual

    def h(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The vector that the score is made from, shaped like x (B, ...), for sigma (B,)."""
        with self.lowered(x):
            output = self.network(x, sigma).to(x.dtype)
        return x - output if self.residual else output

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.h(x, self.sde.sigma(t)) / bcast(self.sde.std(t), x)


class EnergyScoreModel(ScoreModel):
    """s_C: the negative gradient of a scalar energy, hence conservative by construction.

    The gradient is taken under ``torch.no_grad`` too; its own graph is kept only where the
    caller has gradients enabled. It cannot be taken under ``torch.inference_mode``.
    """

    def energy(self, x: Tensor, t: Tensor) -> Tensor:
        """‖h‖² / (2 std) for x (B, ...) and t (B,); shape (B,)."""
        h = self.h(x, self.sde.sigma(t))
        return h.flatten(1).square().sum(1) / (2 * self.sde.std(t))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return -torch.autograd.grad(self.energy(x, t).sum(), x, create_graph=create_graph)[0]


PARAMETERISATIONS = {"score": ScoreModel, "energy": EnergyScoreModel}


def build(
    shape: tuple[int, int, int],
    model: Model,
    seed: int | None = None,
) -> ScoreModel:
    """The ``model`` of a cell for images of ``shape`` (C, H, W), with freshly drawn weights.

    The same ``seed`` gives the same initial weights whatever the parameterisation; without one they
    come from PyTorch's global generator, which is otherwise left as it was.

    Raises:
        BadInput: images that are not square, or that the network cannot take, or a network of
            one's own that cannot be built.
    """
    channels, height, width = shape
    if height != width:
        raise BadInput(f"images of {height} × {width} pixels: found, expected square ones")
    sde = MEMBERS[model.sde.type](**model.sde.model_dump(exclude={"type"}))
    cpu = torch.device("cpu")
    with nullcontext() if seed is None else global_generator(cpu, seed, "init"):
        net = _network(height, channels, model.network)
    return PARAMETERISATIONS[model.parameterisation](net, sde, model.residual)


def _network(image_size: int, channels: int, settings: networks.NCSNpp | networks.Own) -> nn.Module:
    if isinstance(settings, networks.Own):
        return own.build(image_size, channels, settings)
    return NCSNpp(image_size, channels, settings)
