"""Generate images with a trained model, one protocol batch after the other.

Batch b of seed k draws from its own stream, the same for every method: rows of samples of two
methods come from the same noise. The last batch is drawn whole and cut, since the corrector's
step depends on the batch.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from qcsbm.checkpoint import load_weights
from qcsbm.data.quantisation import quantise
from qcsbm.data.splits import describe
from qcsbm.files import atomic
from qcsbm.models import build
from qcsbm.provenance import device, recorded
from qcsbm.sampling import ode_sample, pc_sample
from qcsbm.seeding import generator
from qcsbm.stages.arguments import add_checkpoint, add_data, add_record, add_spec

SAMPLERS = {"pc": pc_sample, "ode": ode_sample}
OPTIONS = {"pc": ("steps", "snr", "corrector_steps"), "ode": ("rtol", "atol")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    add_data(parser)
    add_checkpoint(parser)
    parser.add_argument("--out", type=Path, required=True, help="samples to write, uint8 .npy")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    spec, protocol = arguments.spec, arguments.spec["protocol"]
    data = describe(arguments.data)
    model = build(data.shape, **spec["model"]).to(device())
    load_weights(model, arguments.checkpoint, protocol["weights"], protocol["train_steps"])
    n, size, name = protocol["samples"], protocol["batch_size"], protocol["sampler"]
    options = {key: protocol[key] for key in OPTIONS[name]}

    images, nfe, calls = [], [], 0
    with recorded(arguments.record, "sample", spec, [arguments.checkpoint]) as record:
        for batch in tqdm(range(-(-n // size)), mininterval=5.0):
            draws = generator(spec["seed"], "sample", batch)
            shape = (size, *data.shape)
            samples = SAMPLERS[name](model, model.sde, shape, draws, **options, device=device())
            images.append(quantise(samples.x.cpu(), data.levels, protocol["dequantised"]).numpy())
            nfe.append(samples.nfe)
            calls += samples.network_calls
        record.metric("nfe", float(np.mean(nfe)), None, n, "evaluations")
        record.cost["network_calls"] = calls
        with atomic(arguments.out) as temporary:
            np.save(temporary, np.concatenate(images)[:n], allow_pickle=False)
