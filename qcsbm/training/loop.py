"""The training loop: Adam with warm-up and clipping, an EMA of the weights, exact resume.

Every random draw is a function of (seed, step): the batch, its augmentation, t, z and the probes.
Hence processes can share out a batch (`qcsbm.training.parallel`), a run that was interrupted goes
on as if it had not been, a regularised run that starts from a checkpoint sees the same data and
noise as the run it came from, and all methods of one seed are paired.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    Appendix C and H; https://arxiv.org/abs/2011.13456
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from qcsbm.conservativeness.products import rademacher
from qcsbm.data.quantisation import dequantise, to_unit
from qcsbm.runtime.errors import Diverged
from qcsbm.runtime.seeding import generator, global_generator, permutation
from qcsbm.schema.training import Regulariser, Training
from qcsbm.score.losses import training_loss
from qcsbm.score.models import ScoreModel
from qcsbm.training import checkpoint, parallel
from qcsbm.training.checkpoint import TrainingState

CURVE_COLUMNS = ("step", "dsm", "qc", "grad_norm")
WINDOW = 50


class BatchOrder:
    """Batches from an endless sequence of independent shuffles of the training set."""

    def __init__(self, n: int, batch_size: int, seed: int):
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.epochs: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> np.ndarray:
        """Indices (batch_size,) of the batch of ``step`` ≥ 1."""
        positions = np.arange((step - 1) * self.batch_size, step * self.batch_size)
        needed = range(positions[0] // self.n, positions[-1] // self.n + 1)
        self.epochs = {
            epoch: self.epochs[epoch]
            if epoch in self.epochs
            else permutation(self.n, self.seed, "epoch", epoch)
            for epoch in needed
        }
        return np.array([self.epochs[p // self.n][p % self.n] for p in positions])


def train(
    model: ScoreModel,
    images: np.ndarray,
    levels: int,
    training: Training,
    regulariser: Regulariser | None,
    seed: int,
    stop: int,
    state: TrainingState | None = None,
    save: Callable[[TrainingState], None] | None = None,
    due: Callable[[], bool] = lambda: False,
) -> TrainingState:
    """Train ``model`` on uint8 ``images`` (N, C, H, W) up to step ``stop`` and return its state.

    Starts from ``state`` where one is given. The state's curve has a row (`CURVE_COLUMNS`) per
    `WINDOW` steps, means over the window; qc is σ² L_QC, over the steps that were regularised, and
    None without regulariser. After every step at which ``due()`` holds, ``save`` is called with the
    state.

    Raises:
        Diverged: loss or gradient is not finite. A state that was saved is.
    """
    device = next(model.parameters()).device
    names = checkpoint.names(model)
    parameters = [model.get_parameter(name) for name in names]
    optimiser = torch.optim.Adam(
        parameters, training.lr, betas=(training.beta1, 0.999), eps=training.eps
    )
    ema = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    start, curve, window, qc_grad = 0, [], [], {}
    if state is not None:
        checkpoint.restore(model, state.model, "the state to start from")
        checkpoint.restore_adam(optimiser, model, state)
        ema = {name: tensor.to(device).clone() for name, tensor in state.ema.items()}
        start, curve = state.step, list(state.curve)
        window = [torch.tensor(row, device=device) for row in state.window]
        if state.qc_grad and regulariser and regulariser.every > 1:
            qc_grad = {name: state.qc_grad[name].to(device) for name in names}
    order = BatchOrder(len(images), training.batch_size, seed)
    rank = parallel.rank()
    # Of a batch, and of its regularised first part, every process has every n-th sample.
    own = slice(rank, None, parallel.size())
    averaged = [ema[name] for name in names]
    model.train()
    model.precision = getattr(torch, training.precision)

    progress = tqdm(
        range(start + 1, stop + 1), initial=start, total=stop, mininterval=5.0, disable=rank > 0
    )
    for step in progress:
        x_0, t, z = draw_batch(images, levels, order(step), training, model, seed, step)
        probes, weights = None, torch.ones_like(t)
        if regulariser and step % regulariser.every == 0:
            t, weights, whole = draw_regularised(x_0, t, regulariser, model, seed, step)
            probes = whole[:, own].to(device)
        estimator = regulariser.estimator if regulariser else "trace"
        x_0, t, z, weights = (tensor[own].to(device) for tensor in (x_0, t, z, weights))
        # Dropout is the only draw left to the global generator.
        with global_generator(device, seed, "dropout", step, *([rank] if rank else [])):
            loss = training_loss(model, x_0, t, z, probes, estimator)
        total = dsm = (weights * loss.dsm).sum() / training.batch_size
        qc = torch.zeros_like(dsm)
        if loss.qc is not None:
            qc = (weights[: len(loss.qc)] * loss.qc).sum() / whole.shape[1]
            if regulariser.every == 1:
                total = dsm + regulariser.weight * qc
            else:
                qc_grad = _gradient(qc, names, parameters)

        optimiser.zero_grad()
        total.backward()
        losses = torch.stack([dsm, qc]).detach()
        gradients = [p.grad for p in parameters]
        parallel.sum_([*gradients, losses])
        if qc_grad:
            # Counting many times in one step instead, it would be cut by the clipping.
            torch._foreach_add_(gradients, list(qc_grad.values()), alpha=regulariser.weight)
        grad_norm = clip_grad_norm_(parameters, training.grad_clip)
        for group in optimiser.param_groups:
            group["lr"] = training.lr * min(step / training.warmup, 1)
        optimiser.step()
        decay = min(training.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averaged, parameters, 1 - decay)

        window.append(torch.cat([losses, grad_norm[None]]))
        if step % WINDOW == 0 or step == stop:
            curve.append(_row(step, window, regulariser))
            window = []
            progress.set_postfix_str(f"dsm {curve[-1][1]:.2f}", refresh=False)
        if rank == 0 and save and step != stop and due():
            _require_finite(window, step)
            save(_state(step, model, ema, optimiser, curve, window, qc_grad))
    return _state(stop, model, ema, optimiser, curve, [], qc_grad)


def draw_batch(
    images: np.ndarray,
    levels: int,
    indices: np.ndarray,
    training: Training,
    model: ScoreModel,
    seed: int,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Data x_0 (B, C, H, W) in [0, 1], times t (B,) in [ε, 1] and noise z like x_0, on the CPU."""
    draws = generator(seed, "batch", step)
    k = torch.from_numpy(images[indices])
    x_0 = dequantise(k, levels, draws) if training.dequantise else to_unit(k, levels)
    if training.flip:
        flipped = torch.rand(len(x_0), generator=draws) < 0.5
        x_0 = torch.where(flipped[:, None, None, None], x_0.flip(3), x_0)
    epsilon = model.sde.epsilon
    t = epsilon + (1 - epsilon) * torch.rand(len(x_0), generator=draws)
    return x_0, t, torch.randn(x_0.shape, generator=draws)


def draw_regularised(
    x_0: Tensor, t: Tensor, regulariser: Regulariser, model: ScoreModel, seed: int, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Times and their weights, both (B,), and probes (K, b, ...) of a step that evaluates L_QC.

    ``x_0`` (B, ...) and uniform ``t`` (B,) are the step's; b of the B samples are regularised.
    """
    weights = torch.ones_like(t)
    if regulariser.time_sampling == "importance":
        t, weights = importance_times(t, model.sde.epsilon, generator(seed, "times", step))
    b = regulariser.batch_size or len(x_0)
    shape = (regulariser.probes, b, *x_0.shape[1:])
    return t, weights, rademacher(shape, generator(seed, "probes", step))


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


def _gradient(qc: Tensor, names: list[str], parameters: list[Tensor]) -> dict[str, Tensor]:
    """The gradient of ``qc`` by parameter, over all processes; the graph is kept."""
    gradient = torch.autograd.grad(qc, parameters, retain_graph=True, materialize_grads=True)
    parallel.sum_(list(gradient))
    return dict(zip(names, gradient, strict=True))


def _row(step: int, window: list[Tensor], regulariser: Regulariser | None) -> list:
    """The row of the curve for the steps of ``window``, which ends at ``step``."""
    _require_finite(window, step)
    dsm, qc, grad_norm = torch.stack(window).sum(0).tolist()
    n = len(window)
    regularised = step // regulariser.every - (step - n) // regulariser.every if regulariser else 0
    return [step, dsm / n, qc / regularised if regularised else None, grad_norm / n]


def _require_finite(window: list[Tensor], step: int) -> None:
    """Refuse losses and gradient norms of the steps up to ``step`` that are not finite."""
    if not window or (values := torch.stack(window)).isfinite().all():
        return
    row, column = (~values.isfinite()).nonzero()[0].tolist()
    raise Diverged(
        f"training diverged: {CURVE_COLUMNS[1 + column]} is {values[row, column].item()} at step "
        f"{step - len(window) + 1 + row}"
    )


def _state(
    step: int,
    model: ScoreModel,
    ema: dict[str, Tensor],
    optimiser: torch.optim.Adam,
    curve: list,
    window: list[Tensor],
    qc_grad: dict[str, Tensor],
) -> TrainingState:
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise Diverged(f"training diverged: {name} is not finite after step {step}")
    # EMA is kept for parameters only; buffers never change.
    return TrainingState(
        step,
        model.state_dict(),
        ema,
        *checkpoint.adam_moments(optimiser, model),
        curve=list(curve),
        window=[row.tolist() for row in window],
        qc_grad=qc_grad,
    )
