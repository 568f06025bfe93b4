"""Figure 3: samples of every method from the same noise, below real images."""

import argparse
from pathlib import Path

from qcsbm import failure
from qcsbm.data.splits import describe
from qcsbm.figures import runs, style
from qcsbm.provenance import read_record
from qcsbm.stages.arguments import add_data, add_spec, existing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    add_data(parser)
    parser.add_argument(
        "--records", type=existing, nargs="+", required=True, help="records of samples, of one seed"
    )
    parser.add_argument("--out", type=Path, required=True, help="picture to write, without suffix")


def run(arguments: argparse.Namespace) -> None:
    generated = {
        record["method"]: path.parent / "samples.npy"
        for path in arguments.records
        if failure.KEY not in (record := read_record(path))
    }
    picture = runs.samples(
        arguments.data / "test.npy",
        generated,
        dict(arguments.spec["methods"]),
        describe(arguments.data).levels,
    )
    style.save(picture, arguments.out)
