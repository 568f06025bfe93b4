"""Measure the circulation of a model's score around triangles of noisy test images.

The corners of a triangle are three test images with noise of one level; no two triangles share an
image, and all levels have the same images. The circulation of a model, in nats, is its root mean
square over triangles and levels, with the error of the former. For a gradient it is 0.
"""

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from qcsbm.conservativeness import circulation as paths
from qcsbm.conservativeness.circulation import root_mean_square, triangles_of
from qcsbm.data.quantisation import dequantise, to_unit
from qcsbm.data.splits import describe, first_test_images
from qcsbm.quality.metrics import METRICS
from qcsbm.runtime.device import claim_device
from qcsbm.runtime.files import write_text
from qcsbm.runtime.provenance import recorded
from qcsbm.runtime.seeding import generator
from qcsbm.schema.specifications import CirculationSpec
from qcsbm.score.sde import bcast
from qcsbm.stages.arguments import add_checkpoint, add_data, add_output, add_record, add_spec
from qcsbm.stages.measured import load

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# As in an audit.
TOLERANCE, INTERVALS = 0.02, 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, CirculationSpec)
    add_data(parser)
    add_checkpoint(parser)
    add_output(parser, "--levels", "values per noise level to write, CSV")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    spec: CirculationSpec = arguments.spec
    protocol = spec.protocol
    data, place = describe(arguments.data), claim_device()
    images = first_test_images(arguments.data, 3 * protocol.triangles, "circulation")
    k = torch.from_numpy(images.copy())
    draws = generator(spec.seed, "dequantise")
    x_0 = dequantise(k, data.levels, draws) if protocol.dequantised else to_unit(k, data.levels)
    model, inputs, code = load(arguments, protocol.weights, data.shape, place)
    model.compute_in(protocol.precision)
    inputs = [*inputs, arguments.data / "test.npy"]
    with recorded(
        arguments.record, "circulation", spec, inputs, outputs=[arguments.levels]
    ) as record:
        record.computed_by(code)
        t_min, evaluations = model.sde.t_min, 0
        squares, rows = [], []
        for level in tqdm(range(protocol.noise_levels), mininterval=5.0):
            t = t_min + (1 - t_min) * level / protocol.noise_levels
            times = torch.full((len(x_0),), t)
            mean, std = model.sde.marginal_prob(x_0, times)
            z = torch.randn(x_0.shape, generator=generator(spec.seed, "perturb", level))
            found = paths.circulation(
                _at(model, t),
                triangles_of((mean + bcast(std, x_0) * z).to(place)),
                TOLERANCE,
                INTERVALS,
            )
            evaluations += found.evaluations
            squares.append(found.values.square())
            of_level = root_mean_square(found.values)
            error = float(found.error.square().mean().sqrt())
            rows.append((t, float(model.sde.sigma(times)[0]), *of_level[:2], error))
        whole = root_mean_square(torch.stack(squares).mean(0).sqrt())
        unit = METRICS["circulation"].unit
        record.metric("circulation", whole.value, whole.stderr, whole.n, unit)
        record.cost["evaluations"] = evaluations
        columns = ["t", "sigma", "circulation", "circulation_stderr", "error"]
        levels = pd.DataFrame(np.array(rows, dtype=float), columns=columns)
        write_text(arguments.levels, levels.to_csv(index=False))


def _at(score: Score, t: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The ``score`` at one time."""
    return lambda x: score(x, x.new_full((len(x),), t))
