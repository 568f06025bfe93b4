"""GPUs are handed out to processes and asked for by jobs; for that, no GPU is needed."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
import yaml

from qcsbm import cli
from qcsbm.runtime import gpus

ROOT = Path(__file__).parents[2]

# A process that holds what it claims until it is told to end. Torch takes seconds to import.
HOLDER = """
import logging, os, sys
from types import SimpleNamespace
cuda = SimpleNamespace(device_count=lambda: int(sys.argv[1]))
sys.modules["torch"] = SimpleNamespace(cuda=cuda)
from qcsbm.runtime import gpus
gpus.RETRY_S = 0.02
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
gpus.claim()
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def allocation(monkeypatch):
    """What keeps this test from real jobs, and from itself if it runs twice at once."""
    monkeypatch.setenv("SLURM_JOB_ID", str(uuid.uuid4()))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv(gpus.JOBS_PER_GPU, raising=False)


@pytest.fixture
def hold():
    """Starts a process that claims one of ``count`` GPUs."""
    processes = []

    def start(count=2, **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(count)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def said(process):
    return process.stdout.readline().strip()


def test_processes_never_share_and_the_next_one_waits_for_a_killed_one(hold):
    first, second = hold(), hold()
    assert {said(first), (of_second := said(second))} == {"0", "1"}
    third = hold()
    assert said(third) == "waiting for one of the GPUs 0,1"
    second.kill()
    assert said(third) == of_second


def test_gpus_to_choose_from_are_those_that_are_visible(hold):
    environment = {"CUDA_VISIBLE_DEVICES": "GPU-5, 7"}
    found = [said(hold(**environment)) for _ in range(3)]
    assert found == ["GPU-5", "7", "waiting for one of the GPUs GPU-5,7"]


def test_what_cuda_does_not_see_is_not_handed_out(hold):
    # CUDA stops at the first name that is none.
    assert said(hold(1, CUDA_VISIBLE_DEVICES="3,-1,4")) == "3"
    assert said(hold(1, CUDA_VISIBLE_DEVICES="3,-1,4")) == "waiting for one of the GPUs 3"


def test_gpus_of_two_allocations_are_not_the_same_ones(hold):
    found = [said(hold(1, SLURM_JOB_ID=str(uuid.uuid4()))) for _ in range(2)]
    assert found == ["0", "0"]


def test_gpus_are_shared_evenly_where_that_is_asked_for():
    held = [gpus.take(["0", "1"], 2) for _ in range(5)]
    assert [device for device, _ in held[:4]] == ["0", "1", "0", "1"] and held[4] is None
    for _, lock in held[:4]:
        lock.close()


def test_number_of_jobs_per_gpu_comes_from_the_environment(hold):
    found = [said(hold(1, QCSBM_JOBS_PER_GPU="2")) for _ in range(3)]
    assert found == ["0", "0", "waiting for one of the GPUs 0"]


@pytest.mark.parametrize("number", ["0", "-1", "two", ""])
def test_number_of_jobs_per_gpu_must_be_positive(monkeypatch, number):
    monkeypatch.setenv(gpus.JOBS_PER_GPU, number)
    gpus.claim.cache_clear()
    with pytest.raises(ValueError, match=f"^QCSBM_JOBS_PER_GPU: found '{number}', expected"):
        gpus.claim()


def test_nothing_is_held_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gpus.claim.cache_clear()
    assert gpus.claim() is None
    assert gpus.take(["0"], 1) is not None


def test_a_process_claims_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    gpus.claim.cache_clear()
    lock = gpus.claim()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert gpus.claim() is lock
    lock.close()
    gpus.claim.cache_clear()


@pytest.mark.parametrize("profile", ["gpu", "slurm"])
def test_jobs_that_compute_on_a_gpu_ask_for_one(profile):
    modules = {name: ROOT / f"qcsbm/stages/{name}.py" for name in cli.STAGES}
    computing = {
        name for name, path in modules.items() if "import claim_device" in path.read_text()
    }
    requests = yaml.safe_load((ROOT / f"profiles/{profile}/config.yaml").read_text())
    resources = requests["set-resources"].items()
    asking = {rule for rule, asked in resources if asked.keys() & {"gpu", "gres"}}
    features = {"sample_features", "reference_features"}
    assert asking == computing - {"features"} | features
