"""Average the negative log-likelihoods of all shards."""

import argparse
import math

import numpy as np

from qcsbm import shards
from qcsbm.files import atomic
from qcsbm.provenance import gathered, read_record
from qcsbm.stages.arguments import add_output, add_record, add_shards, add_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    add_shards(parser)
    add_output(parser, "--out", "bits/dim of each image to write, .npy")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    parts = zip(*shards.read(arguments.shards, ["bits", "nfe"]), strict=True)
    bits, nfe = map(np.concatenate, parts)
    n = len(bits)
    records = [read_record(path) for path in arguments.records]
    with gathered(arguments.record, "gather_likelihood", records, [arguments.out]) as record:
        record.metric("nll", bits.mean(), bits.std(ddof=1) / math.sqrt(n), n, "bits/dim")
        record.metric("nll_nfe", nfe.mean(), nfe.std(ddof=1) / math.sqrt(n), n, "evaluations")
        with atomic(arguments.out) as temporary:
            np.save(temporary, bits, allow_pickle=False)
