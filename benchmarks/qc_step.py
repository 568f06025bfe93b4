r"""Time and variance of the QC training step, against the U step and the published algorithm.

    python benchmarks/qc_step.py [--steps 800] [--repetitions 15] [--draws 200]

A U-NCSN++ is trained on digits, so that the field is that of a model and not of an initialisation.
Then the steps are timed in turn (forward, backward, no optimiser), and the total variance of the
parameter gradient of L_QC, over data, noise, t and probe together, is measured for each estimator:
:math:`\sum_p Var(g_p)` over independent batches. "published" restates the algorithm of the paper's
public code: two vector products through the graph, a backward pass of the loss and a second one of
the first product (https://github.com/chen-hao-chao/qcsbm).

The last line is a JSON object; times are medians in seconds.
"""

import argparse
import json
import platform
import statistics
import time
from functools import partial

import torch
from torch import Tensor

from qcsbm.autodiff import rademacher
from qcsbm.config import Digits, Training
from qcsbm.data.digits import digits
from qcsbm.losses import training_loss
from qcsbm.models import ScoreModel, build
from qcsbm.sde import bcast
from qcsbm.seeding import generator
from qcsbm.training import BatchOrder, draw_batch, train

NETWORK = dict(nf=16, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[4], dropout=0.0)
SDE = dict(sigma_min=0.01, sigma_max=5.0)
TRAINING = Training(batch_size=64, lr=1e-3, warmup=100, ema=0.99, dequantise=True)
WEIGHT = 1e-2


def published_step(model: ScoreModel, x_0: Tensor, t: Tensor, z: Tensor, v: Tensor) -> None:
    """One step of the published algorithm: both gradient components, in two backward passes."""
    mean, sigma = model.sde.marginal_prob(x_0, t)
    x_t = (mean + bcast(sigma, x_0) * z).requires_grad_()
    s = model(x_t, t)
    dsm = (bcast(sigma, x_0) * s + z).flatten(1).square().sum(1) / 2
    (jt_v,) = torch.autograd.grad((s * v).sum(), x_t, create_graph=True)
    constant = jt_v.detach().requires_grad_()
    (jt_jt_v,) = torch.autograd.grad((s * constant).sum(), x_t, create_graph=True)
    qc = (jt_v.square() - v * jt_jt_v).flatten(1).sum(1)
    (dsm.mean() + WEIGHT * (sigma**2 * qc).mean()).backward(retain_graph=True)
    jt_v.backward(constant.grad)


def our_step(
    model: ScoreModel, x_0: Tensor, t: Tensor, z: Tensor, v: Tensor, estimator: str | None, b: int
) -> None:
    """One step with L_QC by ``estimator`` on the first ``b`` samples; a U step if it is None."""
    probes = None if estimator is None else v[None, :b]
    loss = training_loss(model, x_0, t, z, probes, estimator or "trace")
    total = loss.dsm.mean() if loss.qc is None else loss.dsm.mean() + WEIGHT * loss.qc.mean()
    total.backward()


def gradient_of_qc(model: ScoreModel, batch: tuple, v: Tensor, estimator: str) -> Tensor:
    """The parameter gradient of the mean of σ² L_QC over a batch, one long vector."""
    model.zero_grad()
    training_loss(model, *batch, v[None], estimator).qc.mean().backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )


def total_variance(model: ScoreModel, draw, estimator: str, draws: int) -> float:
    """Σ_p Var(g_p) over ``draws`` independent batches, by a running sum in float64."""
    total = squares = None
    for step in range(draws):
        *batch, v = draw(step)
        g = gradient_of_qc(model, batch, v, estimator).double()
        total = g if total is None else total + g
        squares = g.square() if squares is None else squares + g.square()
    return float(((squares - total.square() / draws) / (draws - 1)).sum())


def median_times(steps: dict, model: ScoreModel, draw, repetitions: int) -> dict[str, float]:
    """Median time of each of ``steps``, taken in turn so that drift falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        batch = draw(repetition)
        for name, step in steps.items():
            model.zero_grad()
            start = time.perf_counter()
            step(model, *batch)
            if repetition:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="training steps of U")
    parser.add_argument("--repetitions", type=int, default=15, help="timed steps of each kind")
    parser.add_argument("--draws", type=int, default=200, help="batches for the variance")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    data = digits(Digits(source="digits"))
    images = data.train.images
    model = build(images.shape[1:], "score", False, NETWORK, SDE, seed=0)
    train(model, images, data.levels, TRAINING, None, 0, arguments.steps)
    order = BatchOrder(len(images), TRAINING.batch_size, 1)

    def draw(step: int) -> tuple[Tensor, ...]:
        x_0, t, z = draw_batch(images, data.levels, order(step + 1), TRAINING, model, 1, step)
        return x_0, t, z, rademacher(x_0.shape, generator(1, "probes", step))

    batch = TRAINING.batch_size
    parts = [b for b in (32, 16, 8, 4, 2, 1) if b < batch]
    steps = {
        "u": partial(our_step, estimator=None, b=0),
        "published": published_step,
        "trace": partial(our_step, estimator="trace", b=batch),
        "antisymmetric": partial(our_step, estimator="antisymmetric", b=batch),
        **{f"antisymmetric/{b}": partial(our_step, estimator="antisymmetric", b=b) for b in parts},
    }
    seconds = median_times(steps, model, draw, arguments.repetitions)
    variance = {
        estimator: total_variance(model, draw, estimator, arguments.draws)
        for estimator in ("trace", "antisymmetric")
    }
    # Samples of a batch are independent: the variance of a mean over b of them is 1/b of one's.
    variances = {
        "published": variance["trace"],
        **variance,
        **{f"antisymmetric/{b}": variance["antisymmetric"] * batch / b for b in parts},
    }
    print(f"{'step':>18} {'ms':>8} {'x U':>6} {'variance':>10} {'variance x time':>16}")
    for name, value in seconds.items():
        v = variances.get(name)
        shown = f"{v:10.3g} {v * value:16.3g}" if v is not None else ""
        print(f"{name:>18} {1e3 * value:8.1f} {value / seconds['u']:6.2f} {shown}")
    unbiased = [name for name in seconds if variances.get(name, 1e300) <= variance["trace"]]
    cheapest = min(unbiased, key=seconds.get)
    result = {
        "u_s": seconds["u"],
        "published_s": seconds["published"],
        "trace_s": seconds["trace"],
        "antisymmetric_s": seconds["antisymmetric"],
        "variance_ratio": variance["trace"] / variance["antisymmetric"],
        "equal_variance": cheapest,
        "equal_variance_s": seconds[cheapest],
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
