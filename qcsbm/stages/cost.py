"""Make the table of costs, in Markdown, HTML and CSV."""

import argparse
from pathlib import Path

from qcsbm import costs, failure, pages
from qcsbm.files import write_text
from qcsbm.provenance import read_record
from qcsbm.stages.arguments import add_spec, existing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    parser.add_argument(
        "--records",
        type=existing,
        nargs="+",
        required=True,
        help="records of training, sampling and likelihood",
    )
    parser.add_argument("--table", type=Path, required=True, help="table to write, without suffix")


def run(arguments: argparse.Namespace) -> None:
    records = [read_record(path) for path in arguments.records]
    records = [record for record in records if failure.KEY not in record]
    frame = costs.costs(records)
    devices = {record["provenance"]["device"] for record in records}
    write_text(f"{arguments.table}.csv", frame.to_csv(index=False))
    pages.write(arguments.table, "Costs", costs.sections(frame, arguments.spec, devices))
