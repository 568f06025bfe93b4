"""The workflow on a real Slurm: however its jobs end, results are those of a run without one."""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from conftest import ROOT, snakemake
from slurm import Slurm, unavailable, wait_for

from qcsbm.runtime.provenance import VARYING

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]

RUNS = "results/ci/runs/digits/u"
MEASURED = f"{RUNS}/seed0/shards/likelihood.1-of-1.json"
# The table is that of seed 0; of seed 1 there is only the training, as it is enough to end it.
TARGETS = ("results/ci/table2.md", f"{RUNS}/seed1/step150.safetensors")
OPTIONS = (
    *("--workflow-profile", ROOT / "profiles/slurm"),
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3"),
    *("--seconds-between-status-checks", "3", "--latency-wait", "5"),
    "--slurm-keep-successful-logs",
)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    """The ci tier's model U on digits, with less to do after the training."""
    config = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    config["methods"] = {"u": {"label": "U", "parameterisation": "score"}}
    config["datasets"] = {"digits": config["datasets"]["digits"]}
    config["datasets"]["digits"]["asymmetry"]["noise_levels"] = 1
    config["defaults"]["steps"] = 150
    config["tables"] = {"table2": {"methods": ["u"]}}
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def local(configuration, tmp_path_factory):
    """The folder of a run without Slurm."""
    folder = tmp_path_factory.mktemp("local")
    result = snakemake(*TARGETS, "--cores", "2", "--configfile", configuration, cwd=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def cluster():
    # The path of a socket has at most 107 bytes; pytest's folders can be longer.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        slurm = Slurm(Path(folder))
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()


@pytest.fixture(scope="module")
def disturbed(cluster, configuration, tmp_path_factory):
    """A run on Slurm that loses its node, and a job each to scancel, its time limit and a kill."""
    folder = tmp_path_factory.mktemp("slurm")
    command = [sys.executable, "-m", "snakemake", *TARGETS, "--snakefile", ROOT / "Snakefile"]
    command = [str(word) for word in (*command, "--configfile", configuration, *OPTIONS)]
    with open(folder / "log", "wb") as log:
        run = subprocess.Popen(command, cwd=folder, env=cluster.environment, stdout=log, stderr=log)
    try:
        before = [stopped_training(cluster, folder, seed) for seed in (0, 1)]
        devices = [process.environ()["CUDA_VISIBLE_DEVICES"] for _, process in before]
        cluster.fail_node()
        for log in folder.glob("results/ci/logs/digits/u/*/train150.log"):
            log.unlink()
        cluster.start_node()

        (cancelled, first), (late, second) = (
            stopped_training(cluster, folder, seed) for seed in (0, 1)
        )
        assert [job for job, _ in before] == [cancelled, late]
        cluster.run("scancel", cancelled)
        first.resume()
        cluster.run("scontrol", "update", f"JobId={late}", "EndTime=now")
        # Slurm looks at time limits every 30 s.
        wait_for(lambda: state(cluster, late) != "RUNNING", "the end of a job's time")
        second.resume()
        killed = wait_for(lambda: process_of(folder, "likelihood", MEASURED), "NLL")
        killed.kill()
        status = run.wait(timeout=240)
    finally:
        run.kill()
    trainings = [
        line.split()[:4]
        for line in cluster.run("squeue", "-h", "--states=all", "-o", "%i %T %l %m %k").splitlines()
        if "rule_train" in line
    ]
    return SimpleNamespace(
        folder=folder,
        status=status,
        log=(folder / "log").read_text(),
        devices=devices,
        trainings={job: facts for job, *facts in trainings},
        cancelled=cancelled,
        late=late,
    )


def stopped_training(cluster, folder, seed):
    """Job and process of a training that has begun with its steps, and is made to stop there."""
    name = f"the training of seed {seed}"
    log = folder / f"results/ci/logs/digits/u/seed{seed}/train150.log"
    wait_for(lambda: log.exists() and "0/150 [" in log.read_text(), name)
    record = f"{RUNS}/seed{seed}/step150.json"
    process = process_of(folder, "train", record)
    process.suspend()
    jobs = cluster.run("squeue", "-h", "--states=RUNNING", "-o", "%i %k").splitlines()
    return next(job.split()[0] for job in jobs if job.endswith(f"u_{seed}_150")), process


def process_of(folder, stage, record):
    """The process of a stage that is to write ``record``, if it runs."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            wanted = words[1:5] == ["-P", "-m", "qcsbm", stage] and record in words
            if wanted and process.cwd() == str(folder):
                return process
    return None


def state(cluster, job):
    return cluster.run("squeue", "-h", "--states=all", "-j", job, "-o", "%T").strip()


def results(folder):
    """The content of every result, by path; of records, what must not vary."""
    files = [path for path in folder.glob("results/**/*.*") if path.is_file()]
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {
        name: without_varying(content) if name.endswith(".json") else content
        for name, content in contents.items()
        if "/logs/" not in name
    }


def without_varying(content):
    return {key: value for key, value in json.loads(content).items() if key not in VARYING}


def test_run_on_slurm_completes_with_the_bytes_of_a_run_without_it(disturbed, local):
    assert disturbed.status == 0, disturbed.log[-4000:]
    expected = results(local)
    assert set(TARGETS) < set(expected)
    assert results(disturbed.folder) == expected


def test_every_kind_of_end_was_met_and_followed_by_another_attempt(disturbed):
    ends = {job: facts[0] for job, facts in disturbed.trainings.items()}
    assert ends.pop(disturbed.cancelled) == "CANCELLED"
    assert ends.pop(disturbed.late) == "TIMEOUT"
    assert list(ends.values()) == ["COMPLETED", "COMPLETED"]


@pytest.mark.parametrize("seed", [0, 1])
def test_training_that_was_told_to_end_goes_on_where_it_was(disturbed, seed):
    record = json.loads((disturbed.folder / f"{RUNS}/seed{seed}/step150.json").read_text())
    assert 1 <= record["cost"]["started_at_step"] < 150


def test_requests_of_the_profile_reach_slurm(disturbed):
    for job, (_, time, memory) in disturbed.trainings.items():
        first_attempt = job in (disturbed.cancelled, disturbed.late)
        assert memory == ("16000M" if first_attempt else "32000M")
        # The limit of the job that had to end by now is a shorter one.
        assert time == "1-00:00:00" or job == disturbed.late
    assert set(disturbed.devices) == {"0", "1"}


def test_a_killed_measurement_costs_itself_and_none_of_its_neighbours(disturbed):
    logs = (disturbed.folder / ".snakemake/slurm_logs").rglob("*.log")
    lines = "\n".join(log.read_text() for log in logs)
    runs = Counter(re.findall(r"^rule (likelihood|asymmetry):", lines, re.MULTILINE))
    assert runs == {"likelihood": 2, "asymmetry": 1}
