"""Measure a model's negative log-likelihood on one shard of the test split, in bits/dim."""

import argparse

import numpy as np
import torch
from tqdm import tqdm

from qcsbm.data.quantisation import dequantise
from qcsbm.data.splits import describe, first_test_images
from qcsbm.runtime.device import claim_device
from qcsbm.runtime.npy import write_arrays
from qcsbm.runtime.provenance import recorded
from qcsbm.runtime.seeding import generator
from qcsbm.runtime.shards import share
from qcsbm.sampling.likelihood import nll_bits_per_dim
from qcsbm.schema.specifications import LikelihoodSpec
from qcsbm.stages.arguments import add_measurement
from qcsbm.stages.measured import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_measurement(parser, LikelihoodSpec, "bits/dim and evaluations of each image")


def run(arguments: argparse.Namespace) -> None:
    spec: LikelihoodSpec = arguments.spec
    protocol = spec.protocol
    size = protocol.batch_size
    data = describe(arguments.data)
    images = first_test_images(arguments.data, protocol.samples, "likelihood")
    batches = share(arguments.shard, -(-len(images) // size))
    model, inputs, code = load(arguments, protocol.weights, data.shape, claim_device())
    model.compute_in(protocol.precision)
    inputs = [*inputs, arguments.data / "test.npy"]
    with recorded(arguments.record, "likelihood", spec, inputs) as record:
        record.computed_by(code)
        bits, nfe = [np.empty(0)], [np.empty(0, np.int64)]
        for batch in tqdm(batches, mininterval=5.0):
            k = torch.from_numpy(images[batch * size : (batch + 1) * size].copy())
            x = dequantise(k, data.levels, generator(spec.seed, "dequantise", batch))
            batch_bits, batch_nfe = nll_bits_per_dim(
                model,
                model.sde,
                x.to(claim_device()),
                data.levels,
                generator(spec.seed, "divergence", batch),
                protocol.divergence,
                rtol=protocol.rtol,
                atol=protocol.atol,
            )
            bits.append(batch_bits.cpu().double().numpy())
            nfe.append(batch_nfe.cpu().numpy())
        record.cost["evaluations"] = int(np.concatenate(nfe).sum())
        write_arrays(arguments.out, bits=np.concatenate(bits), nfe=np.concatenate(nfe))
