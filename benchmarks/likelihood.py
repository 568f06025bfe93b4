r"""Time of the log-likelihood of a batch of images, against the published function.

    python benchmarks/likelihood.py [--steps 400] [--repetitions 3] [--batch 64]

A U-NCSN++ is trained on digits, so that the flow is that of a model. Both functions see the same
weights, images, probes and tolerances. "published" restates score_sde's ``get_likelihood_fn``
(https://github.com/yang-song/score_sde_pytorch): SciPy's RK45 with one step size for the whole
batch, in NumPy, and for each evaluation one pass for the drift and another one, forward and
backward, for the divergence. The second batch has a black image more, whose flow is stiff.

"evaluations" is the mean over the images of the first batch; "change" is what the black image adds
to it. The last line is a JSON object; times are medians, in seconds of CPU.
"""

import argparse
import json
import platform
import statistics
import time
from functools import partial

import numpy as np
import scipy
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from qcsbm.conservativeness.products import rademacher
from qcsbm.data.digits import digits
from qcsbm.data.quantisation import dequantise
from qcsbm.runtime.seeding import generator
from qcsbm.sampling.likelihood import LogDensity, log_likelihood
from qcsbm.schema.networks import NCSNpp
from qcsbm.schema.sde import VE
from qcsbm.schema.sources import Digits
from qcsbm.schema.specifications import Model
from qcsbm.schema.training import Training
from qcsbm.score.models import ScoreModel, build
from qcsbm.score.sde import bcast
from qcsbm.training.loop import train

MODEL = Model(
    parameterisation="score",
    residual=False,
    network=NCSNpp(
        type="ncsnpp", nf=16, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[4], dropout=0.0
    ),
    sde=VE(type="ve", sigma_min=0.01, sigma_max=5.0),
)
TRAINING = Training(batch_size=64, lr=1e-3, warmup=100, ema=0.99, dequantise=True)
TOLERANCE = dict(rtol=1e-3, atol=1e-5)


def published(
    model: ScoreModel, x: Tensor, *, probes_generator: torch.Generator, rtol: float, atol: float
) -> LogDensity:
    """`log_likelihood` by the published algorithm, with the same probes."""
    b, v = len(x), rademacher(x.shape, probes_generator)

    def drift(x_t: Tensor, t: Tensor) -> Tensor:
        return -0.5 * bcast(model.sde.diffusion(t), x_t) ** 2 * model(x_t, t)

    def flow(t: float, y: np.ndarray) -> np.ndarray:
        x_t = torch.from_numpy(y[:-b]).to(x).view(x.shape)
        at = x.new_full((b,), t)
        with torch.no_grad():
            velocity = drift(x_t, at)
        x_t.requires_grad_()
        (jt_v,) = torch.autograd.grad((drift(x_t, at) * v).sum(), x_t)
        divergence = (jt_v * v).flatten(1).sum(1)
        return np.concatenate([velocity.flatten().numpy(), divergence.numpy()])

    start = np.concatenate([x.flatten().numpy(), np.zeros(b)])
    end = solve_ivp(flow, (model.sde.epsilon, 1), start, "RK45", rtol=rtol, atol=atol)
    x_1, change = torch.from_numpy(end.y[:-b, -1]).view(x.shape), torch.from_numpy(end.y[-b:, -1])
    return LogDensity(model.sde.prior_log_prob(x_1) + change, torch.full((b,), end.nfev))


def ours(
    model: ScoreModel, x: Tensor, *, probes_generator: torch.Generator, rtol: float, atol: float
) -> LogDensity:
    return log_likelihood(model, model.sde, x, probes_generator, rtol=rtol, atol=atol)


def measure(functions: dict, repetitions: int) -> tuple[dict[str, float], dict[str, LogDensity]]:
    """Median CPU times of ``functions``, called in turn with the same probes, and their results."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    results = {}
    for _ in range(repetitions):
        for name, function in functions.items():
            start = time.process_time()
            results[name] = function(probes_generator=generator(0, "probes"))
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps of U")
    parser.add_argument("--repetitions", type=int, default=3, help="timed calls of each function")
    parser.add_argument("--batch", type=int, default=64, help="images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    data = digits(Digits(source="digits"))
    model = build(data.train.images.shape[1:], MODEL, seed=0)
    train(model, data.train.images, data.levels, TRAINING, None, 0, arguments.steps)
    model.eval()
    k = torch.as_tensor(data.test.images[: arguments.batch])
    images = dequantise(k, data.levels, generator(0, "dequantise"))
    b = len(images)

    result, evaluations = {}, {}
    print(f"{'batch':>12} {'':>10} {'s':>8} {'evaluations':>12} {'change':>8}")
    for batch, x in {
        "images": images,
        "with_stiff": torch.cat([images, torch.zeros_like(images[:1])]),
    }.items():
        functions = {f.__name__: partial(f, model, x, **TOLERANCE) for f in (published, ours)}
        seconds, likelihoods = measure(functions, arguments.repetitions)
        for name, likelihood in likelihoods.items():
            nfe = likelihood.nfe[:b].double().mean().item()
            change = nfe - evaluations.setdefault(name, nfe)
            print(f"{batch:>12} {name:>10} {seconds[name]:8.2f} {nfe:12.1f} {change:8.1f}")
            result[f"{name}_{batch}_s"] = seconds[name]
            result[f"{name}_{batch}_evaluations"] = nfe
        difference = likelihoods["ours"].log_prob[:b] - likelihoods["published"].log_prob[:b]
        result[f"{batch}_ratio"] = seconds["published"] / seconds["ours"]
        result[f"{batch}_mean_nll_difference"] = -difference.mean().item()
        print(
            f"{batch:>12} ratio {result[f'{batch}_ratio']:.2f}, NLL differs by "
            f"{result[f'{batch}_mean_nll_difference']:.3g} nats on average, "
            f"{difference.abs().max():.3g} at most"
        )
    versions = {"torch": torch.__version__, "scipy": scipy.__version__}
    print(json.dumps(result | versions | {"machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
