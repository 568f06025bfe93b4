"""The status of an experiment, against the files that the workflow and its stages really write."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, snakemake, told
from tqdm import tqdm

from qcsbm.experiment import specification
from qcsbm.experiment.config import ConfigError, load
from qcsbm.report import status
from qcsbm.runtime import failure
from qcsbm.stages import prepare
from qcsbm.stages import status as stage
from qcsbm.training import checkpoint

NOW = 1e9
U = "digits/u/seed0"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
TRAIN_LOG = f"logs/{U}/train60.log"


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """The ci tier on digits, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    del config["datasets"]["patches"]
    Path("ci.yaml").write_text(yaml.safe_dump(config))
    return load(config, "ci.yaml")


def put(path, content="", age=0.0):
    """A file of the results that was modified ``age`` seconds before `NOW`."""
    path = Path("results/ci", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    os.utime(path, (NOW - age, NOW - age))
    return path


def put_training(experiment, run, start, stop, wall_s, dsm):
    """Record and log of a training from ``start`` to ``stop`` that took ``wall_s`` seconds."""
    dataset, method, seed = run.split("/")
    spec = specification.train(experiment, dataset, method, int(seed.removeprefix("seed")), stop)
    put(f"runs/{run}/step{stop}.json", json.dumps({"specification": spec.document()}))
    put(f"logs/{run}/train{stop}.log", bar(stop, stop, wall_s, f"dsm {dsm:.2f}", start) + "\n")


def bar(n, total, elapsed, postfix=None, initial=40):
    """A progress bar as tqdm draws it."""
    return "\r" + tqdm.format_meter(n, total, elapsed, initial=initial, postfix=postfix)


def row(experiment, method="u"):
    """What the table of trainings shows of ``method``, by column."""
    lines = status.report(experiment, NOW)[0].splitlines()
    header = next(line for line in lines if line.startswith("method"))
    line = next(line for line in lines if line.startswith(f"{method} "))
    ends = [match.end() for match in re.finditer(r"\S+", header)]
    # All columns but the first and the last one are aligned to the right.
    bounds = zip([0, *ends[:-2], ends[-2]], [*ends[:-1], None], strict=True)
    return dict(zip(header.split(), [line[a:b].strip() for a, b in bounds], strict=True))


def of(experiment, name, run=U):
    """The status of the stage ``name``, of the last segment where it is a training."""
    return states(experiment, name, run)[-1]


def states(experiment, name, run=U):
    """The status of the stage ``name``, of every segment where it is a training."""
    jobs = status.jobs(experiment, "digits")
    return [status.status(job, NOW) for job in jobs if (job.stage, job.run) == (name, run)]


def test_jobs_are_those_that_snakemake_would_run(experiment):
    arguments = "-n --configfile ci.yaml --cores 1 --set-scatter shards=2"
    output = snakemake(*arguments.split(), cwd=Path.cwd()).stdout
    blocks = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", output, re.MULTILINE)
    files = {"output": set(), "log": set()}
    for rule, block in blocks:
        if not rule.startswith("figure"):
            for field, names in re.findall(r"^    (output|log): (.+)$", block, re.MULTILINE):
                files[field] |= set(names.split(", "))

    jobs = status.jobs(experiment, "digits")
    for job in jobs:
        assert any(fnmatch(name, job.record) for name in files["output"]), job
        for pattern in job.logs:
            assert any(fnmatch(name, pattern) for name in files["log"]), pattern
    # Conversely, every log of the dataset belongs to one job.
    logs = [name for name in files["log"] if name.startswith("results/ci/logs/digits/")]
    # 3 of the data, one of them in 2 shards, 5 trainings; of 4 methods, 4 stages in 2 shards each,
    # 3 of them with a log of their gathering and one, quality, with a log of its own.
    assert len(logs) == 4 + 5 + 4 * (4 * 2 + 3 + 1)
    for name in logs:
        assert sum(any(fnmatch(name, p) for p in job.logs) for job in jobs) == 1, name


def test_nothing_done_is_all_missing(experiment):
    text, over = status.report(experiment, NOW)
    # 3 of the data, 5 trainings and 4 stages of 4 methods.
    assert text.endswith(
        "total 24: 0 done, 0 running, 0 failed, 0 interrupted, 0 stale, 24 missing"
    )
    assert not over
    assert row(experiment)["step"] == "–/60" and row(experiment)["state"] == "missing"


def test_a_finished_training_shows_its_last_bar(experiment):
    put_training(experiment, U, 0, 40, 1.0, 12.5)
    put_training(experiment, U, 40, 60, 0.5, 10.25)
    assert row(experiment) == {
        "method": "u",
        "seed": "0",
        "step": "60/60",
        "steps/s": "40",
        "ETA": "",
        "DSM": "10.25",
        "state": "done",
    }


def test_a_segment_that_has_not_begun_leaves_the_training_at_the_one_before(experiment):
    put_training(experiment, U, 0, 40, 1.0, 12.5)
    found = row(experiment)
    assert (found["step"], found["DSM"], found["state"]) == ("40/60", "12.50", "missing")


def test_tables_fit_on_a_line_of_80_characters(tmp_path, monkeypatch):
    """A method of 18 letters, and every column at its widest."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "benchmarks/weight_sweep.yaml").read_text())
    experiment = load(config, "weight_sweep.yaml")
    put(
        "../weight_sweep/logs/digits/antisymmetric_0001/seed0/train1200.log",
        bar(900, 1200, 1234.0, "dsm 123.45", 800) + "\nSIGTERM: saved step 900\n",
    )
    lines = status.report(experiment, NOW)[0].splitlines()
    assert any(re.search(r"900/1200 .* 123.45  interrupted$", line) for line in lines)
    assert max(map(len, lines)) + len("10:00:00") - len("ETA") <= 80


@pytest.mark.parametrize(
    "elapsed, rate, eta",
    [(5.0, "2", "0:00:05"), (25.0, "0.4", "0:00:25")],  # 10 steps, shown in it/s and s/it
)
def test_a_running_training_shows_the_last_whole_bar(experiment, elapsed, rate, eta):
    put_training(experiment, U, 0, 40, 1.0, 12.5)
    cut = bar(55, 60, elapsed, "dsm 7.77")[:-4]
    put(TRAIN_LOG, "INFO resuming\n" + bar(40, 60, 0.0) + bar(50, 60, elapsed, "dsm 8.88") + cut)
    found = row(experiment)
    assert (found["step"], found["steps/s"], found["ETA"]) == ("50/60", rate, eta)
    assert (found["DSM"], found["state"]) == ("8.88", "running")


def test_a_training_that_just_resumed_shows_the_rate_and_the_loss_before(experiment):
    put_training(experiment, U, 0, 40, 1.0, 12.5)
    for text, step in [("", "40/60"), (bar(45, 60, 0.0), "45/60")]:
        put(TRAIN_LOG, text)
        found = row(experiment)
        # 40 steps/s in the segment before.
        assert (found["step"], found["steps/s"], found["DSM"]) == (step, "40", "12.50")


def test_silence_is_an_interruption(experiment):
    put(TRAIN_LOG, bar(58, 60, 9.0, "dsm 8.88"))
    assert of(experiment, "train").state == "running"
    put(TRAIN_LOG, bar(58, 60, 9.0, "dsm 8.88"), age=status.SILENCE_S + 1)
    assert of(experiment, "train").state == "interrupted"
    put_training(experiment, U, 0, 40, 1.0, 12.5)
    found = row(experiment)
    assert (found["step"], found["DSM"], found["state"]) == ("58/60", "8.88", "interrupted")


def test_the_log_of_a_training_whose_record_was_removed_shows_nothing(experiment):
    put_training(experiment, U, 0, 40, 1.0, 12.5)
    put(f"logs/{U}/train40.tsv")
    Path(f"results/ci/runs/{U}/step40.json").unlink()
    found = row(experiment)
    assert (found["step"], found["DSM"], found["state"]) == ("–/60", "", "missing")


def test_damaged_files(experiment):
    put_training(experiment, U, 0, 40, 1.0, 12.5)
    put(f"runs/{U}/step40.json", '{"sta')
    for name in ("train40", "train60"):
        put(f"logs/{U}/{name}.log").write_bytes(b"\xff\xfe 50/60 [00:")
    for path in Path("results").rglob("*.log"):
        os.utime(path, (NOW, NOW))
    assert [job.state for job in states(experiment, "train")] == ["stale", "running"]
    found = row(experiment)
    assert (found["step"], found["DSM"], found["state"]) == ("40/60", "", "running")


def test_files_that_vanish_while_they_are_read_leave_their_facts_unknown(experiment, monkeypatch):
    put(TRAIN_LOG, bar(50, 60, 5.0))
    listed = status.glob

    def and_remove(pattern):
        found = listed(pattern)
        for name in found:
            Path(name).unlink()
        return found

    monkeypatch.setattr(status, "glob", and_remove)
    found = row(experiment)
    assert (found["step"], found["state"]) == ("–/60", "missing")


@pytest.mark.parametrize("behind", ["", bar(41, 60, 5.0) + "\n"])
@pytest.mark.parametrize(
    "text, reason",
    [
        ("qcsbm train: no space left\n", "no space left"),
        (
            "Traceback (most recent call last):\n"
            '  File "x.py", line 1, in <module>\n    f(\n    ^^\nRuntimeError: out of memory\nand'
            " more\n",
            "RuntimeError: out of memory",
        ),
        (
            'Traceback (most recent call last):\n  File "x.py", line 1\n    f()\nKeyError: 1\n\n'
            "During handling of the above exception, another exception occurred:\n\n"
            'Traceback (most recent call last):\n  File "x.py", line 3\n    g()\nqcsbm.No: 2\n',
            "qcsbm.No: 2",
        ),
    ],
)
def test_an_error_in_the_log_is_a_failure_with_its_sentence(experiment, text, reason, behind):
    # What is written before a bar is closed stands on its line, and the bar is drawn once more.
    put(TRAIN_LOG, bar(41, 60, 5.0) + text + behind)
    assert of(experiment, "train") == status.Status("failed", reason)


@pytest.mark.parametrize(
    "text",
    [
        'Traceback (most recent call last):\n  File "x.py", line 1\n    f()\nKeyboardInterrupt\n',
        "WARNING SIGTERM: saved step 41\n" + bar(41, 60, 5.0) + "\n",
    ],
)
def test_an_end_that_was_asked_for_is_an_interruption_at_once(experiment, text):
    put(TRAIN_LOG, bar(41, 60, 5.0) + text)
    assert of(experiment, "train") == status.Status("interrupted")


def test_a_reason_in_place_of_a_record_is_a_failure_and_listed_once(experiment):
    spec = specification.likelihood(experiment, "digits", "c", 0)
    for name in ("step60.json", "likelihood.json"):
        failure.write([Path("results/ci/runs/digits/c/seed0", name)], "diverged", spec)
    put(f"logs/{U}/asymmetry.1-of-1.log", "qcsbm asymmetry: no memory\n")
    text, _ = status.report(experiment, NOW)
    expected = ["failed", "digits/c/seed0 train, likelihood: diverged", f"{U} asymmetry: no memory"]
    assert "\n".join(["", *expected, ""]) in text
    assert "0 done, 0 running, 3 failed" in text


def test_stages_that_are_split_are_judged_by_their_present_shards(experiment):
    put(f"logs/{U}/likelihood.1-of-1.log", "qcsbm likelihood: no memory\n", age=20)
    assert of(experiment, "likelihood").state == "failed"
    put(f"logs/{U}/likelihood.1-of-3.log", bar(1, 2, 5.0), age=10)
    put(f"logs/{U}/likelihood.2-of-3.log", bar(1, 2, 5.0), age=1000)
    assert of(experiment, "likelihood").state == "running"
    put(f"logs/{U}/likelihood.2-of-3.log", "qcsbm likelihood: no disk\n", age=30)
    put(f"logs/{U}/likelihood.3-of-3.log", "qcsbm likelihood: no time\n", age=40)
    assert of(experiment, "likelihood") == status.Status("failed", "no disk")
    put(f"logs/{U}/gather_likelihood.log", "")
    spec = specification.likelihood(experiment, "digits", "u", 0).document()
    put(f"runs/{U}/likelihood.json", json.dumps({"specification": spec}))
    assert of(experiment, "likelihood").state == "done"


def test_a_record_of_another_specification_is_stale(experiment):
    spec = specification.likelihood(experiment, "digits", "u", 0).document()
    spec["protocol"]["rtol"] /= 2
    put(f"runs/{U}/likelihood.json", json.dumps({"specification": spec}))
    assert of(experiment, "likelihood").state == "stale"
    put_training(experiment, U, 0, 40, 1.0, 12.5)
    put_training(experiment, U, 40, 60, 1.0, 12.5)
    assert row(experiment)["state"] == "done"
    config = yaml.safe_load(Path("ci.yaml").read_text())
    config["defaults"]["training"]["lr"] = 0.5
    changed = load(config, "ci.yaml")
    assert (row(changed)["step"], row(changed)["state"]) == ("60/60", "stale")


def test_shards_that_wait_for_their_turn_are_not_interrupted(experiment):
    whole = bar(1, 2, 5.0) + bar(2, 2, 9.0) + "\n"
    put(f"logs/{U}/likelihood.1-of-2.log", whole, age=1000)
    assert of(experiment, "likelihood").state == "interrupted"
    put(f"logs/{U}/likelihood.1-of-2.tsv", age=1000)
    assert of(experiment, "likelihood").state == "missing"
    put(f"logs/{U}/likelihood.2-of-2.log", bar(1, 2, 5.0))
    put(f"logs/{U}/likelihood.2-of-2.tsv", age=2000)  # of an earlier run
    assert of(experiment, "likelihood").state == "running"


def test_reference_features_are_done_when_every_shard_is(experiment):
    put("logs/digits/features.classifier.train.2-of-2.log")
    put("data/digits/features/classifier.train.1-of-1.npz", age=50)  # of an earlier run
    put("data/digits/features/classifier.train.1-of-2.npz")
    assert of(experiment, "reference features", "digits").state == "running"
    put("data/digits/features/classifier.train.2-of-2.npz")
    assert of(experiment, "reference features", "digits").state == "done"


def test_imported_checkpoints_are_not_trained(experiment):
    config = yaml.safe_load(Path("ci.yaml").read_text())
    origin = {"checkpoint": "u.safetensors", "step": 60}
    config["methods"] = {"u": {**config["methods"]["u"], "init_from": origin, "checkpoints": []}}
    config["tables"] = {}
    imported = load(config, "ci.yaml")
    assert {job.stage for job in status.jobs(imported, "digits") if job.run == U} == {
        "likelihood",
        "asymmetry",
    }
    assert "method" not in status.report(imported, NOW)[0]


def test_a_real_training_is_running_until_it_is_interrupted(experiment):
    # The specification asks for steps without end; the file names are those of 60 steps.
    spec = specification.train(experiment, "digits", "c", 0, 60).document()
    spec["protocol"]["stop"] = 10**6
    prepared = specification.prepare(experiment, "digits")
    prepare.run(argparse.Namespace(spec=prepared, out=Path("data")))
    folder, log = Path("results/ci/runs/digits/c/seed0"), Path("results/ci/logs/digits/c/seed0")
    log.mkdir(parents=True)
    jobs = status.jobs(experiment, "digits")
    job = next(job for job in jobs if Path(job.record) == folder / "step60.json")
    outputs = {"--out": "safetensors", "--curve": "csv", "--record": "json"}
    command = [sys.executable, "-m", "qcsbm", "train", "--spec", json.dumps(spec), "--data", "data"]
    command += [word for o, end in outputs.items() for word in (o, str(folder / f"step60.{end}"))]
    with (
        open(log / "train60.log", "w") as errors,
        subprocess.Popen(command, stderr=errors, env=ENVIRONMENT) as process,
    ):
        deadline = time.monotonic() + 60
        while "[" not in (log / "train60.log").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        running = status.status(job, time.time())
        process.send_signal(signal.SIGINT)
    assert process.returncode == 128 + signal.SIGINT
    assert running == status.Status("running")
    assert status.status(job, time.time()) == status.Status("interrupted")
    saved = checkpoint.load(folder / "step60.state/last.safetensors")
    # The bar counts whole steps, and the training ends within the one that it saves.
    assert status.progress(job)["step"] == saved.step - 1


def arguments(*words):
    parser = argparse.ArgumentParser()
    stage.add_arguments(parser)
    return parser.parse_args(words)


def test_watching_ends_when_all_is_done_or_has_failed(experiment, monkeypatch, capsys):
    waited = []

    def finish(seconds):
        assert not waited
        waited.append(seconds)
        for job in status.jobs(experiment, "digits"):
            path = job.record.removeprefix("results/ci/").replace("*", "1-of-1")
            spec = job.specification
            put(path, json.dumps({"specification": spec and spec.document()}))
        failure.write([Path(f"results/ci/runs/{U}/step60.json")], "diverged", told(protocol={}))

    monkeypatch.setattr(stage.time, "sleep", finish)
    stage.run(arguments("--configfile", "ci.yaml", "--watch"))
    assert waited == [10.0]
    totals = re.findall("^total 24: .* done", capsys.readouterr().out, re.MULTILINE)
    assert totals == ["total 24: 0 done", "total 24: 23 done"]


def test_watching_ends_on_ctrl_c(experiment, monkeypatch, capsys):
    def interrupt(seconds):
        assert seconds == 0.5
        raise KeyboardInterrupt

    monkeypatch.setattr(stage.time, "sleep", interrupt)
    stage.run(arguments("--configfile", "ci.yaml", "--watch", "0.5"))
    assert capsys.readouterr().out.count("total 24") == 1


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_times_that_cannot_be_waited_are_refused(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        arguments(f"--watch={text}")
    assert f"found '{text}', expected seconds" in capsys.readouterr().err


def test_a_bad_configuration_is_refused(experiment):
    Path("bad.yaml").write_text("tier: [")
    with pytest.raises(ConfigError, match="bad.yaml: found no YAML"):
        stage.run(arguments("--configfile", "bad.yaml"))


def test_the_command_imports_no_torch(experiment):
    put_training(experiment, U, 0, 40, 1.0, 12.5)
    put(TRAIN_LOG, bar(45, 60, 1.0))
    code = (
        "import sys\nfrom qcsbm.cli import main\n"
        "assert main(['status', '--configfile', 'ci.yaml']) == 0\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(main(['status', '--configfile', 'gone.yaml']))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "45/60" in result.stdout
    assert result.stderr.startswith("qcsbm status: ") and "gone.yaml" in result.stderr
