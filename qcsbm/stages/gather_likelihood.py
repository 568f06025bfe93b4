"""Average the negative log-likelihoods of all shards."""

import argparse

from qcsbm.quality.metrics import METRICS
from qcsbm.report.intervals import standard_error
from qcsbm.runtime import shards
from qcsbm.runtime.npy import write_array
from qcsbm.runtime.provenance import gathered, read_record
from qcsbm.schema.specifications import LikelihoodSpec
from qcsbm.stages.arguments import add_output, add_record, add_shards, add_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, LikelihoodSpec)
    add_shards(parser)
    add_output(parser, "--out", "bits/dim of each image to write, .npy")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    bits, nfe = shards.join(arguments.shards, ["bits", "nfe"])
    n = len(bits)
    records = [read_record(path) for path in arguments.records]
    with gathered(arguments.record, "gather_likelihood", records, [arguments.out]) as record:
        for name, values in (("nll", bits), ("nll_nfe", nfe)):
            record.metric(name, values.mean(), standard_error(values), n, METRICS[name].unit)
        write_array(arguments.out, bits)
