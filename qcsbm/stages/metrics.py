"""Gather records into one tidy table of all numbers."""

import argparse
from pathlib import Path

from qcsbm.files import write_text
from qcsbm.provenance import read_record
from qcsbm.stages.arguments import add_spec, existing
from qcsbm.tables import tidy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    parser.add_argument(
        "--records", type=existing, nargs="+", required=True, help="records of measuring stages"
    )
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")


def run(arguments: argparse.Namespace) -> None:
    frame = tidy([read_record(path) for path in arguments.records])
    write_text(arguments.out, frame.to_csv(index=False))
