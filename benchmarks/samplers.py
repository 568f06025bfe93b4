r"""How far samplers are from the flow that they discretise, by the network calls that they take.

    python benchmarks/samplers.py [--samples 512] [--sets 5] [--steps 1200]

Two scores. "mixture" is exact: that of Gaussians of standard deviation 0.05 around the digits that
others are trained on, in 64 dimensions, so that moments and weights are known. "u" is a U-NCSN++
trained on digits, 1 200 steps on batches of 32. All samplers see the same noise.

"calls" are evaluations of the score per sample, and "ratio" is that to the ODE sampler with the
tolerances of ``config/standard.yaml``. "apart" is the root mean square, over samples and pixels, of
the distance to the sample that the exact flow (the ODE sampler at rtol 1e-5) makes of the same
noise; samplers with noise of their own go elsewhere. "fd" is the Fréchet distance extrapolated to
infinitely many samples, of pixels to the known moments or of classifier features to the training
images, with its standard error. "excess" is what it has, without extrapolation, over the exact
flow's, with the standard error over sets. Of the mixture, "spread" is the mean squared distance
from the nearest digit over what it ought to be, and "weights" is χ² of the frequencies of the ten
classes, with 9 degrees of freedom.

The last line is a JSON object.
"""

import argparse
import json
import platform
from collections.abc import Callable
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from qcsbm.data.digits import digits
from qcsbm.data.quantisation import quantise, to_unit
from qcsbm.data.splits import Splits
from qcsbm.motivation.toy import Mixture
from qcsbm.quality.classification import train_classifier
from qcsbm.quality.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    frechet_estimate,
)
from qcsbm.runtime.seeding import generator
from qcsbm.schema import sde
from qcsbm.schema.networks import NCSNpp
from qcsbm.schema.samplers import ODE, PC, Heun, Langevin, Sampler
from qcsbm.schema.sources import Digits
from qcsbm.schema.specifications import Model
from qcsbm.schema.training import Training
from qcsbm.score.models import ScoreModel, build
from qcsbm.score.sde import VE
from qcsbm.training.loop import train

SDE = VE(sigma_min=0.01, sigma_max=5.0)
MODEL = Model(
    parameterisation="score",
    residual=False,
    network=NCSNpp(
        type="ncsnpp", nf=16, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[4], dropout=0.0
    ),
    sde=sde.VE(type="ve", sigma_min=SDE.sigma_min, sigma_max=SDE.sigma_max),
)
TRAINING = Training(batch_size=32, lr=1e-3, warmup=100, ema=0.99, dequantise=True)
EXACT, USUAL = "ode 1e-5", "ode 1e-4"
SPREAD = 0.05


def samplers(batch: int) -> dict[str, Sampler]:
    """The exact flow first; with a tolerance of 1e-6 U's takes 1 900 calls."""
    langevin = dict(noise_levels=20, steps_per_level=5, step_size=0.3)
    return {
        EXACT: ODE(type="ode", rtol=1e-5, atol=1e-6, batch_size=batch),
        USUAL: ODE(type="ode", rtol=1e-4, atol=1e-5, batch_size=batch),
        "ode 1e-3": ODE(type="ode", rtol=1e-3, atol=1e-4, batch_size=batch),
        **{
            f"heun {steps}": Heun(type="heun", steps=steps, batch_size=batch)
            for steps in (9, 18, 36)
        },
        "pc 50": PC(type="pc", steps=50, snr=0.16, batch_size=batch),
        "langevin 20 × 5": Langevin(type="langevin", **langevin, batch_size=batch),
    }


def mixture(centres: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact score of Gaussians around ``centres`` (N, 64), at images (B, 1, 8, 8)."""
    density = Mixture(centres, SPREAD**2)

    def score(x: Tensor, t: Tensor) -> Tensor:
        return density.score(x.flatten(1), SDE.sigma(t)).view(x.shape)

    return score


def trained(data: Splits, steps: int) -> ScoreModel:
    """U with its averaged weights."""
    model = build((1, 8, 8), MODEL, seed=0)
    state = train(model, data.train.images, data.levels, TRAINING, None, 0, steps)
    model.load_state_dict(state.model | state.ema)
    return model.eval()


def of_mixture(centres: Tensor, labels: np.ndarray) -> tuple[Callable, FeatureStatistics, Callable]:
    """Features of samples, what their statistics ought to be, and further measures."""
    # What denoising leaves of the variance.
    variance = SPREAD**4 / (SPREAD**2 + SDE.sigma_min**2)
    pixels = centres.double().numpy()
    covariance = np.cov(pixels.T, bias=True) + variance * np.eye(pixels.shape[1])
    shares = np.bincount(labels) / len(labels)

    def further(x: np.ndarray) -> dict[str, float]:
        distance, nearest = torch.cdist(torch.from_numpy(x), centres).min(1)
        counts = np.bincount(labels[nearest], minlength=len(shares))
        expected = len(x) * shares
        return {
            "spread": float(distance.square().mean()) / (pixels.shape[1] * variance),
            "weights": float(((counts - expected) ** 2 / expected).sum()),
        }

    return lambda x: x, FeatureStatistics(pixels.mean(0), covariance), further


def measure(
    score: Callable[[Tensor, Tensor], Tensor],
    features: Callable[[np.ndarray], np.ndarray],
    reference: FeatureStatistics,
    further: Callable[[np.ndarray], dict[str, float]],
    n: int,
    sets: int,
) -> dict[str, dict[str, float]]:
    """The measures of each sampler over ``sets`` of ``n`` samples."""
    samples, calls, distances = {}, {}, {}
    for name, settings in samplers(n).items():
        module = import_module(f"qcsbm.sampling.{settings.type}")
        drawn = [
            module.sample(score, SDE, (n, 1, 8, 8), generator(0, "sample", i), settings)
            for i in range(sets)
        ]
        samples[name] = [s.x.flatten(1).numpy() for s in drawn]
        calls[name] = float(np.mean([s.network_calls for s in drawn]))
        distances[name] = np.array(
            [frechet_distance(feature_statistics(features(x)), reference) for x in samples[name]]
        )
    found = {}
    for name in samples:
        together = np.concatenate(samples[name])
        estimate = frechet_estimate(features(together), reference)
        apart = np.subtract(samples[name], samples[EXACT])
        excess = distances[name] - distances[EXACT]
        found[name] = {
            "calls": calls[name],
            "ratio": calls[name] / calls[USUAL],
            "apart": float(np.sqrt(np.square(apart).mean())),
            "fd": estimate.infinity,
            "fd_stderr": estimate.infinity_stderr,
            "excess": float(excess.mean()),
            "excess_stderr": float(excess.std(ddof=1) / np.sqrt(sets)),
            **further(together),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=512, help="samples of a set, one batch")
    parser.add_argument("--sets", type=int, default=5, help="sets of samples, for errors")
    parser.add_argument("--steps", type=int, default=1200, help="training steps of U")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    data = digits(Digits(source="digits"))
    images, labels = data.train.images, data.train.labels
    centres = to_unit(torch.from_numpy(images), data.levels).flatten(1)
    classifier = train_classifier(images, labels, data.levels, epochs=30)

    @torch.no_grad()
    def classified(k: Tensor) -> np.ndarray:
        return classifier(to_unit(k, data.levels).view(-1, 1, 8, 8))[0].numpy()

    def quantised(x: np.ndarray) -> Tensor:
        return quantise(torch.from_numpy(x), data.levels, TRAINING.dequantise)

    problems = {
        "mixture": (mixture(centres), *of_mixture(centres, labels)),
        "u": (
            trained(data, arguments.steps),
            lambda x: classified(quantised(x)),
            feature_statistics(classified(torch.from_numpy(images))),
            lambda x: {},
        ),
    }
    result = {}
    for problem, facts in problems.items():
        result[problem] = measure(*facts, arguments.samples, arguments.sets)
        print(f"{problem:>16} {'calls':>7} {'ratio':>6} {'apart':>8} {'fd':>15} {'excess':>15}")
        for name, values in result[problem].items():
            columns = [
                f"{name:>16} {values['calls']:7.1f} {values['ratio']:6.2f} {values['apart']:8.4f}",
                *(
                    f"{values[what]:7.3f} ± {values[f'{what}_stderr']:.3f}"
                    for what in ("fd", "excess")
                ),
                *(f"{what} {values[what]:.3f}" for what in ("spread", "weights") if what in values),
            ]
            print(*columns)
    machine = platform.processor() or platform.machine()
    print(json.dumps(result | {"torch": torch.__version__, "machine": machine}))


if __name__ == "__main__":
    main()
