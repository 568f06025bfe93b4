"""Train C, U or QC on points in the plane, and measure it against the exact score.

NLL and samples start from the noised data's own distribution at t = 1, so that they tell of the
score alone; the NLL is that of points with the smallest noise left in, and ``nll_excess`` is the
difference to the exact density's at the same points: an estimate of the divergence KL(exact ‖
model), up to the error of the ODE solver.
"""

import argparse
import math
from pathlib import Path

import torch

from qcsbm.motivation import toy
from qcsbm.quality.metrics import METRICS
from qcsbm.quality.prdc import prdc
from qcsbm.runtime.npy import write_arrays
from qcsbm.runtime.provenance import recorded
from qcsbm.runtime.seeding import generator
from qcsbm.schema.specifications import ToySpec
from qcsbm.stages.arguments import add_spec

# Points per noise level, for the NLL, and samples.
TEST = 1000
# Where the vector field is drawn; σ is 0.28 there.
FIELD_TIME = 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, ToySpec)
    parser.add_argument("--out", type=Path, required=True, help="field and samples to write, .npz")
    # Its tables and pictures have no place for a reason: here a divergence is the end of the job.
    parser.add_argument("--record", type=Path, required=True, help="JSON record to write")


def run(arguments: argparse.Namespace) -> None:
    spec: ToySpec = arguments.spec
    protocol, dataset, seed = spec.protocol, spec.dataset, spec.seed
    with recorded(arguments.record, "toy", spec, [], [arguments.out]) as record:
        record.protocol["test_points"] = TEST
        points = data(dataset, protocol.points, seed)
        model = toy.train(
            toy.METHODS[spec.method], points, protocol.steps, protocol.batch_size, seed
        )
        density = toy.oracle(dataset, points)
        levels = toy.evaluate(model, toy.noised_points(density, TEST, seed))
        for name in ("score_error", "asym", "nasym"):
            stderr = math.sqrt(levels[f"{name}_se"].pow(2).sum()) / len(levels)
            count = TEST * len(levels)
            record.metric(name, levels[name].mean(), stderr, count, METRICS[name].unit)

        sigma_min = torch.full((TEST,), toy.SDE.sigma_min, dtype=torch.float64)
        x = density.sample(sigma_min, generator(seed, "toy", "nll"))
        nll = toy.nll(model, density, x)
        excess = nll + density.log_prob(x, sigma_min)
        for name, values in (("nll_nats", nll), ("nll_excess", excess)):
            stderr = (values.std() / math.sqrt(TEST)).item()
            record.metric(name, values.mean().item(), stderr, TEST, METRICS[name].unit)

        samples = toy.sample(model, density, TEST, seed).numpy()
        real = toy.DATASETS[dataset](TEST, generator(seed, "toy", "reference")).numpy()
        shares = prdc(real, samples)
        for name, share in (("precision", shares.precision), ("recall", shares.recall)):
            record.metric(name, share.value, share.stderr, TEST, METRICS[name].unit)

        field = toy.vector_field(model, FIELD_TIME)
        write_arrays(
            arguments.out,
            x=field.x.numpy(),
            score=field.score.numpy(),
            curl=field.curl.numpy(),
            samples=samples,
        )


def data(dataset: str, n: int, seed: int) -> torch.Tensor:
    """The ``n`` points that all models of a seed are trained on; (n, 2), float64."""
    return toy.DATASETS[dataset](n, generator(seed, "toy", "points"))
