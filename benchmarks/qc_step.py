r"""Time, memory and variance of the QC training step, against U and the published algorithm.

    python benchmarks/qc_step.py [--steps 800] [--repetitions 5] [--draws 60] [--levels 0]

A U-NCSN++ is trained on digits, so that the field is that of a model and not of an initialisation.
Then the steps are timed in turn (forward, backward, no optimiser), and the total variance of the
parameter gradient of L_QC, over data, noise, t and probe together, is measured for each estimator:
:math:`V = \sum_p Var(g_p)` over independent batches of B. "published" restates the algorithm of the
paper's public code: two vector products through the graph, a backward pass of the loss and a second
one of the first product (https://github.com/chen-hao-chao/qcsbm). Its gradient is that of "trace".

**Cheaper without bias.** Regularising b of the B samples multiplies V by B/b. Computing the
gradient of L_QC in every m-th step and adding it in all m steps costs (m − 1) U + 1 QC per m steps.
Over a window of m steps the mean of the gradient is then one g, of variance V, where m independent
ones would have V/m. Hence a setting (b, m) of the antisymmetric estimator has no more variance than
the published step, within every window of m steps, as long as

.. math:: m B / b \le V_{trace} / V_{antisymmetric}.

The largest such m is timed for every b, in windows of m real steps, and for whole batches with
``time_sampling: importance``, whose variance is measured as the others' are; the cheapest is the
last line's ``equal_variance``. What that does to a training is measured by ``weight_sweep.py``.

**Without second derivatives.** "finite_differences" is the antisymmetric step by first derivatives
and differences over 0.003 σ, as trainings make it with ``derivatives: finite_differences``. Its
relative error is that of the gradient of σ² L_QC, against second derivatives on the same batches.

``--levels n`` also measures V · time with t confined to each of n equal parts of its range.
The last line is a JSON object; times are medians in seconds of the CPU time of one thread, peak
memory is that of a process of its own, above what it held before its first step.
"""

import argparse
import json
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from qcsbm.conservativeness.asymmetry import ESTIMATORS
from qcsbm.conservativeness.products import rademacher
from qcsbm.data.digits import digits
from qcsbm.data.splits import Splits
from qcsbm.runtime.seeding import generator
from qcsbm.schema.networks import NCSNpp
from qcsbm.schema.sde import VE
from qcsbm.schema.sources import Digits
from qcsbm.schema.specifications import Model
from qcsbm.schema.training import Regulariser, Training
from qcsbm.score.losses import training_loss
from qcsbm.score.models import ScoreModel, build
from qcsbm.score.sde import bcast
from qcsbm.training.loop import BatchOrder, draw_batch, train
from qcsbm.training.regulariser import importance_times

MODEL = Model(
    parameterisation="score",
    residual=False,
    network=NCSNpp(
        type="ncsnpp", nf=16, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[4], dropout=0.0
    ),
    sde=VE(type="ve", sigma_min=0.01, sigma_max=5.0),
)
TRAINING = Training(batch_size=64, lr=1e-3, warmup=100, ema=0.99, dequantise=True)
WEIGHT = 1e-2
B = TRAINING.batch_size
DIFFERENCES = Regulariser(
    weight=WEIGHT, estimator="antisymmetric", derivatives="finite_differences"
)
STEP = DIFFERENCES.difference_step
OTHER_STEPS = (1e-3, 2e-3, 5e-3, 1e-2)
ORDER = torch.Generator().manual_seed(0)


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
    model: ScoreModel,
    x_0: Tensor,
    t: Tensor,
    z: Tensor,
    v: Tensor,
    estimator: str = "trace",
    b: int = 0,
    difference_step: float | None = None,
) -> None:
    """One step with L_QC by ``estimator`` on the first ``b`` samples; a U step without any."""
    probes = v[None, :b] if b else None
    loss = training_loss(model, x_0, t, z, probes, estimator, difference_step)
    total = loss.dsm.mean() if loss.qc is None else loss.dsm.mean() + WEIGHT * loss.qc.mean()
    total.backward()


def finite_difference_error(model: ScoreModel, draw: Callable, draws: int, step: float) -> float:
    """√(E‖d‖² / E‖g‖²) of the gradient g of σ² L_QC and its error d, over ``draws`` batches."""
    error = size = 0.0
    for i in range(draws):
        *batch, v = draw(i)
        expected = gradient_of_qc(model, batch, v, "antisymmetric")
        found = gradient_of_qc(model, batch, v, "antisymmetric", difference_step=step)
        error += float((found - expected).square().sum())
        size += float(expected.square().sum())
    return (error / size) ** 0.5


def window(
    model: ScoreModel, *batch: Tensor, estimator: str, b: int, every: int, squared: bool = False
) -> None:
    """``every`` steps that share one gradient of L_QC on ``b`` samples, as training makes them.

    The gradients of the last step are left on the model.
    """
    x_0, t, z, v = batch
    parameters = list(model.parameters())
    weights = torch.ones_like(t)
    if squared:
        t, weights = importance_times(t, model.sde.epsilon, ORDER)
    for step in range(every):
        model.zero_grad()
        loss = training_loss(model, x_0, t, z, None if step else v[None, :b], estimator)
        if loss.qc is not None:
            qc = (weights[:b] * loss.qc).mean()
            shared = torch.autograd.grad(qc, parameters, retain_graph=True, materialize_grads=True)
        (weights * loss.dsm).mean().backward()
        torch._foreach_add_([p.grad for p in parameters], shared, alpha=WEIGHT)


def gradient_of_qc(
    model: ScoreModel,
    batch: tuple,
    v: Tensor,
    estimator: str,
    squared: bool = False,
    difference_step: float | None = None,
) -> Tensor:
    """The parameter gradient of the mean of σ² L_QC over a batch, one long vector."""
    model.zero_grad()
    x_0, t, z = batch
    weights = torch.ones_like(t)
    if squared:
        t, weights = importance_times(t, model.sde.epsilon, ORDER)
    loss = training_loss(model, x_0, t, z, v[None], estimator, difference_step)
    (weights * loss.qc).mean().backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )


def total_variance(
    model: ScoreModel, draw: Callable, estimator: str, draws: int, squared: bool = False
) -> float:
    """Σ_p Var(g_p) over ``draws`` independent batches, by a running sum in float64."""
    total = squares = None
    for step in range(draws):
        *batch, v = draw(step)
        g = gradient_of_qc(model, batch, v, estimator, squared).double()
        total = g if total is None else total + g
        squares = g.square() if squares is None else squares + g.square()
    return float(((squares - total.square() / draws) / (draws - 1)).sum())


def median_times(
    steps: dict[str, Callable], model: ScoreModel, draw: Callable, repetitions: int
) -> dict[str, float]:
    """Median CPU time of each of ``steps``, taken in turn so that drift falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        batch = draw(repetition)
        for name, step in steps.items():
            model.zero_grad()
            start = time.process_time()
            step(model, *batch)
            if repetition:  # the first round warms up
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory() -> float:
    """The largest memory that this process has held so far, in MiB."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def added_memory(name: str) -> float:
    """MiB that two steps called ``name`` add to what loading the data and the model took."""
    torch.set_num_threads(1)
    model, _, draw = untrained()
    batch, before = draw(0), peak_memory()
    for _ in range(2):
        model.zero_grad()
        STEPS[name](model, *batch)
    return peak_memory() - before


def untrained() -> tuple[ScoreModel, Splits, Callable]:
    """U on digits as it starts, the digits, and batches (x_0, t, z, v) to measure it with.

    ``draw(i, part, parts)`` is the batch number i, its t confined to one of ``parts`` equal parts.
    """
    data = digits(Digits(source="digits"))
    images = data.train.images
    model = build(images.shape[1:], MODEL, seed=0)
    order = BatchOrder(len(images), B, 1)

    def draw(step: int, part: int = 0, parts: int = 1) -> tuple[Tensor, ...]:
        x_0, t, z = draw_batch(images, data.levels, order(step + 1), TRAINING, model, 1, step)
        return x_0, (part + t) / parts, z, rademacher(x_0.shape, generator(1, "probes", step))

    return model, data, draw


STEPS = {
    "u": our_step,
    "published": published_step,
    "trace": partial(our_step, estimator="trace", b=B),
    "antisymmetric": partial(our_step, estimator="antisymmetric", b=B),
    "finite_differences": partial(our_step, estimator="antisymmetric", b=B, difference_step=STEP),
}


def settings(ratio: float) -> dict[str, tuple[int, int]]:
    """Names and (b, m) of what is timed besides whole batches in every step.

    Parts of the batch in every step, the whole batch in every second, fourth, … step, and for each
    b the largest m with m B / b ≤ ``ratio``.
    """
    parts = [B >> k for k in range(4)]
    pairs = [(b, 1) for b in parts[1:]]
    pairs += [(B, 1 << k) for k in range(1, 8) if 1 << k <= ratio]
    pairs += [(b, int(ratio * b / B)) for b in parts if ratio * b >= B]
    return {f"b = {b}, m = {m}": (b, m) for b, m in pairs if (b, m) != (B, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="training steps of U")
    parser.add_argument("--repetitions", type=int, default=5, help="timed steps of each kind")
    parser.add_argument("--draws", type=int, default=60, help="batches for the variance")
    parser.add_argument("--levels", type=int, default=0, help="parts of the range of t")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = dict(zip(STEPS, pool.map(added_memory, STEPS, chunksize=1), strict=True))
    model, data, draw = untrained()
    train(model, data.train.images, data.levels, TRAINING, None, 0, arguments.steps)

    variance = {e: total_variance(model, draw, e, arguments.draws) for e in ESTIMATORS}
    ratio = variance["trace"] / variance["antisymmetric"]
    cheaper = settings(ratio)
    windows = {
        name: partial(window, estimator="antisymmetric", b=b, every=m)
        for name, (b, m) in cheaper.items()
    }
    squared = total_variance(model, draw, "antisymmetric", arguments.draws, squared=True)
    m = int(variance["trace"] / squared)
    name = f"importance sampling of t, m = {m}"
    cheaper[name] = (B, m)
    windows[name] = partial(window, estimator="antisymmetric", b=B, every=m, squared=True)
    seconds = median_times(STEPS | windows, model, draw, arguments.repetitions)
    seconds |= {name: seconds[name] / m for name, (_, m) in cheaper.items()}
    # As variances of one independent gradient per step, whatever the window.
    variances = {"published": variance["trace"], **variance}
    variances |= {n: variance["antisymmetric"] * m * B / b for n, (b, m) in cheaper.items()}
    variances[name] = squared * m

    print(f"{'step':>24} {'ms':>7} {'x U':>6} {'MiB':>6} {'variance':>9} {'variance x time':>16}")
    for name, value in seconds.items():
        v = variances.get(name)
        products = "" if v is None else f"{v:9.3g} {v * value:16.3g}"
        held = f"{memory[name]:6.0f}" if name in memory else " " * 6
        print(f"{name:>24} {1e3 * value:7.1f} {value / seconds['u']:6.2f} {held} {products}")
    for part in range(arguments.levels):
        at_level = partial(draw, part=part, parts=arguments.levels)
        for e in ESTIMATORS:
            v = total_variance(model, at_level, e, arguments.draws)
            low, high = part / arguments.levels, (part + 1) / arguments.levels
            print(f"t in [{low:.2f}, {high:.2f}] {e:>14}: {v:9.3g} {v * seconds[e]:16.3g}")

    errors = {step: finite_difference_error(model, draw, 5, step) for step in (STEP, *OTHER_STEPS)}
    for step, error in sorted(errors.items()):
        print(f"finite differences over {step:g} σ: relative error of the gradient {error:.2%}")

    equal = min((n for n in variances if variances[n] <= variance["trace"]), key=seconds.get)
    result = {f"{name}_s": seconds[name] for name in STEPS} | {
        "memory_mib": memory,
        "finite_differences_memory": memory["finite_differences"],
        "finite_differences_relative_error": errors[STEP],
        "variance_ratio": ratio,
        "variance_ratio_importance_times": variance["trace"] / squared,
        "equal_variance": equal,
        "equal_variance_s": seconds[equal],
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
