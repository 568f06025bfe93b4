"""The training loop: Adam with warm-up and clipping, an EMA of the weights, exact resume.

Every random draw is a function of (seed, step): the batch, its augmentation, t, z and the probes.
Hence processes can share out a batch (`qcsbm.training.parallel`) and take their shares in parts, a
run that was interrupted goes on as if it had not been, a regularised run that starts from a
checkpoint sees the same data and noise as the run it came from, and all methods of one seed are
paired.

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

from qcsbm.data.quantisation import dequantise, to_unit
from qcsbm.runtime.errors import Diverged
from qcsbm.runtime.seeding import generator, global_generator, permutation
from qcsbm.schema.training import Regulariser, Training
from qcsbm.score.models import ScoreModel
from qcsbm.training import checkpoint, parallel
from qcsbm.training.checkpoint import TrainingState
from qcsbm.training.regulariser import QuasiConservative, Unregularised

CURVE_COLUMNS = ("step", "dsm", "qc", "grad_norm")
WINDOW = 50


class BatchOrder:
    """Batches from an endless sequence of independent shuffles of the training set."""

    def __init__(self, n: int, batch_size: int, seed: int):
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.epochs: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> np.ndarray:
        """Indices (batch_size,) of the batch of ``step`` ≥ 1."""
        positions = range((step - 1) * self.batch_size, step * self.batch_size)
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
    `WINDOW` steps, means over the window; qc is std² L_QC, over the steps that were regularised,
    and None without regulariser. After every step at which ``due()`` holds, ``save`` is called with
    the state.

    Raises:
        Diverged: loss or gradient is not finite. A state that was saved is.
    """
    device = next(model.parameters()).device
    names = checkpoint.names(model)
    parameters: list[Tensor] = [model.get_parameter(name) for name in names]
    optimiser = torch.optim.Adam(
        parameters, training.lr, betas=(training.beta1, 0.999), eps=training.eps
    )
    ema = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    start, held = 0, {}
    curve: list[list[float | None]] = []
    window: list[Tensor] = []
    if state is not None:
        checkpoint.restore(model, state.model, "the state to start from")
        checkpoint.restore_adam(optimiser, model, state)
        ema = {name: tensor.to(device).clone() for name, tensor in state.ema.items()}
        start, curve, held = state.step, list(state.curve), state.qc_grad
        window = [torch.tensor(row, device=device) for row in state.window]
    term = Unregularised(model)
    if regulariser:
        term = QuasiConservative(regulariser, model, training.batch_size, seed, held)
    order = BatchOrder(len(images), training.batch_size, seed)
    rank, parts = parallel.rank(), parallel.shares(training.batch_size, training.micro_batch)
    averaged = [ema[name] for name in names]
    model.train()
    model.compute_in(training.precision)

    progress = tqdm(
        range(start + 1, stop + 1), initial=start, total=stop, mininterval=5.0, disable=rank > 0
    )
    for step in progress:
        x_0, t, z = draw_batch(images, levels, order(step), training, model, seed, step)
        t, weights, probes = term.draw(step, x_0, t)
        optimiser.zero_grad()
        losses = torch.zeros(2, device=device)
        # Dropout is the only draw left to the global generator.
        with global_generator(device, seed, "dropout", step, *([rank] if rank else [])):
            for part in parts:
                own = [tensor[part].to(device) for tensor in (x_0, t, z, weights)]
                own_probes = None if probes is None else probes[:, part].to(device)
                losses += _add_gradients(term, *own, probes=own_probes, n=training.batch_size)
        gradients = [p.grad for p in parameters if p.grad is not None]
        parallel.sum_([*gradients, losses])
        term.add_held(gradients)
        grad_norm = clip_grad_norm_(parameters, training.grad_clip)
        for group in optimiser.param_groups:
            group["lr"] = training.lr * min(step / training.warmup, 1)
        optimiser.step()
        decay = min(training.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averaged, parameters, 1 - decay)

        window.append(torch.cat([losses, grad_norm[None]]))
        if step % WINDOW == 0 or step == stop:
            curve.append(_row(step, window, term))
            window = []
            progress.set_postfix_str(f"dsm {curve[-1][1]:.2f}", refresh=False)
        if rank == 0 and save and step != stop and due():
            _require_finite(window, step)
            save(_state(step, model, ema, optimiser, curve, window, term))
    return _state(stop, model, ema, optimiser, curve, [], term)


def _add_gradients(
    term: Unregularised,
    x_0: Tensor,
    t: Tensor,
    z: Tensor,
    weights: Tensor,
    *,
    probes: Tensor | None,
    n: int,
) -> Tensor:
    """Differentiate the loss of a part of a batch of ``n``; its shares of DSM and L_QC, (2,).

    What it leaves are gradients: no graph is held while the next part makes its own.
    """
    loss = term.loss(x_0, t, z, probes)
    dsm = (weights * loss.dsm).sum() / n
    total, qc = term.objective(dsm, loss, weights)
    total.backward()
    return torch.stack([dsm, qc]).detach()


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


def _row(step: int, window: list[Tensor], term: Unregularised) -> list[float | None]:
    """The row of the curve for the steps of ``window``, which ends at ``step``."""
    _require_finite(window, step)
    dsm, qc, grad_norm = torch.stack(window).sum(0).tolist()
    n = len(window)
    regularised = term.evaluations(step - n, step)
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
    curve: list[list[float | None]],
    window: list[Tensor],
    term: Unregularised,
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
        qc_grad=term.held,
    )
