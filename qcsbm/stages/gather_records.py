"""Gather records into one tidy table of all numbers."""

import argparse
from pathlib import Path

from qcsbm.report.tables import tidy
from qcsbm.runtime.files import write_text
from qcsbm.schema.specifications import Together
from qcsbm.stages.aggregation import add_records, read_records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_records(parser, Together, "records of measuring stages")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")


def run(arguments: argparse.Namespace) -> None:
    records, _ = read_records(arguments)
    frame = tidy(list(records.values()))
    write_text(arguments.out, frame.to_csv(index=False))
