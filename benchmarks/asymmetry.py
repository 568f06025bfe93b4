r"""CPU time to a relative standard error of 5 % of Asym and NAsym, by estimator.

    python benchmarks/asymmetry.py [--steps 800] [--images 256] [--levels 10]

A U-NCSN++ is trained on digits. Every estimator measures the mean over noise levels on the same
noisy test images; level by level they take turns. With the variance of a value per image, over
images and probes together, and its CPU time c, n images take n c and leave the standard error
sd / √n, so that 5 % of a mean M take

.. math:: c \, Var / (0.05 \, M)^2.

"published" is `one_probe_asymmetry`, K = 1, 2 are `estimate_asymmetry`, "exact" has the variance of
the data alone. "differences" are those of the stage with ``derivatives: finite_differences`` and
its own step. In the first column of times every image is seen at all L levels, as in the stage
``asymmetry``. In the second n_l images are drawn for each level alone, as many as make the error
the smallest: n_l ∝ sd_l at equal costs, which takes c (Σ_l sd_l / L)² / (0.05 M)², c per level.

M is the mean of the exact values, times are CPU times of one thread. Of several steps of the
differences, the last table has the largest bias of any level, against second derivatives along the
same probes. The last line is a JSON object.

References:
    On the Two Different Aspects of the Representative Method (Neyman, 1934), for n_l
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from qcsbm.conservativeness.asymmetry import (
    estimate_asymmetry,
    exact_asymmetry,
    one_probe_asymmetry,
)
from qcsbm.data.digits import digits
from qcsbm.data.quantisation import dequantise
from qcsbm.runtime.seeding import generator
from qcsbm.schema.base import default_step
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
BATCH = 64
ERROR = 0.05
PUBLISHED = "published"
AUTOGRAD = ("K = 1", "K = 2")
DIFFERENCES = ("K = 1, differences", "K = 2, differences")
STEP = default_step({"derivatives": "finite_differences"})
STEPS = (1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2)


def noisy(model: ScoreModel, x_0: Tensor, level: int, levels: int) -> tuple[Tensor, Tensor]:
    """The images at a noise level, and its time; (n, ...) and (n,)."""
    z = torch.randn(x_0.shape, generator=generator(0, "perturb", level))
    t = torch.full((len(x_0),), level / levels)
    mean, sigma = model.sde.marginal_prob(x_0, t)
    return mean + bcast(sigma, x_0) * z, t


def differences(
    model: ScoreModel, x: Tensor, t: Tensor, probes: int, draws: torch.Generator, step: float
) -> tuple[Tensor, Tensor]:
    """As in the stage: over ``step`` times the noise of the one level that ``t`` is of."""
    return estimate_asymmetry(model, x, t, probes, draws, step * float(model.sde.std(t[:1])))


def values(
    estimators: dict[str, Callable], model: ScoreModel, x_0: Tensor, levels: int
) -> dict[str, tuple[Tensor, float]]:
    """Asym and NAsym (2, levels, n) of the images at every level, and CPU seconds per value."""
    rows: dict[str, list[Tensor]] = {name: [] for name in estimators}
    seconds = dict.fromkeys(estimators, 0.0)
    for level in range(levels):
        x_t, t = noisy(model, x_0, level, levels)
        for name, measure in estimators.items():
            start = time.process_time()
            parts = zip(x_t.split(BATCH), t.split(BATCH), strict=True)
            rows[name].append(torch.cat([torch.stack(measure(model, x, t)) for x, t in parts], 1))
            seconds[name] += time.process_time() - start
    n = levels * len(x_0)
    return {name: (torch.stack(of, 1).double(), seconds[name] / n) for name, of in rows.items()}


def largest_bias(model: ScoreModel, x_0: Tensor, levels: int, step: float) -> tuple[float, float]:
    """Of Asym and NAsym over all images: the largest of any level, relative to their means."""
    biases = []
    for level in range(levels):
        point = noisy(model, x_0, level, levels)
        draws = [generator(0, "bias", level) for _ in range(2)]
        exact = torch.stack(estimate_asymmetry(model, *point, 4, draws[0])).mean(1)
        found = torch.stack(differences(model, *point, 4, draws[1], step)).mean(1)
        biases.append((found / exact - 1).abs())
    asym, nasym = torch.stack(biases).amax(0).tolist()
    return asym, nasym


def times_to_error(v: Tensor, mean: float, cost: float) -> tuple[float, float]:
    """Seconds until the standard error is 5 % of ``mean``, for values (levels, n) of one quantity.

    ``cost`` is in seconds per value; the two times are those of the module's docstring.
    """
    levels = len(v)
    together = levels * v.mean(0).var()
    shared_out = v.std(1).mean().square()
    scale = cost / (ERROR * mean) ** 2
    return float(scale * together), float(scale * shared_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="training steps of U")
    parser.add_argument("--images", type=int, default=256, help="test images")
    parser.add_argument("--levels", type=int, default=10, help="noise levels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    data = digits(Digits(source="digits"))
    images = data.train.images
    model = build(images.shape[1:], MODEL, seed=0)
    train(model, images, data.levels, TRAINING, None, 0, arguments.steps)
    model.eval().requires_grad_(False)
    k = torch.from_numpy(data.test.images[: arguments.images])
    x_0 = dequantise(k, data.levels, generator(0, "dequantise"))

    estimators: dict[str, Callable] = {
        "exact": exact_asymmetry,
        PUBLISHED: partial(one_probe_asymmetry, generator=generator(0, "probes")),
    }
    for k, *names in zip((1, 2), AUTOGRAD, DIFFERENCES, strict=True):
        draws = [generator(0, "probes", k) for _ in range(2)]
        estimators[names[0]] = partial(estimate_asymmetry, probes=k, generator=draws[0])
        estimators[names[1]] = partial(differences, probes=k, draws=draws[1], step=STEP)
    measured = values(estimators, model, x_0, arguments.levels)
    result = {"images": len(x_0), "torch": torch.__version__, "machine": platform.machine()}
    for i, quantity in enumerate(("asym", "nasym")):
        mean = float(measured["exact"][0][i].mean())
        times = {n: times_to_error(v[i], mean, cost) for n, (v, cost) in measured.items()}
        print(f"{quantity:>18} {'ms':>6} {'mean':>9} {'all levels, s':>14} {'shared out, s':>14}")
        for name, (v, cost) in measured.items():
            together, shared_out = times[name]
            print(
                f"{name:>18} {1e3 * cost:6.2f} {float(v[i].mean()):9.3g}"
                f" {together:14.2f} {shared_out:14.2f}"
            )
        result[f"{quantity}_published_s"] = times[PUBLISHED][0]
        for word, names in {"ours": AUTOGRAD, "differences": DIFFERENCES}.items():
            result[f"{quantity}_{word}_s"] = min(times[name][0] for name in names)
            result[f"{quantity}_{word}_shared_out_s"] = min(times[name][1] for name in names)
    print(f"{'difference_step':>18} {'asym':>8} {'nasym':>8}")
    part = x_0[:BATCH]
    for step in STEPS:
        asym, nasym = largest_bias(model, part, arguments.levels, step)
        print(f"{step:>18} {asym:8.2%} {nasym:8.2%}")
        if step == STEP:
            result |= {"asym_differences_bias": asym, "nasym_differences_bias": nasym}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
