"""Prepare a dataset: write both splits as uint8 arrays and describe them."""

import argparse
from pathlib import Path

from qcsbm.data import splits
from qcsbm.data.sources import SOURCES
from qcsbm.schema import Dataset, parse
from qcsbm.stages.arguments import add_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(arguments: argparse.Namespace) -> None:
    document = {"label": "", "data": arguments.spec["data"]}
    data = parse(Dataset, "specification", [("", document)]).data
    splits.write(arguments.out, SOURCES[data.source](data))
