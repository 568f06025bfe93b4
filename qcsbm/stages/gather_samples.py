"""Put the shards of a model's samples together, one at a time."""

import argparse

import numpy as np

from qcsbm.data.splits import describe
from qcsbm.quality.metrics import METRICS
from qcsbm.report.intervals import standard_error
from qcsbm.runtime import shards
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import atomic
from qcsbm.runtime.provenance import gathered, read_record
from qcsbm.schema.specifications import SampleSpec
from qcsbm.stages.arguments import add_data, add_output, add_record, add_shards, add_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, SampleSpec)
    add_data(parser)
    add_shards(parser)
    add_output(parser, "--out", "samples to write, uint8 .npy")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    n = arguments.spec.protocol.samples
    records = [read_record(path) for path in arguments.records]
    with (
        gathered(arguments.record, "gather_samples", records, [arguments.out]) as record,
        atomic(arguments.out) as temporary,
    ):
        images = np.lib.format.open_memmap(
            temporary, "w+", np.uint8, (n, *describe(arguments.data).shape)
        )
        counts, start = [], 0
        for part, evaluations in shards.read(arguments.shards, ["images", "nfe"]):
            part = part[: n - start]
            images[start : start + len(part)] = part
            counts.append(evaluations[: len(part)])
            start += len(part)
        images.flush()
        if start != n:
            raise BadInput(f"{arguments.out}: found {start} samples in all shards, expected {n}")
        nfe = np.concatenate(counts)
        record.metric("nfe", nfe.mean(), standard_error(nfe), n, METRICS["nfe"].unit)
