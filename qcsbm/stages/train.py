"""Train a model up to one checkpoint, from scratch or from an earlier checkpoint.

While it runs, the state is saved in a folder beside the outputs; a job that was killed goes on from
there and ends in the same bytes. SIGTERM, which schedulers send ahead of their time limit, and
SIGINT save it at once and end the job with the status that shells give to such an end.
"""

import argparse
import csv
import logging
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from qcsbm.data.splits import describe, open_images
from qcsbm.runtime import source_code
from qcsbm.runtime.device import claim_device
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import atomic, sha256
from qcsbm.runtime.provenance import recorded
from qcsbm.schema.networks import Own
from qcsbm.schema.specifications import TrainSpec
from qcsbm.score.models import build
from qcsbm.stages.arguments import add_data, add_output, add_record, add_spec, existing
from qcsbm.training import checkpoint, parallel
from qcsbm.training.checkpoint import TrainingState
from qcsbm.training.contract import require_contract
from qcsbm.training.loop import CURVE_COLUMNS, train

SAVE_EVERY_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, TrainSpec)
    add_data(parser)
    parser.add_argument("--init", type=existing, help="checkpoint to start from")
    add_output(parser, "--out", "checkpoint to write")
    add_output(parser, "--curve", "learning curve to write, CSV")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    spec: TrainSpec = arguments.spec
    processes = spec.protocol.training.processes
    inputs = [arguments.data / "train.npy", *([arguments.init] if arguments.init else [])]
    outputs = [arguments.out, arguments.curve]
    saved = SavedState(arguments.out.with_suffix(".state"), origin(spec, inputs))

    with recorded(arguments.record, "train", spec, inputs, outputs, processes) as record:
        with parallel.processes(processes, _train, arguments, saved):
            record.cost["started_at_step"], state = _train(arguments, saved)
        if arguments.init:
            record.computed_by(checkpoint.code(arguments.init))
        with atomic(arguments.curve) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(CURVE_COLUMNS)
            writer.writerows(state.curve)
        state.spec, state.curve, state.code = spec.document(), [], record.code
        checkpoint.save(arguments.out, state)
    saved.remove()


def origin(spec: TrainSpec, inputs: list[Path]) -> dict[str, Any]:
    """All that decides what a training ends in: only a state of the same origin is gone on from."""
    code = source_code.stage_digest("train")
    return {**spec.document(), "inputs": [sha256(path) for path in inputs], "code": code}


def _train(arguments: argparse.Namespace, saved: "SavedState") -> tuple[int, TrainingState]:
    """What every process of the training does: the step it started from, and its end."""
    spec: TrainSpec = arguments.spec
    data = describe(arguments.data)
    place, new = claim_device(), partial(build, data.shape, spec.model, seed=spec.seed)
    if isinstance(spec.model.network, Own):
        require_contract(spec.model.network.type, new, data.shape, place)
    model = new().to(place)
    start = saved.load()
    if start is None and arguments.init:
        start = checkpoint.load(arguments.init, spec.protocol.start)
        checkpoint.require_fit(start, model, arguments.init)
        checkpoint.require_run(arguments.init, spec, ("dataset", "seed", "model"))
    state = train(
        model,
        open_images(arguments.data / "train.npy"),
        data.levels,
        spec.protocol.training,
        spec.protocol.regulariser,
        spec.seed,
        spec.protocol.stop,
        start,
        saved.save,
        saved.due,
    )
    return start.step if start else 0, state


class SavedState:
    """The last two states of a training that is going on, in a folder of its own.

    A state that cannot be used is refused with a warning, and the one before is taken.
    """

    def __init__(self, folder: Path, origin: dict[str, Any]):
        self.last, self.previous = folder / "last.safetensors", folder / "previous.safetensors"
        self.origin = origin
        self.saved_at = time.monotonic()
        self.signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        # Half of a step may be done: the state is saved at its end.
        self.signal = number

    def due(self) -> bool:
        """Whether the state is to be saved now."""
        return self.signal is not None or time.monotonic() - self.saved_at > SAVE_EVERY_S

    def save(self, state: TrainingState) -> None:
        """Save ``state``; exit if a signal asked for the end."""
        state.spec = self.origin
        if self.last.exists():
            self.last.replace(self.previous)
        checkpoint.save(self.last, state)
        self.saved_at = time.monotonic()
        if self.signal is not None:
            logging.warning("%s: saved step %d", signal.Signals(self.signal).name, state.step)
            sys.exit(128 + self.signal)

    def load(self) -> TrainingState | None:
        """The newest state that an interrupted job of this very origin left, if any."""
        for path in (self.last, self.previous):
            if not path.exists():
                continue
            try:
                state = checkpoint.load(path)
            except BadInput as error:
                logging.warning("%s", error)
                continue
            if state.spec == self.origin:
                logging.info("resuming at step %d", state.step)
                return state
            logging.warning("%s: found the state of another training, expected this one's", path)
        return None

    def remove(self) -> None:
        """Remove both states: the training is done."""
        shutil.rmtree(self.last.parent, ignore_errors=True)
