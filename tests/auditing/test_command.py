"""`qcsbm audit`: which samples it takes, what it writes, and what it refuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, in_process
from PIL import Image

import qcsbm
from qcsbm.auditing.data import samples
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import sha256
from qcsbm.stages import audit as stage

MODEL = """
import torch
import qcsbm

turn = 0.1 * torch.ones(12, 12).triu(1)
turn = turn - turn.T


def score(x, t):
    sigma = qcsbm.VE().std(t)[:, None]
    y = x.flatten(1)
    return ((y @ turn.T.to(x) - y) / (1 + sigma**2)).view_as(x)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODEL)
    draws = np.random.default_rng(0)
    np.save(tmp_path / "floats.npy", draws.random((20, 3, 2, 2)))
    np.savez(tmp_path / "bytes.npz", images=draws.integers(0, 256, (20, 3, 2, 2), dtype=np.uint8))
    return tmp_path


COMMAND = ("audit", "mine:score", "--data", "floats.npy", "--schedule", "ve", "--out", "out")


def test_an_audit_is_a_table_json_figures_and_a_page(here, capsys):
    options = ("--levels", "0.1", "1", "--samples", "12", "--kinds", "epsilon", "--seed", "3")
    assert in_process(*COMMAND, *options) == 0
    shown = capsys.readouterr()
    assert "Audit of mine:score: score field on samples of 3 x 2 x 2" in shown.out
    assert "level 2 of 2: spectrum:" in shown.err and "\n" not in shown.err
    report = qcsbm.Report.from_json("out/audit.json")
    assert [level.sigma for level in report.levels] == pytest.approx([0.1, 1.0])
    parts = report.cost.parts
    assert parts == {"asymmetry": 12 * 2 * 15, "circulation": parts["circulation"], "spectrum": 26}
    assert sum(parts.values()) == report.cost.evaluations
    assert report.cost.evaluations == sum(level.evaluations for level in report.levels)
    assert f"Evaluations: {report.cost.evaluations} (asymmetry 360, " in shown.out
    assert report.protocol.samples == 12 and report.protocol.seed == 3
    assert report.field.files == {"mine.py": sha256("mine.py")}
    assert report.versions.keys() >= {"python", "torch", "numpy", "scipy"}
    # J = (turn − 1) / (1 + σ²) at all samples.
    asym = 2 * 132 * 0.1**2
    assert report.levels[0].asym.value == pytest.approx(asym / 1.01**2, rel=1e-4)
    assert report.levels[0].nasym.value == pytest.approx(asym / (2 * (12 + 1.32)), rel=1e-4)
    names = {path.name for path in (here / "out").iterdir()}
    assert names == {"audit.json", "audit.png", "audit.svg", "audit.pdf"}


def test_the_command_gives_what_the_library_does(here):
    assert in_process(*COMMAND, "--levels", "2", "--samples", "12") == 0
    sys.path.insert(0, str(here))
    try:
        import mine
    finally:
        sys.path.remove(str(here))
    field = qcsbm.Field(mine.score, schedule=qcsbm.VE(), name="mine:score")
    x = samples("floats.npy", field, 12, 0)
    times = qcsbm.Report.from_json("out/audit.json").levels
    report = qcsbm.audit(field, x, [level.t for level in times])
    written = json.loads((here / "out/audit.json").read_text())
    expected = json.loads(report.model_dump_json())
    for document in (written, expected):
        del document["cost"], document["versions"], document["field"]["files"]
        del document["protocol"]["threads"]
    assert written == expected


@pytest.mark.parametrize("cost, expected", [(lambda n: 1 / n, 5), (lambda n: n, 1)])
def test_as_many_threads_as_make_calls_faster(monkeypatch, cost, expected):
    clock = iter(range(100))
    monkeypatch.setattr(stage.time, "perf_counter", lambda: next(clock) / 1e9 + spent[0])
    monkeypatch.setattr(stage.os, "sched_getaffinity", lambda _: set(range(5)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    spent, before = [0.0], torch.get_num_threads()

    def evaluate():
        spent[0] += cost(torch.get_num_threads())

    with stage._arithmetic(evaluate):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == before
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with stage._arithmetic(evaluate):
        assert torch.get_num_threads() == 3
    # What is wrong with a model, the audit says.
    monkeypatch.delenv("OMP_NUM_THREADS")
    with stage._arithmetic(lambda: 1 / 0):
        assert torch.get_num_threads() == 1


def test_without_matplotlib_the_rest_is_written(here, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert in_process(*COMMAND, "--levels", "1") == 0
    assert "found no such package" in capsys.readouterr().err
    assert [path.name for path in (here / "out").iterdir()] == ["audit.json"]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--data", "gone.npy"], "gone.npy: found nothing there"),
        (["--data", "mine.py"], "mine.py: found the suffix '.py', expected .npy or .npz"),
        (["--data", "."], ".: found no images and no data.json"),
        (["--levels", "0"], "found '0', expected a positive number"),
        (["--levels", "0.1", "inf"], "found 'inf', expected a positive number"),
        (["--levels", "500"], "found 500 levels, expected at most 100; a level with so much noise"),
        (["--samples", "-3"], "found '-3', expected a positive whole number"),
        (["--out", "mine.py"], "--out: found the file mine.py, expected a folder"),
        (["--probes", "few"], "found 'few', expected a positive number or exact"),
        (["--schedule", "vee"], "schedule: found 'vee', expected one of"),
        (["--label", "3"], "mine:score: found the setting label"),
        (["--kind", "noise"], "invalid choice: 'noise'"),
    ],
)
def test_bad_arguments_are_one_sentence_and_leave_nothing(here, capsys, options, sentence):
    assert in_process(*COMMAND, *options) == 2
    message = capsys.readouterr().err
    assert sentence in message and "Traceback" not in message
    assert not (here / "out").exists()


def test_levels_without_a_schedule_are_refused(here, capsys):
    command = ("audit", "mine:score", "--data", "floats.npy", "--out", "out", "--levels", "3")
    assert in_process(*command) == 2
    assert "expected none for a field without a schedule" in capsys.readouterr().err


# Samples.

FIELD = qcsbm.Field(lambda x, t: x)
SIGNED = qcsbm.Field(lambda x, t: x, shape=(1, 4, 4), data_range=(-1.0, 1.0))


def test_bytes_are_mapped_to_the_range_of_the_model(here):
    images = np.load("bytes.npz")["images"]
    x = samples("bytes.npz", FIELD, 100, 0)
    assert x.dtype == torch.float32 and x.numpy() == pytest.approx(images / 255, abs=1e-6)
    x = samples("bytes.npz", SIGNED, 100, 0)
    assert x.numpy() == pytest.approx(images / 127.5 - 1, abs=1e-6)


def test_floats_stay_as_they_are_and_are_drawn_by_the_seed(here):
    all_of_them = np.load("floats.npy").astype(np.float32)
    assert np.array_equal(samples("floats.npy", SIGNED, 20, 0).numpy(), all_of_them)
    drawn = [samples("floats.npy", FIELD, 5, seed).numpy() for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    rows = [np.flatnonzero((all_of_them == sample).all((1, 2, 3))) for sample in drawn[0]]
    assert len(np.unique(rows)) == 5 and not np.array_equal(drawn[0], all_of_them[:5])


def test_folders_of_images_are_read_in_the_models_colours(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    x = samples(tmp_path, FIELD, 2, 0)
    assert x.numpy() == pytest.approx(np.stack([pixels.transpose(2, 0, 1) / 255] * 2), abs=1e-6)
    assert samples(tmp_path, SIGNED, 2, 0).shape == (2, 1, 4, 4)
    Image.fromarray(pixels[:3]).save(tmp_path / "c.png")
    with pytest.raises(BadInput, match=r"c.png: found an image of shape \(3, 3, 4\), expected"):
        samples(tmp_path, FIELD, 3, 0)
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(BadInput, match=r"c.png: found no image"):
        samples(tmp_path, FIELD, 3, 0)


def test_prepared_datasets_have_their_levels(inputs):
    x = samples(inputs / "data", FIELD, 10_000, 0)
    images = np.load(inputs / "data/test.npy")
    assert x.numpy() == pytest.approx(images / 16, abs=1e-6)


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros((2, 3), np.int64), np.zeros((0, 3)), np.array([["a"]])]
)
def test_arrays_that_are_no_samples_are_refused(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(BadInput, match=r"expected at least one sample, \(n, ...\)"):
        samples(tmp_path / "x.npy", FIELD, 2, 0)
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    with pytest.raises(BadInput, match="found arrays a, b, expected one of samples"):
        samples(tmp_path / "x.npz", FIELD, 2, 0)


ABSENT = (
    "PIL ase azula diffusers matplotlib pandas skimage sklearn snakemake tabulate threadpoolctl "
    "torchvision yaml"
)


def test_the_core_packages_are_enough(here):
    script = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT.split()!r}))
from qcsbm.cli import main
status = main({[*COMMAND, "--levels", "1"]!r})
status = status or main(["compare", "out", "out"])
sys.exit(status)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "qcsbm audit: Matplotlib: found no such package" in result.stderr
    assert "B against A: 3 same." in result.stdout
