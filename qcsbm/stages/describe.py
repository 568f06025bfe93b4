"""Print one JSON object with all that an experiment file says of one dataset and method.

NCSN++ is built without memory for its weights, so that it takes seconds whatever its size; networks
of one's own are built as they are. ``state_dict_entries`` counts as the published implementation of
NCSN++ does: it keeps one tensor more than this package, ``sigmas``, the noise scales of discrete
training.
"""

import argparse
import json

import torch

from qcsbm.experiment import specification
from qcsbm.score.models import build
from qcsbm.stages.cells import add_cell, read_cell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cell(parser)


def run(arguments: argparse.Namespace) -> None:
    experiment, shape = read_cell(arguments)
    cell = arguments.dataset, arguments.method
    model_settings = specification.model(experiment.cells[cell])
    published = model_settings.network.type == "ncsnpp"
    with torch.device("meta" if published else "cpu"):
        model = build(shape, model_settings)
    entries = len(model.network.state_dict())
    counted = {
        "shape": shape,
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_dict_entries": entries,
    }
    if published:
        counted |= {
            "state_dict_entries": entries + 1,
            "state_dict_entries_counted": f"{entries} of this package's network and sigmas",
        }
    print(json.dumps(specification.describe(experiment, *cell) | counted, indent=1))
