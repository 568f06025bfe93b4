"""Measure Asym and NAsym of a model on the test split, at one shard of the noise levels."""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from qcsbm.adapters.models import OutsideModel
from qcsbm.conservativeness.asymmetry import (
    Score,
    estimate_asymmetry,
    exact_asymmetry,
    one_probe_asymmetry,
)
from qcsbm.data.quantisation import dequantise, to_unit
from qcsbm.data.splits import describe, first_test_images
from qcsbm.runtime.device import claim_device
from qcsbm.runtime.npy import write_arrays
from qcsbm.runtime.provenance import recorded
from qcsbm.runtime.seeding import generator
from qcsbm.runtime.shards import share
from qcsbm.schema.specifications import AsymmetryProtocol, AsymmetrySpec
from qcsbm.score.models import ScoreModel
from qcsbm.score.sde import bcast
from qcsbm.stages.arguments import add_measurement
from qcsbm.stages.measured import load

Estimator = Callable[[Score, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_measurement(parser, AsymmetrySpec, "times, σ, and values of each image")


def run(arguments: argparse.Namespace) -> None:
    spec: AsymmetrySpec = arguments.spec
    protocol = spec.protocol
    data = describe(arguments.data)
    images = first_test_images(arguments.data, protocol.samples, "asymmetry")
    k = torch.from_numpy(images.copy())
    # The score is measured on the distribution that the model was trained on.
    draws = generator(spec.seed, "dequantise")
    x_0 = dequantise(k, data.levels, draws) if protocol.dequantised else to_unit(k, data.levels)
    model, inputs, code = load(arguments, protocol.weights, data.shape, claim_device())
    model.compute_in(protocol.precision)
    inputs = [*inputs, arguments.data / "test.npy"]
    levels = share(arguments.shard, protocol.noise_levels)
    with recorded(arguments.record, "asymmetry", spec, inputs) as record:
        record.computed_by(code)
        t_min = model.sde.t_min
        t = np.array([t_min + (1 - t_min) * level / protocol.noise_levels for level in levels])
        values = np.empty((len(levels), 2, len(x_0)))
        for row, level in enumerate(tqdm(levels, mininterval=5.0)):
            values[row] = _at_level(model, x_0, float(t[row]), protocol, spec.seed, level)
        sigma = model.sde.sigma(torch.from_numpy(t)).numpy()
        write_arrays(arguments.out, t=t, sigma=sigma, values=values)


def _at_level(
    model: ScoreModel | OutsideModel,
    x_0: torch.Tensor,
    t: float,
    protocol: AsymmetryProtocol,
    seed: int,
    level: int,
) -> np.ndarray:
    """Asym and NAsym of every image at time ``t``; (2, n), float64."""
    z = torch.randn(x_0.shape, generator=generator(seed, "perturb", level))
    probes = generator(seed, "asymmetry", level)
    std = float(model.sde.std(torch.tensor(t, dtype=torch.float64)))
    measure, place, results = _estimator(protocol, probes, std), claim_device(), []
    for x, noise in zip(x_0.split(protocol.batch_size), z.split(protocol.batch_size), strict=True):
        times = torch.full((len(x),), t)
        mean, sigma = model.sde.marginal_prob(x, times)
        x_t = mean + bcast(sigma, x) * noise
        results.append(torch.stack(measure(model, x_t.to(place), times.to(place))).cpu())
    return torch.cat(results, 1).double().numpy()


def _estimator(protocol: AsymmetryProtocol, probes: torch.Generator, std: float) -> Estimator:
    """What measures Asym and NAsym of a score at x (B, ...) and t (B,), with ``std`` of noise."""
    if protocol.estimator == "exact":
        return exact_asymmetry
    if protocol.estimator == "trace":
        return partial(one_probe_asymmetry, generator=probes)
    if protocol.probes is None:
        raise ValueError("asymmetry.probes: found none, expected a number of them")
    step = None if protocol.difference_step is None else protocol.difference_step * std
    return partial(estimate_asymmetry, probes=protocol.probes, generator=probes, step=step)
