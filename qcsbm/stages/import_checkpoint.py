"""Convert a published NCSN++ checkpoint into ours: safetensors, and a record of where it is from.

A published energy is none of ours: it divides ‖h‖² by 2σ³ and not by 2σ, so that the same weights
are another model.
"""

import argparse
import logging
from pathlib import Path
from typing import cast

import torch

from qcsbm.adapters.published import read_published
from qcsbm.experiment import specification
from qcsbm.nets.ncsnpp import NCSNpp
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.provenance import recorded
from qcsbm.score.models import build
from qcsbm.stages.cells import add_cell, read_cell
from qcsbm.training import checkpoint
from qcsbm.training.checkpoint import TrainingState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="published checkpoint, .pth")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write checkpoint.safetensors and checkpoint.json in",
    )
    add_cell(parser)


def run(arguments: argparse.Namespace) -> None:
    experiment, shape = read_cell(arguments)
    if (arguments.dataset, arguments.method) not in experiment.trainings:
        raise BadInput(
            f"method: found {arguments.method!r}, a model from outside, expected one that is "
            "trained here"
        )
    spec = specification.import_checkpoint(experiment, arguments.dataset, arguments.method)
    if spec.model.parameterisation != "score" or spec.model.residual:
        raise BadInput(
            f"method: found {arguments.method!r}, expected one with parameterisation 'score' and "
            "without residual, as published energies and residuals are not those of this package"
        )
    if spec.model.sde.type != "ve":
        raise BadInput(
            f"method: found {arguments.method!r} with an SDE of type {spec.model.sde.type!r}, "
            "expected one of type 've', under which published networks were trained"
        )
    if spec.model.network.type != "ncsnpp":
        raise BadInput(
            f"method: found {arguments.method!r} with the network {spec.model.network.type}, "
            "expected one with ncsnpp, as published checkpoints are of no other"
        )
    with torch.device("meta"):
        model = build(shape, spec.model)
    published = read_published(arguments.file, cast(NCSNpp, model.network))
    if published.converted:
        logging.warning(
            "%s: found tensors of %s, converted them to float32, the precision of training",
            arguments.file,
            " and ".join(published.converted),
        )
    out = arguments.out / "checkpoint.safetensors"
    with recorded(
        arguments.out / "checkpoint.json", "import_checkpoint", spec, [arguments.file], [out]
    ) as record:
        record.protocol["step"] = published.step
        record.protocol["converted_from"] = list(published.converted)
        record.protocol["parameters"] = sum(p.numel() for p in model.parameters())
        state = TrainingState(
            published.step,
            _prefixed(published.model),
            _prefixed(published.ema),
            _prefixed(published.exp_avg),
            _prefixed(published.exp_avg_sq),
            spec.document(),
            code=record.code,
        )
        checkpoint.save(out, state)


def _prefixed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies under the names that a score model gives to the tensors of its network.

    What is not averaged stands in both sets of weights, and safetensors keeps no tensor twice.
    """
    return {f"network.{name}": tensor.clone() for name, tensor in tensors.items()}
