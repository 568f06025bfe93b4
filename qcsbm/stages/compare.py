"""Compare two audits, or two result folders of the workflow.

The exit status is 1 if B is worse than A anywhere, beyond the 95 % interval of the difference.
"""

import argparse
from pathlib import Path

from qcsbm.auditing.compare import compare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sources = "audit.json, or a folder with audit.json or metrics.csv"
    parser.add_argument("a", metavar="A", type=Path, help=sources)
    parser.add_argument("b", metavar="B", type=Path, help=sources)


def run(arguments: argparse.Namespace) -> int:
    comparison = compare(arguments.a, arguments.b)
    print(comparison)
    return 1 if comparison.worse else 0
