"""Make the table of the two-dimensional examples, in Markdown, CSV and HTML."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from qcsbm.quality.metrics import METRICS
from qcsbm.report import pages
from qcsbm.report.tables import format_value, over_seeds, tidy
from qcsbm.runtime.files import write_text
from qcsbm.schema.specifications import ToyTableSpec
from qcsbm.stages.aggregation import add_records, read_records

COLUMNS = ("score_error", "asym", "nasym", "nll_nats", "nll_excess", "precision", "recall")
METHODS = {"c": "C", "u": "U", "qc": "QC"}
NOTES = [
    "Score error: ½‖s − ∇ log p_σ‖², against the exact score of the noised data, averaged over ten "
    "noise levels, as are Asym and NAsym.",
    "NLL − exact: the difference to the exact density's NLL at the same points.",
    "NLL and samples start from the noised data's own distribution at t = 1.",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_records(parser, ToyTableSpec, "records of the stage toy")
    parser.add_argument("--table", type=Path, required=True, help="table to write, without suffix")


def run(arguments: argparse.Namespace) -> None:
    records, notes = read_records(arguments)
    frame = tidy(list(records.values()))
    write_text(f"{arguments.table}.csv", frame.to_csv(index=False))
    pages.write(arguments.table, "Two-dimensional examples", sections(frame, notes))


def sections(frame: pd.DataFrame, more: Sequence[str] = ()) -> list[pages.Section]:
    """A section per data set: mean ± standard error over seeds; ``more`` are notes on all."""
    protocol = frame.iloc[0]
    notes = [
        f"Points: {protocol['points']}; steps: {protocol['steps']}, with batches of "
        f"{protocol['batch_size']}; seeds: {frame['seed'].nunique()}.",
        *NOTES,
        *more,
    ]
    found = []
    for dataset, rows in frame.groupby("dataset", sort=False):
        cells = [
            [label, *(_text(rows, method, metric) for metric in COLUMNS)]
            for method, label in METHODS.items()
        ]
        headings = ["Method", *(METRICS[metric].column for metric in COLUMNS)]
        found.append(pages.Section(dataset, headings, cells, notes))
    return found


def _text(rows: pd.DataFrame, method: str, metric: str) -> str:
    values = rows.loc[(rows["method"] == method) & (rows["metric"] == metric), "value"]
    return format_value(*over_seeds(values)) if len(values) else "—"
