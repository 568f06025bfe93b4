"""Generate one shard of a model's samples, one protocol batch after the other.

The module of the package `qcsbm.sampling` that has the name of the sampler's type draws them. Batch
b of seed k draws from its own stream, the same for every method: rows of samples of two
methods come from the same noise. The last batch, too, is drawn whole, since the corrector's step
depends on the batch; it is cut when the shards are gathered.
"""

import argparse
import importlib

import numpy as np
from tqdm import tqdm

from qcsbm.data.quantisation import quantise
from qcsbm.data.splits import describe
from qcsbm.runtime.device import claim_device
from qcsbm.runtime.npy import write_arrays
from qcsbm.runtime.provenance import recorded
from qcsbm.runtime.seeding import generator
from qcsbm.runtime.shards import share
from qcsbm.schema.specifications import SampleSpec
from qcsbm.stages.arguments import add_measurement
from qcsbm.stages.measured import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_measurement(parser, SampleSpec, "images and evaluations of the shard")


def run(arguments: argparse.Namespace) -> None:
    spec: SampleSpec = arguments.spec
    protocol, settings = spec.protocol, spec.protocol.settings
    sampler = importlib.import_module(f"qcsbm.sampling.{settings.type}")
    batches = share(arguments.shard, -(-protocol.samples // settings.batch_size))
    data = describe(arguments.data)
    place = claim_device()
    model, inputs, code = load(arguments, protocol.weights, data.shape, place)
    model.compute_in(settings.precision)

    images, nfe, calls = [np.empty((0, *data.shape), np.uint8)], [np.empty(0)], 0
    with recorded(arguments.record, "sample", spec, inputs) as record:
        record.computed_by(code)
        for batch in tqdm(batches, mininterval=5.0):
            draws = generator(spec.seed, "sample", batch)
            shape = (settings.batch_size, *data.shape)
            samples = sampler.sample(model, model.sde, shape, draws, settings, place)
            images.append(quantise(samples.x.cpu(), data.levels, protocol.dequantised).numpy())
            nfe.append(samples.nfe.cpu().numpy())
            calls += samples.network_calls
        record.cost["network_calls"] = calls
        write_arrays(arguments.out, images=np.concatenate(images), nfe=np.concatenate(nfe))
