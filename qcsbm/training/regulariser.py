"""What a training adds to the DSM loss, step by step: nothing, or L_QC.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Eqs. 8 and 9; https://arxiv.org/abs/2209.12753
"""

import torch
from torch import Tensor

from qcsbm.conservativeness.products import rademacher
from qcsbm.runtime.seeding import generator
from qcsbm.schema.training import Regulariser
from qcsbm.score.losses import Loss, training_loss
from qcsbm.score.models import ScoreModel
from qcsbm.training import checkpoint, parallel


class Unregularised:
    """The DSM loss alone, and what the training loop asks of a regulariser in every step.

    In every step the loop calls `draw`, `loss` and `objective` for each part of the batch, and
    `add_held`, in this order.
    """

    def __init__(self, model: ScoreModel):
        self.model = model
        # The gradient of the regulariser, by parameter, that counts up to its next evaluation.
        self.held: dict[str, Tensor] = {}

    def draw(self, step: int, x_0: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Times and their weights, both (B,), and probes, None in a step without an evaluation.

        ``x_0`` (B, ...) and uniform ``t`` (B,) are those of the whole batch, on the CPU.
        """
        return t, torch.ones_like(t), None

    def loss(self, x_0: Tensor, t: Tensor, z: Tensor, probes: Tensor | None) -> Loss:
        """The terms of a part of the batch, by sample."""
        return training_loss(self.model, x_0, t, z)

    def objective(self, dsm: Tensor, loss: Loss, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What is to be differentiated, and what the learning curve shows of the regulariser.

        Both are this part's share of a mean over the batch, as is ``dsm``.
        """
        return dsm, torch.zeros_like(dsm)

    def add_held(self, gradients: list[Tensor]) -> None:
        """Add what the objectives leave out to the ``gradients`` of all trained parameters.

        These are sums over all parts and processes.
        """

    def evaluations(self, first: int, last: int) -> int:
        """The number of evaluations in the steps after ``first`` up to ``last``."""
        return 0


class QuasiConservative(Unregularised):
    """λ σ² L_QC of the first b of the B samples in a batch, in one step of ``every``."""

    def __init__(
        self,
        settings: Regulariser,
        model: ScoreModel,
        batch_size: int,
        seed: int,
        held: dict[str, Tensor],
    ):
        super().__init__(model)
        self.settings, self.seed = settings, seed
        self.samples = settings.batch_size or batch_size
        self.parameters = {name: model.get_parameter(name) for name in checkpoint.names(model)}
        # Its sum over the parts of a batch so far, in a step with an evaluation.
        self.evaluated: list[Tensor] = []
        if held and settings.every > 1:
            self.held = {name: held[name].to(p.device) for name, p in self.parameters.items()}

    def draw(self, step: int, x_0: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As above, with probes (K, b, ...)."""
        weights = torch.ones_like(t)
        if step % self.settings.every:
            return t, weights, None
        if self.settings.time_sampling == "importance":
            draws = generator(self.seed, "times", step)
            t, weights = importance_times(t, self.model.sde.epsilon, draws)
        shape = (self.settings.probes, self.samples, *x_0.shape[1:])
        return t, weights, rademacher(shape, generator(self.seed, "probes", step))

    def loss(self, x_0: Tensor, t: Tensor, z: Tensor, probes: Tensor | None) -> Loss:
        # The regularised samples are the first ones of the batch: later parts may have none.
        if probes is not None and not probes.shape[1]:
            probes = None
        settings = self.settings
        return training_loss(
            self.model, x_0, t, z, probes, settings.estimator, settings.difference_step
        )

    def objective(self, dsm: Tensor, loss: Loss, weights: Tensor) -> tuple[Tensor, Tensor]:
        """DSM + λ σ² L_QC and σ² L_QC; DSM alone where the gradient of L_QC is held."""
        if loss.qc is None:
            return dsm, torch.zeros_like(dsm)
        qc = (weights[: len(loss.qc)] * loss.qc).sum() / self.samples
        if self.settings.every == 1:
            return dsm + self.settings.weight * qc, qc
        gradient = torch.autograd.grad(
            qc, list(self.parameters.values()), retain_graph=True, materialize_grads=True
        )
        if self.evaluated:
            torch._foreach_add_(self.evaluated, gradient)
        else:
            self.evaluated = list(gradient)
        return dsm, qc

    def add_held(self, gradients: list[Tensor]) -> None:
        if self.evaluated:
            parallel.sum_(self.evaluated)
            self.held = dict(zip(self.parameters, self.evaluated, strict=True))
            self.evaluated = []
        if self.held:
            # Counting many times in one step instead, it would be cut by the clipping.
            torch._foreach_add_(gradients, list(self.held.values()), alpha=self.settings.weight)

    def evaluations(self, first: int, last: int) -> int:
        return last // self.settings.every - first // self.settings.every


def importance_times(t: Tensor, epsilon: float, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Times (B,) that favour small t, and the weights (B,) with which means stay unbiased.

    Made from uniform ``t`` (B,): u has one value in each of B equal parts of [0, 1], in random
    order, and t = ε + (1 − ε)u² the density 1 / 2u relative to the uniform one. Both the strata and
    the density lower the variance of a mean over the batch.

    References:
        Variational Diffusion Models (Kingma et al., 2021), Appendix I.1, for the strata;
        https://arxiv.org/abs/2107.00630
    """
    within = (t - epsilon) / (1 - epsilon)
    u = (torch.randperm(len(t), generator=draws) + within) / len(t)
    return epsilon + (1 - epsilon) * u.square(), 2 * u
