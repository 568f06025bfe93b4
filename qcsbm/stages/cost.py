"""Make the table of costs, in Markdown, HTML and CSV."""

import argparse
from pathlib import Path
from typing import Any

from qcsbm.report import costs, pages
from qcsbm.report.tables import failures
from qcsbm.runtime import failure
from qcsbm.runtime.files import write_text
from qcsbm.schema.specifications import CostSpec
from qcsbm.stages.aggregation import add_records, read_records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_records(parser, CostSpec, "records of training, sampling and likelihood")
    parser.add_argument("--table", type=Path, required=True, help="table to write, without suffix")


def run(arguments: argparse.Namespace) -> None:
    records, _ = read_records(arguments)
    for suffix, text in texts(arguments.spec, list(records.values())).items():
        write_text(f"{arguments.table}{suffix}", text)


def texts(spec: CostSpec, records: list[dict[str, Any]]) -> dict[str, str]:
    """The table of costs, by the suffix of its file."""
    measured = [record for record in records if failure.KEY not in record]
    frame = costs.costs(measured)
    devices = {record["provenance"]["device"] for record in measured}
    sections = costs.sections(frame, spec, devices, failures(records))
    return {
        ".csv": frame.to_csv(index=False),
        ".html": pages.html("Costs", sections),
        ".md": pages.markdown("Costs", sections),
    }
