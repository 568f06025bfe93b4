"""Print one JSON object with all that an experiment file says of one dataset and method.

NCSN++ is built without memory for its weights, so that it takes seconds whatever its size; networks
of one's own are built as they are, and models from outside are read. ``state_dict_entries`` counts
as the published implementation of NCSN++ does: it keeps one tensor more than this package,
``sigmas``, the noise scales of discrete training. ``model_noise_levels`` are the lowest and the
highest that a model from outside knows, for data in [0, 1], null where there is no highest one:
those of ``sde`` lie between them.
"""

import argparse
import json
import math
from typing import Any

import torch

from qcsbm.adapters import models
from qcsbm.experiment import outside_models, specification
from qcsbm.schema.document import OutsideCell, TrainedCell
from qcsbm.score.models import build
from qcsbm.stages.cells import add_cell, read_cell

Shape = tuple[int, int, int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cell(parser)


def run(arguments: argparse.Namespace) -> None:
    experiment, shape = read_cell(arguments)
    cell = arguments.dataset, arguments.method
    configured = experiment.cells[cell]
    if isinstance(configured, OutsideCell):
        found = _outside(configured, shape)
    else:
        found = _trained(configured, shape)
    facts = specification.describe(experiment, *cell) | {"shape": shape} | found
    print(json.dumps(facts, indent=1))


def _trained(cell: TrainedCell, shape: Shape) -> dict[str, Any]:
    model_settings = specification.model(cell)
    published = model_settings.network.type == "ncsnpp"
    with torch.device("meta" if published else "cpu"):
        model = build(shape, model_settings)
    entries = len(model.network.state_dict())
    counted: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_dict_entries": entries,
    }
    if published:
        counted |= {
            "state_dict_entries": entries + 1,
            "state_dict_entries_counted": f"{entries} of this package's network and sigmas",
        }
    return counted


def _outside(cell: OutsideCell, shape: Shape) -> dict[str, Any]:
    denoiser = models.denoiser(cell.model, shape)
    low, high = models.levels(denoiser)
    return {
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "model_sha256": outside_models.sha256(cell.model),
        "model_noise_levels": [low, high if math.isfinite(high) else None],
    }
