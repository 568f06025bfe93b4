"""Compare two audits, two result folders of the workflow, or a run with a collected study.

The exit status is 1 if B is worse than A anywhere, beyond the 95 % interval of the difference, or
if it does not reproduce a study.
"""

import argparse
from pathlib import Path

from qcsbm.auditing.compare import compare
from qcsbm.auditing.prediction import is_study, reproduce


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sources = "audit.json, or a folder with audit.json or metrics.csv"
    parser.add_argument(
        "a", metavar="A", type=Path, help=f"{sources}, or one that `collect` has made of a study"
    )
    parser.add_argument("b", metavar="B", type=Path, help=sources)


def run(arguments: argparse.Namespace) -> int:
    if is_study(arguments.a):
        reproduction = reproduce(arguments.a, arguments.b)
        print(reproduction)
        return 1 if reproduction.failed else 0
    comparison = compare(arguments.a, arguments.b)
    print(comparison)
    return 1 if comparison.worse else 0
