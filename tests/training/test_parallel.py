"""Processes that share out a batch: the training of one, and none is left when one ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import in_process

from qcsbm.experiment import config, specification
from qcsbm.runtime import failure, gpus
from qcsbm.schema.document import TrainedCell
from qcsbm.stages import train
from qcsbm.training import checkpoint, parallel

# The first five of seven samples are regularised: two processes have three and two of them.
PART = {"weight": 0.1, "batch_size": 5, "probes": 2, "every": 2, "time_sampling": "importance"}
METHODS = {
    "u": {"parameterisation": "score"},
    "c": {"parameterisation": "energy"},
    "qc": {"parameterisation": "score", "regulariser": {"weight": 0.1, "estimator": "trace"}},
    "qcplus": {
        "parameterisation": "score",
        "regulariser": {**PART, "estimator": "antisymmetric"},
    },
    # Over a step that is no small one, so that no rounding is divided by it.
    "differences": {
        "parameterisation": "score",
        "regulariser": {
            **PART,
            "estimator": "antisymmetric",
            "derivatives": "finite_differences",
            "difference_step": 0.5,
        },
    },
}


def spec(tiny, method, processes, stop, **training):
    """The specification of a training of ``method`` without dropout, on batches of seven."""
    cell = tiny.cells["digits", "u"].model_dump()
    training = {**cell["training"], "batch_size": 7, "processes": processes, **training}
    cell |= {**METHODS[method], "training": training, "steps": stop, "checkpoints": []}
    cells = {("digits", method): TrainedCell.model_validate(cell)}
    experiment = config.Experiment(
        tiny.tier, tiny.datasets, {}, [method], cells, {}, {}, None, False
    )
    return specification.train(experiment, "digits", method, 0, stop).document()


def command(spec, inputs, folder):
    stem = folder / "step"
    outputs = ["--out", f"{stem}.safetensors", "--curve", f"{stem}.csv", "--record", f"{stem}.json"]
    return ["train", "--spec", json.dumps(spec), "--data", str(inputs / "data"), *outputs]


def distance(a, b):
    """‖a − b‖ / ‖a‖ of two dicts of tensors."""
    squares = [((a[name] - b[name]).square().sum(), a[name].square().sum()) for name in a]
    different, whole = torch.tensor(squares).sum(0).sqrt().tolist()
    return different / whole


def test_every_sample_is_in_one_part_of_one_process(monkeypatch):
    for processes in (1, 2, 3):
        monkeypatch.setattr(parallel, "size", lambda processes=processes: processes)
        for micro_batch in (None, 1, 2, 7):
            found = []
            for rank in range(processes):
                monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
                parts = [list(range(7))[part] for part in parallel.shares(7, micro_batch)]
                assert all(0 < len(part) <= (micro_batch or 7) for part in parts)
                assert micro_batch is not None or len(parts) == 1
                found += [sample for part in parts for sample in part]
            assert sorted(found) == list(range(7))


@pytest.mark.parametrize("method, micro_batch", [*((m, None) for m in METHODS), ("qcplus", 2)])
def test_two_processes_make_the_steps_of_one(method, micro_batch, tiny, inputs, tmp_path):
    states = []
    for processes, parts in ((1, None), (2, micro_batch)):
        folder = tmp_path / str(processes)
        # With β₁ = ½ the first moment is a mean of the gradients of the last few steps.
        training = {"beta1": 0.5, "micro_batch": parts}
        run = command(spec(tiny, method, processes, 6, **training), inputs, folder)
        assert in_process(*run) == 0
        state = checkpoint.load(folder / "step.safetensors")
        curve = (folder / "step.csv").read_text().splitlines()[1]
        states.append((state, [float(value or 0) for value in curve.split(",")]))
    (one, losses), (two, same) = states
    # float32 rounds at 6e-8, and sums that cancel may lose two more digits.
    assert same == pytest.approx(losses, rel=1e-5)
    assert distance(one.exp_avg, two.exp_avg) < 1e-5
    assert distance(one.model, two.model) < 1e-5
    # A training that sees five of the seven samples is somewhere else.
    assert in_process(*command(spec(tiny, method, 1, 6, batch_size=5), inputs, tmp_path)) == 0
    other = checkpoint.load(tmp_path / "step.safetensors")
    assert distance(one.exp_avg, other.exp_avg) > 1e-2


STEPS = 60
SAVING = "import sys; from qcsbm import cli; from qcsbm.stages import train; "
SAVING += "train.SAVE_EVERY_S = 0.0; sys.exit(cli.main())"


def start(run):
    """A training in a process of its own that saves every step, in a session of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(train.__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-c", SAVING, *run],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def children(pid):
    """Those child processes of ``pid`` that multiprocessing has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"PPid:\s*(\d+)", (folder / "status").read_text())[1]
            if int(parent) == pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def ended(pid):
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(scope="module")
def whole(tiny, inputs, tmp_path_factory):
    """What the training of two processes ends in."""
    folder = tmp_path_factory.mktemp("whole")
    assert in_process(*command(spec(tiny, "u", 2, STEPS), inputs, folder)) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("first", ["SIGTERM to all", "SIGKILL of the first", "SIGKILL of another"])
def test_a_training_whose_process_ends_goes_on_to_the_same_bytes(
    first, tiny, inputs, whole, tmp_path
):
    run = command(spec(tiny, "u", 2, STEPS), inputs, tmp_path)
    process = start(run)
    wait_for((tmp_path / "step.state/previous.safetensors").exists)
    (other,) = children(process.pid)
    if first == "SIGTERM to all":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(process.pid if first == "SIGKILL of the first" else other, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == {"SIGTERM to all": 143, "SIGKILL of the first": -9}.get(first, 1)
    if first == "SIGKILL of another":
        assert "process of this training" in errors and "Traceback" not in errors
    wait_for(lambda: ended(other))
    assert not (tmp_path / "step.safetensors").exists()

    assert in_process(*run) == 0
    for name in ("step.safetensors", "step.csv"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    started = json.loads((tmp_path / "step.json").read_text())["cost"]["started_at_step"]
    assert started > 0


def test_bad_input_ends_all_processes_in_one_sentence(tiny, inputs, tmp_path, capfd):
    run = command(spec(tiny, "u", 2, 2), inputs, tmp_path)
    (tmp_path / "start").write_text("no checkpoint")
    assert in_process(*run, "--init", tmp_path / "start") == 2
    said = capfd.readouterr().err
    assert "found no usable checkpoint" in said and "Traceback" not in said
    assert not children(os.getpid())


PLANTED = """
import sys
from qcsbm import cli
from qcsbm.runtime import errors
from qcsbm.training import parallel
from qcsbm.stages import train

prepare = train.describe

def describe(folder):
    if parallel.rank() == {rank}:
        raise {error}
    return prepare(folder)

train.describe = describe
if __name__ == "__main__":
    sys.exit(cli.main())
"""
ENDS = {
    "divergence": ("errors.Diverged('planted')", 0, "qcsbm train: planted\n"),
    "bad input": ("errors.BadInput('planted')", 2, "qcsbm train: planted\n"),
    "mistake": ("ValueError('planted')", 1, "ValueError: planted\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("rank, end", [(1, end) for end in ENDS] + [(0, "mistake")])
def test_what_one_process_meets_is_the_end_of_all(rank, end, tiny, inputs, tmp_path):
    error, status, said = ENDS[end]
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(rank=rank, error=error))
    run = command(spec(tiny, "u", 2, 2), inputs, tmp_path / "out")
    environment = {**os.environ, "PYTHONPATH": str(Path(train.__file__).parents[2])}
    # Without word of each other the processes would wait for half an hour.
    result = subprocess.run(
        [sys.executable, script, *run], capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == status, result.stderr
    assert said in result.stderr
    assert ("Traceback" in result.stderr) == (end == "mistake")
    outputs = [tmp_path / f"out/step.{suffix}" for suffix in ("safetensors", "csv", "json")]
    if status:
        assert not any(path.exists() for path in outputs)
    else:
        assert [failure.read(path) for path in outputs] == ["planted"] * 3


def test_fewer_gpus_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(gpus, "visible", lambda: ["0"])
    with (
        pytest.raises(ValueError, match="training.processes: found 2, expected at most 1"),
        parallel.processes(2, print),
    ):
        raise AssertionError
