"""Check a result folder against its experiment file, and list what does not fit.

Specifications, versions, checksums of inputs and outputs, and the tables that follow from records.
The exit status is 1 if something does not fit or is missing.
"""

import argparse
from pathlib import Path

from qcsbm.experiment import specification
from qcsbm.experiment.config import read
from qcsbm.experiment.experiment import Experiment
from qcsbm.report import tables, verification
from qcsbm.report.verification import Report
from qcsbm.stages.table import texts

NOTES_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--configfile", type=Path, default=Path("config/config.yaml"), help="default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    experiment = read(arguments.configfile)
    report = verification.verify(experiment)
    if not (report.missing or report.problems):
        _verify_tables(report, experiment)
    for heading, lines in (
        ("does not fit", report.problems),
        ("missing", report.missing),
        ("to be known", report.notes[:NOTES_SHOWN]),
    ):
        if lines:
            print("\n".join([heading, *(f"  {line}" for line in lines), ""]))
    if len(report.notes) > NOTES_SHOWN:
        print(f"  and {len(report.notes) - NOTES_SHOWN} more\n")
    print(
        f"{experiment.root}: {len(report.records)} records, {len(report.problems)} things that do "
        f"not fit, {len(report.missing)} missing files"
    )
    return 1 if report.problems or report.missing else 0


def _verify_tables(report: Report, experiment: Experiment) -> None:
    """Compare the files of numbers with those that follow from the records."""
    measured = verification.chosen(report, experiment.methods, specification.MEASURED)
    expected = {"metrics.csv": tables.tidy(measured).to_csv(index=False)}
    for name, table in experiment.tables.items():
        records = verification.chosen(report, table.methods, specification.table_files(table))
        found = texts(specification.table(experiment, name), records, [])
        expected |= {f"{name}{suffix}": found[suffix] for suffix in (".csv", ".tex")}
    for name, text in expected.items():
        path = Path(experiment.root) / name
        if not path.is_file():
            report.missing.append(str(path))
        elif path.read_bytes() != text.encode():
            report.problems.append(f"{path}: found other numbers than those of the records")
