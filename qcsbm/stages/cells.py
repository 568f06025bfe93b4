"""Command-line arguments of tools that look at one dataset and method of an experiment file."""

import argparse
from pathlib import Path

from qcsbm.data.splits import describe
from qcsbm.experiment.config import read
from qcsbm.experiment.experiment import Experiment
from qcsbm.runtime.errors import BadInput
from qcsbm.stages.arguments import existing


def add_cell(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--configfile", type=Path, default=Path("config/paper.yaml"), help="default: %(default)s"
    )
    parser.add_argument("--dataset", default="cifar10", help="default: %(default)s")
    parser.add_argument("--method", default="u", help="default: %(default)s")
    parser.add_argument(
        "--data",
        type=existing,
        help="folder of the prepared dataset, where the source of the "
        "dataset does not say the shape of its images",
    )


def read_cell(arguments: argparse.Namespace) -> tuple[Experiment, tuple[int, int, int]]:
    """The experiment that has the chosen cell, and the shape (C, H, W) of the cell's images.

    Raises:
        BadInput: there is no such cell, or nothing says the shape.
        MissingFile: there is no such experiment file.
    """
    experiment = read(arguments.configfile)
    experiment.cell(arguments.dataset, arguments.method)
    if arguments.data:
        return experiment, describe(arguments.data).shape
    shape = experiment.datasets[arguments.dataset].data.shape
    if shape is None:
        raise BadInput(
            f"dataset: found {arguments.dataset!r}, whose shape is known once it is prepared, "
            "expected --data with the folder of the prepared dataset"
        )
    return experiment, shape
