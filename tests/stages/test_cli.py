"""The command line: one sentence and an exit status for whatever goes wrong."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import in_process, preparing, score_model

from qcsbm import cli
from qcsbm.adapters.published import published_names
from qcsbm.experiment import config, specification
from qcsbm.score.models import build
from qcsbm.training import checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    spec = preparing({"source": "digits", "test": 360})
    assert in_process("prepare", "--spec", spec, "--out", folder) == 0
    return folder


def test_help_names_tools_first_and_every_stage_apart():
    command = [sys.executable, "-m", "qcsbm", "--help"]
    environment = {**os.environ, "COLUMNS": "80"}
    printed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    ).stdout
    assert max(map(len, printed.splitlines())) <= 80
    tools, _, stages = printed.partition("\nstages, which ")
    for found, names in ((tools, cli.TOOLS), (stages, cli.STAGES)):
        lines = [line.split() for line in found.splitlines() if line.startswith("  ")]
        listed = [words[0] for words in lines if words[0] in cli.TOOLS | cli.STAGES]
        assert listed == list(names)


def test_nothing_stands_before_the_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--", "status", "--configfile", "config/ci.yaml"])
    assert capsys.readouterr().err.startswith("usage: qcsbm")


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
        (["prepare", "--spec", "[]", "--out", "x"], "expected: input should be an object"),
        (["gather_records", "--records", "gone.json", "--spec", "{}", "--out", "x"], "gone.json"),
    ],
)
def test_wrong_arguments_are_refused(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert in_process(*arguments) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_damaged_input_file_is_one_sentence_and_leaves_nothing(tmp_path, capsys):
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    arguments = [
        "gather_records",
        "--spec",
        specification.gather_records(config.read(ROOT / "config/ci.yaml")).text(),
        "--records",
        broken,
        "--out",
        tmp_path / "out.csv",
    ]
    assert in_process(*arguments) == 2
    assert capsys.readouterr().err == (
        f"qcsbm gather_records: {broken}: found no record of a stage, expected its JSON\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["broken.json"]


def test_images_of_another_kind_are_refused(data, tmp_path, capsys):
    wrong = tmp_path / "images.npy"
    np.save(wrong, np.zeros((3, 8, 8)))
    spec = json.dumps({"version": 1, "protocol": {"extractor": "efficientnet_lite0"}})
    status = in_process(
        "features",
        "--spec",
        spec,
        "--data",
        data,
        "--images",
        wrong,
        "--shard",
        "1-of-1",
        "--out",
        tmp_path / "f.npz",
    )
    assert status == 2
    said = capsys.readouterr().err
    assert "images.npy: found float64 of shape (3, 8, 8), expected uint8 images" in said
    assert not (tmp_path / "f.npz").exists()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model of the ci tier and, in the published layout, the file that has its weights."""
    experiment = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    digits = experiment["datasets"]["digits"]
    model = build((1, 8, 8), score_model("score", False, digits["network"], digits["sde"]), seed=0)
    state = model.network.state_dict()
    contents = {"model": {"sigmas": torch.ones(3)}, "ema": {"num_updates": 60}}
    for ours, name in published_names(model.network).items():
        square = name.endswith(".W") and state[ours].dim() == 4
        contents["model"][name] = state[ours][..., 0, 0].T if square else state[ours]
    trained = [name for name in contents["model"] if name not in ("sigmas", "all_modules.0.W")]
    contents["ema"]["shadow_params"] = [contents["model"][name] / 2 for name in trained]
    moments = {
        number: {"exp_avg": contents["model"][name] / 3, "exp_avg_sq": contents["model"][name] ** 2}
        for number, name in enumerate(trained, start=1)
    }
    contents["optimizer"] = {"state": moments, "param_groups": []}
    path = tmp_path_factory.mktemp("published") / "checkpoint_60.pth"
    torch.save(contents, path)
    return model, path


CELL = ["--configfile", ROOT / "config/ci.yaml", "--dataset", "digits", "--method", "u"]


def test_imported_checkpoint_has_both_weights_and_a_record_of_its_origin(published, tmp_path):
    model, path = published
    assert in_process("import-checkpoint", path, "--out", tmp_path, *CELL) == 0
    assert {file.name for file in tmp_path.iterdir()} == {
        "checkpoint.safetensors",
        "checkpoint.json",
    }
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for weights, factor in (("raw", 1.0), ("ema", 0.5)):
        # The model is that of other tests, too.
        fresh = copy.deepcopy(model)
        loaded = checkpoint.load_weights(fresh, tmp_path / "checkpoint.safetensors", weights)
        for name, parameter in loaded.named_parameters():
            assert torch.equal(parameter, factor * expected[name])
    state = checkpoint.load(tmp_path / "checkpoint.safetensors", step=60)
    assert set(state.exp_avg) == {name for name, _ in model.named_parameters()}
    for name, moment in state.exp_avg.items():
        assert torch.equal(moment, expected[name] / 3)
        assert torch.equal(state.exp_avg_sq[name], expected[name] ** 2)
    record = json.loads((tmp_path / "checkpoint.json").read_text())
    assert record["inputs"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    assert record["protocol"]["step"] == 60 and record["protocol"]["converted_from"] == []
    assert record["protocol"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["specification"]["model"]["network"]["nf"] == 8


def test_checkpoint_in_half_precision_is_converted_with_a_note(published, tmp_path, caplog):
    model, path = published
    contents = torch.load(path, weights_only=True)
    contents["model"] = {name: t.half() for name, t in contents["model"].items()}
    torch.save(contents, tmp_path / "half.pth")
    out = tmp_path / "out"
    assert in_process("import-checkpoint", tmp_path / "half.pth", "--out", out, *CELL) == 0
    assert "half.pth: found tensors of float16, converted them to float32" in caplog.text
    record = json.loads((out / "checkpoint.json").read_text())
    assert record["protocol"]["converted_from"] == ["float16"]
    # What every later job does with it.
    state = checkpoint.load(out / "checkpoint.safetensors", step=60)
    fresh = copy.deepcopy(model).requires_grad_()
    checkpoint.require_fit(state, fresh, "it")
    loaded = checkpoint.load_weights(fresh, out / "checkpoint.safetensors", "raw")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())


@pytest.mark.parametrize(
    "cell, sentence",
    [
        (["--dataset", "mnist"], "dataset: found 'mnist', expected one of digits, patches"),
        (["--method", "v"], "method: found 'v', expected one of c, u, qc, qcplus"),
        (["--method", "c"], "method: found 'c', expected one with parameterisation 'score'"),
        (["--dataset", "patches"], "model does not fit the network: "),
        (["--configfile", "gone.yaml"], "gone.yaml"),
    ],
)
def test_checkpoint_of_another_cell_is_not_imported(published, cell, sentence, tmp_path, capsys):
    arguments = ["import-checkpoint", published[1], "--out", tmp_path / "out", *CELL, *cell]
    assert in_process(*arguments) == 2
    message = capsys.readouterr().err
    assert sentence in message and len(message.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_published_network_is_not_imported_for_another_sde(published, tmp_path, capsys):
    document = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    document["datasets"]["digits"]["sde"] = {"type": "vp", "beta_min": 0.1, "beta_max": 20.0}
    (tmp_path / "vp.yaml").write_text(yaml.safe_dump(document))
    arguments = ["import-checkpoint", published[1], "--out", tmp_path / "out", *CELL]
    assert in_process(*arguments, "--configfile", tmp_path / "vp.yaml") == 2
    sentence = "method: found 'u' with an SDE of type 'vp', expected one of type 've'"
    assert sentence in capsys.readouterr().err


def test_shape_that_only_prepared_data_know_is_asked_for(published, data, tmp_path, capsys):
    experiment = (ROOT / "config/ci.yaml").read_text()
    source = "{source: digits, test: 360}"
    assert source in experiment
    config = tmp_path / "config.yaml"
    config.write_text(experiment.replace(source, "{source: idx, name: digits}"))
    arguments = ["import-checkpoint", published[1], "--out", tmp_path / "out", *CELL]
    arguments += ["--configfile", config]
    assert in_process(*arguments) == 2
    message = capsys.readouterr().err
    assert "expected --data with the folder of the prepared dataset" in message
    assert in_process(*arguments, "--data", data) == 0


def test_description_of_the_paper_network_counts_as_published(capsys):
    assert in_process("describe", "--dataset", "cifar10", "--method", "u") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 107_586_947
    assert facts["state_dict_entries"] == 964
    assert facts["dataset"] == "cifar10" and facts["method"] == "u"
    assert facts["steps"] == 700_000 and facts["checkpoints"] == [600_000]
    assert facts["samplers"]["pc"]["snr"] == 0.16 and facts["samplers"]["ode"]["rtol"] == 5e-5
    assert facts["network"]["num_res_blocks"] == 8
    assert facts["training"]["batch_size"] == 128
    assert facts["regulariser"] is None
    assert facts["asymmetry"]["estimator"] == "trace"
    assert facts["likelihood"]["weights"] == "raw" and facts["quality"]["weights"] == "ema"


def test_description_is_that_of_the_cell(monkeypatch, capsys):
    arguments = ["describe", "--dataset", "svhn", "--method", "qc_k16"]
    assert in_process(*arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["regulariser"]["probes"] == 16 and facts["regulariser"]["weight"] == 1e-4
    assert facts["training"]["batch_size"] == 8 and facts["steps"] == 400_000
    assert facts["init_from"]["step"] == 300_000


@pytest.mark.parametrize("name", ["dataset", "method"])
def test_nothing_is_described_under_a_bad_name(name, monkeypatch, capsys):
    assert in_process("describe", f"--{name}", "ghost") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"qcsbm describe: {name}: found 'ghost', expected one of ")
    assert len(printed.err.splitlines()) == 1
