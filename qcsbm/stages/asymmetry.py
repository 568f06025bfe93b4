"""Measure Asym and NAsym of a model over noise levels, on the test split.

The same images are perturbed at every level, so the standard error of the mean over levels is that
of the images' means over levels.
"""

import argparse
import csv
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from qcsbm.checkpoint import load_weights
from qcsbm.conservativeness import estimate_asymmetry, exact_asymmetry, one_probe_asymmetry
from qcsbm.data.quantisation import dequantise, to_unit
from qcsbm.data.splits import describe, open_images
from qcsbm.files import atomic
from qcsbm.models import ScoreModel, build
from qcsbm.provenance import device, recorded
from qcsbm.sde import bcast
from qcsbm.seeding import generator
from qcsbm.stages.arguments import add_checkpoint, add_data, add_record, add_spec

COLUMNS = ("t", "sigma", "asym", "asym_stderr", "nasym", "nasym_stderr")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    add_data(parser)
    add_checkpoint(parser)
    parser.add_argument("--levels", type=Path, required=True, help="values per noise level, CSV")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    spec, protocol = arguments.spec, arguments.spec["protocol"]
    data = describe(arguments.data)
    k = torch.from_numpy(open_images(arguments.data / "test.npy")[: protocol["samples"]].copy())
    # The score is measured on the distribution that the model was trained on.
    draws = generator(spec["seed"], "dequantise")
    x_0 = dequantise(k, data.levels, draws) if protocol["dequantised"] else to_unit(k, data.levels)
    model = build(data.shape, **spec["model"]).to(device())
    load_weights(model, arguments.checkpoint, protocol["weights"], protocol["train_steps"])

    inputs = [arguments.checkpoint, arguments.data / "test.npy"]
    with recorded(arguments.record, "asymmetry", spec, inputs) as record:
        times = [level / protocol["levels"] for level in range(protocol["levels"])]
        values = np.stack(
            [
                _at_level(model, x_0, t, protocol, spec["seed"], level)
                for level, t in enumerate(tqdm(times, mininterval=5.0))
            ]
        )  # (levels, 2, n)
        n = values.shape[2]
        for name, per_image in zip(("asym", "nasym"), values.mean(0), strict=True):
            record.metric(name, per_image.mean(), per_image.std(ddof=1) / math.sqrt(n), n, "1")
        mean = values.mean(2)
        stderr = values.std(2, ddof=1) / math.sqrt(n)
        with atomic(arguments.levels) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for t, m, e in zip(times, mean.tolist(), stderr.tolist(), strict=True):
                sigma = float(model.sde.sigma(torch.tensor(t, dtype=torch.float64)))
                writer.writerow([t, sigma, m[0], e[0], m[1], e[1]])


def _at_level(
    model: ScoreModel, x_0: torch.Tensor, t: float, protocol: dict, seed: int, level: int
) -> np.ndarray:
    """Asym and NAsym of every image at time ``t``; (2, n), float64."""
    z = torch.randn(x_0.shape, generator=generator(seed, "perturb", level))
    probes = generator(seed, "asymmetry", level)
    measure = {
        "exact": exact_asymmetry,
        "probes": partial(estimate_asymmetry, probes=protocol["probes"], generator=probes),
        "paper": partial(one_probe_asymmetry, generator=probes),
    }[protocol["estimator"]]
    results = []
    for x, noise in zip(
        x_0.split(protocol["batch_size"]), z.split(protocol["batch_size"]), strict=True
    ):
        times = torch.full((len(x),), t)
        mean, sigma = model.sde.marginal_prob(x, times)
        x_t = mean + bcast(sigma, x) * noise
        results.append(torch.stack(measure(model, x_t.to(device()), times.to(device()))).cpu())
    return torch.cat(results, 1).double().numpy()
