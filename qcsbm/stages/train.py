"""Train a model up to one checkpoint, from scratch or from an earlier checkpoint.

While it runs, the state is saved beside the outputs under ``state/``; a job that was killed goes on
from there and ends in the same bytes.
"""

import argparse
import csv
import logging
from contextlib import suppress
from pathlib import Path

from qcsbm import checkpoint
from qcsbm.checkpoint import TrainingState
from qcsbm.config import Regulariser, Training
from qcsbm.data.splits import describe, open_images
from qcsbm.files import atomic, sha256
from qcsbm.models import build
from qcsbm.provenance import device, recorded
from qcsbm.stages.arguments import add_data, add_record, add_spec, existing
from qcsbm.training import CURVE_COLUMNS, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    add_data(parser)
    parser.add_argument("--init", type=existing, help="checkpoint to start from")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--curve", type=Path, required=True, help="learning curve to write, CSV")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    spec = arguments.spec
    data = describe(arguments.data)
    images = open_images(arguments.data / "train.npy")
    model = build(data.shape, **spec["model"], seed=spec["seed"]).to(device())
    regulariser = spec["protocol"]["regulariser"]
    saved = arguments.out.parent / "state" / arguments.out.name
    # The file to start from is no part of the specification, yet decides what a state may continue.
    origin = {**spec, "init": sha256(arguments.init) if arguments.init else None}
    start = _resume(saved, origin)
    if start is None and arguments.init:
        start = checkpoint.load(arguments.init, spec["protocol"].get("start"))

    def save(state: TrainingState) -> None:
        state.spec = origin
        checkpoint.save(saved, state)

    inputs = [arguments.data / "train.npy", *([arguments.init] if arguments.init else [])]
    with recorded(arguments.record, "train", spec, inputs) as record:
        record.cost["started_at_step"] = start.step if start else 0
        state = train(
            model,
            images,
            data.levels,
            Training.model_validate(spec["protocol"]["training"]),
            regulariser and Regulariser.model_validate(regulariser),
            spec["seed"],
            spec["protocol"]["stop"],
            start,
            save,
        )
        with atomic(arguments.curve) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(CURVE_COLUMNS)
            writer.writerows(state.curve)
        state.spec, state.curve = spec, []
        checkpoint.save(arguments.out, state)
    saved.unlink(missing_ok=True)
    with suppress(OSError):  # other states, or none at all
        saved.parent.rmdir()


def _resume(saved: Path, origin: dict) -> TrainingState | None:
    """The state that an interrupted job of this very origin left, if any."""
    if not saved.exists():
        return None
    try:
        state = checkpoint.load(saved)
    except ValueError as error:
        logging.warning("starting over: %s", error)
        return None
    if state.spec != origin:
        logging.warning("starting over: %s was saved by another training", saved)
        return None
    logging.info("resuming at step %d", state.step)
    return state
