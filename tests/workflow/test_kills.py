"""Jobs that are killed at random moments: what they leave, and what comes out in the end."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, in_process, snakemake

from qcsbm.experiment import specification
from qcsbm.runtime import provenance
from qcsbm.stages import train

CELL = ("digits", "u", 0)


def arguments(stage, spec, inputs, folder):
    """The command of ``stage``, and the files that it writes in ``folder``."""
    outputs = {"--record": folder / "record.json"}
    outputs["--out"] = folder / ("step40.safetensors" if stage == "train" else "part.npz")
    if stage == "train":
        outputs["--curve"] = folder / "curve.csv"
        rest = []
    else:
        rest = ["--checkpoint", inputs / "step60.safetensors", "--shard", "1-of-1"]
    named = [word for pair in outputs.items() for word in pair]
    command = [stage, "--spec", json.dumps(spec), "--data", inputs / "data", *rest, *named]
    return command, list(outputs.values())


def killed(command, delay):
    """Run ``command`` in a process of its own and kill it after ``delay`` s; whether it was."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(in_process(*command))
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "sample", "likelihood", "asymmetry"])
def test_jobs_that_were_killed_end_in_the_same_bytes(
    stage, tiny, inputs, tmp_path, monkeypatch, pytestconfig
):
    monkeypatch.setattr(train, "SAVE_EVERY_S", 0.0)
    more = {"sample": ("pc",), "train": (40,)}.get(stage, ())
    spec = getattr(specification, stage)(tiny, *CELL, *more).document()
    whole, results = tmp_path / "whole", tmp_path / "killed"
    command, expected = arguments(stage, spec, inputs, whole)
    start = time.monotonic()
    assert in_process(*command) == 0
    duration = time.monotonic() - start

    command, files = arguments(stage, spec, inputs, results)
    draw = random.Random(stage)
    kills = 0
    while kills < pytestconfig.getoption("kills"):
        if killed(command, draw.uniform(0, duration)):
            kills += 1
        else:  # the first run was slower, on a machine that had other work
            duration /= 2
        for path, other in zip(files[1:], expected[1:], strict=True):
            assert not path.exists() or path.read_bytes() == other.read_bytes()
    assert in_process(*command) == 0
    for path, other in zip(files[1:], expected[1:], strict=True):
        assert path.read_bytes() == other.read_bytes()
    record, other = map(provenance.read_record, (files[0], expected[0]))
    assert all(record[key] == other[key] for key in record.keys() - set(provenance.VARYING))
    left = {path.name for path in results.iterdir() if not path.name.startswith(".")}
    assert left == {path.name for path in files}


@pytest.mark.slow
def test_snakemake_that_was_killed_is_unlocked_and_goes_on(tmp_path):
    """As Snakemake has it: its lock outlives a SIGKILL, `--unlock` says that the other is dead."""
    target = "results/ci/runs/digits/u/seed0/step40.safetensors"
    options = ["--cores", "2", "--configfile", ROOT / "config/ci.yaml"]
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", target]
    first = subprocess.Popen(
        [*map(str, [*command, *options])], cwd=tmp_path, start_new_session=True
    )
    training = tmp_path / "results/ci/logs/digits/u/seed0/train40.log"
    while first.poll() is None and not training.exists():
        time.sleep(0.1)
    second = snakemake(target, *options, cwd=tmp_path)
    assert second.returncode != 0 and "cannot be locked" in second.stdout + second.stderr
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert snakemake("--unlock", *options, cwd=tmp_path).returncode == 0
    result = snakemake(target, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / target).exists()
    again = snakemake(target, "-n", *options, cwd=tmp_path)
    assert "Nothing to be done" in again.stdout + again.stderr
