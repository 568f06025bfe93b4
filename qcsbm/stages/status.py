"""Print what of an experiment is done, running, failed, interrupted and missing.

With ``--watch`` again and again, until all is done or has failed, or until Ctrl-C.
"""

import argparse
import sys
import time
from pathlib import Path

from qcsbm.experiment.config import read
from qcsbm.report.status import report

CLEAR = "\033[H\033[2J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--configfile", type=Path, default=Path("config/config.yaml"), help="default: %(default)s"
    )
    parser.add_argument(
        "--watch",
        type=seconds,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="print it again every so many seconds (10 if none are given)",
    )


def seconds(text: str) -> float:
    """A time to wait."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected seconds, at most 86400")
    return value


def run(arguments: argparse.Namespace) -> None:
    experiment = read(arguments.configfile)
    clear = CLEAR if arguments.watch and sys.stdout.isatty() else ""
    try:
        while True:
            text, over = report(experiment, time.time())
            print(f"{clear}{text}", flush=True)
            if over or not arguments.watch:
                return
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        print()
