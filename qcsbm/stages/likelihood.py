"""Measure a model's negative log-likelihood on the test split, in bits/dim."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from qcsbm.checkpoint import load_weights
from qcsbm.data.quantisation import dequantise
from qcsbm.data.splits import describe, open_images
from qcsbm.files import atomic
from qcsbm.likelihood import nll_bits_per_dim
from qcsbm.models import build
from qcsbm.provenance import device, recorded
from qcsbm.seeding import generator
from qcsbm.stages.arguments import add_checkpoint, add_data, add_record, add_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    add_data(parser)
    add_checkpoint(parser)
    parser.add_argument("--out", type=Path, required=True, help="bits/dim of each image, .npy")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    spec, protocol = arguments.spec, arguments.spec["protocol"]
    data = describe(arguments.data)
    images = open_images(arguments.data / "test.npy")[: protocol["samples"]]
    model = build(data.shape, **spec["model"]).to(device())
    load_weights(model, arguments.checkpoint, protocol["weights"], protocol["train_steps"])

    inputs = [arguments.checkpoint, arguments.data / "test.npy"]
    with recorded(arguments.record, "likelihood", spec, inputs) as record:
        bits, nfe = [], []
        starts = range(0, len(images), protocol["batch_size"])
        for batch, start in enumerate(tqdm(starts, mininterval=5.0)):
            k = torch.from_numpy(images[start : start + protocol["batch_size"]].copy())
            x = dequantise(k, data.levels, generator(spec["seed"], "dequantise", batch))
            batch_bits, batch_nfe = nll_bits_per_dim(
                model,
                model.sde,
                x.to(device()),
                data.levels,
                generator(spec["seed"], "divergence", batch),
                protocol["divergence"],
                rtol=protocol["rtol"],
                atol=protocol["atol"],
            )
            bits.append(batch_bits.cpu().numpy())
            nfe.append(batch_nfe.cpu().numpy())
        bits, nfe = np.concatenate(bits).astype(np.float64), np.concatenate(nfe)
        n = len(bits)
        record.metric("nll", bits.mean(), bits.std(ddof=1) / math.sqrt(n), n, "bits/dim")
        record.metric("nll_nfe", nfe.mean(), nfe.std(ddof=1) / math.sqrt(n), n, "evaluations")
        record.cost["evaluations"] = int(nfe.sum())
        with atomic(arguments.out) as temporary:
            np.save(temporary, bits, allow_pickle=False)
