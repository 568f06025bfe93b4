"""The model that a stage measures, built and loaded: one that was trained here, or from outside."""

import argparse
from pathlib import Path
from typing import NamedTuple

from qcsbm.adapters import models as outside_models
from qcsbm.adapters.models import OutsideModel
from qcsbm.runtime.device import claim_device
from qcsbm.runtime.errors import BadInput
from qcsbm.schema.base import Weights
from qcsbm.schema.specifications import FromOutside, Measured, ModelFromOutside
from qcsbm.score.models import ScoreModel, build
from qcsbm.training import checkpoint
from qcsbm.training.contract import require_measurable


class MeasuredModel(NamedTuple):
    """A score with its ``sde`` on the device of this job, and what it was made from.

    ``inputs`` are files that a job has made or read, and ``code`` made them, see
    `qcsbm.runtime.provenance.Record`.
    """

    score: ScoreModel | OutsideModel
    inputs: list[Path]
    code: dict[str, list[str]]


def load(
    arguments: argparse.Namespace, weights: Weights | None, shape: tuple[int, int, int]
) -> MeasuredModel:
    """The model of ``arguments.spec`` for images of ``shape`` (C, H, W), ready for evaluation.

    Raises:
        BadInput: its files are damaged, are of another model than the specification says, or do
            not fit the images.
    """
    spec: Measured = arguments.spec
    if isinstance(spec.model, ModelFromOutside) and isinstance(spec.trained, FromOutside):
        given = outside_models.build(shape, spec.model).to(claim_device())
        require_measurable(spec.trained.model, given, shape, claim_device())
        return MeasuredModel(given, [], {})
    path, *others = arguments.checkpoint
    if (
        others
        or weights is None
        or isinstance(spec.model, ModelFromOutside)
        or isinstance(spec.trained, FromOutside)
    ):
        raise BadInput(
            f"checkpoint: found {len(others) + 1} files, expected the one of a trained model, and "
            "which of its weights to take"
        )
    model = build(shape, spec.model).to(claim_device())
    checkpoint.load_weights(model, path, weights, spec.trained.train_steps)
    checkpoint.require_trained(path, spec, spec.trained)
    return MeasuredModel(model, [path], checkpoint.code(path))
