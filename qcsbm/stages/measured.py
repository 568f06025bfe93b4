"""The model that a stage measures, built and loaded: one that was trained here, or from outside."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from qcsbm.adapters import models as outside_models
from qcsbm.adapters.models import OutsideModel
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
    arguments: argparse.Namespace,
    weights: Weights | None,
    shape: tuple[int, int, int],
    device: torch.device,
) -> MeasuredModel:
    """The model of ``arguments.spec`` for images of ``shape`` (C, H, W), ready for evaluation.

    Raises:
        BadInput: its files are damaged, are of another model than the specification says, or do
            not fit the images.
    """
    spec: Measured = arguments.spec
    if isinstance(spec.model, ModelFromOutside) and isinstance(spec.trained, FromOutside):
        given = outside_models.build(shape, spec.model).to(device)
        _require_counted(spec.trained.model, given.denoiser.field.files, arguments.checkpoint)
        require_measurable(spec.trained.model, given, shape, device)
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
    model = build(shape, spec.model).to(device)
    checkpoint.load_weights(model, path, weights, spec.trained.train_steps)
    checkpoint.require_trained(path, spec, spec.trained)
    return MeasuredModel(model, [path], checkpoint.code(path))


def _require_counted(name: str, read: Iterable[str], counted: Iterable[Path]) -> None:
    """Refuse a model that was ``read`` from other files than those whose changes are noticed.

    Raises:
        BadInput: one of ``read`` is not among ``counted``.
    """
    known = {path.resolve() for path in counted}
    for path in read:
        if Path(path).resolve() not in known:
            raise BadInput(
                f"{name}: found that it is read from {path}, expected that among model.files, so "
                "that a change of it is noticed"
            )
