"""The command line: one sentence and an exit status for whatever goes wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def qcsbm(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "qcsbm", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    spec = json.dumps({"version": 1, "data": {"source": "digits", "test": 360}})
    assert qcsbm("prepare", "--spec", spec, "--out", folder).returncode == 0
    return folder


def test_help_names_every_stage():
    output = qcsbm("--help").stdout
    for stage in ("prepare", "train", "sample", "quality", "likelihood", "asymmetry", "table"):
        assert stage in output


def test_prepared_digits_are_those_of_scikit_learn(data):
    from sklearn.datasets import load_digits

    description = json.loads((data / "data.json").read_text())
    assert description["shape"] == [1, 8, 8] and description["levels"] == 17
    assert description["train"]["n"] == 1437 and description["test"]["n"] == 360
    images = np.concatenate([np.load(data / f"{split}.npy") for split in ("train", "test")])
    ours = sorted(image.tobytes() for image in images)
    theirs = sorted(image.tobytes() for image in load_digits().images.astype(np.uint8))
    assert ours == theirs


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["bogus"], "invalid choice: 'bogus'"),
        (["prepare", "--spec", "{", "--out", "x"], "found no JSON"),
        (["prepare", "--spec", "[]", "--out", "x"], "expected a JSON object"),
        (["metrics", "--spec", "{}", "--records", "gone.json", "--out", "x"], "gone.json"),
    ],
)
def test_wrong_arguments_are_refused(arguments, sentence, tmp_path):
    result = qcsbm(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_damaged_input_file_is_one_sentence_and_leaves_nothing(data, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    arguments = ["metrics", "--spec", "{}", "--records", broken, "--out", tmp_path / "out.csv"]
    result = qcsbm(*arguments)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == (
        f"qcsbm metrics: {broken}: found no record of a stage, expected its JSON"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["broken.json"]


def test_images_of_another_kind_are_refused(data, tmp_path):
    wrong = tmp_path / "images.npy"
    np.save(wrong, np.zeros((3, 8, 8)))
    spec = json.dumps({"version": 1, "protocol": {"extractor": "efficientnet_lite0"}})
    result = qcsbm(
        "features", "--spec", spec, "--data", data, "--images", wrong, "--out", tmp_path / "f.npz"
    )
    assert result.returncode == 2
    assert "images.npy: found float64 of shape (3, 8, 8), expected uint8 images" in result.stderr
    assert not (tmp_path / "f.npz").exists()
