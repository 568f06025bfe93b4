"""Measurements that are split over jobs: the same bytes, however many jobs there are."""

import json

import numpy as np
import pytest
import yaml
from conftest import ROOT, in_process

from qcsbm import checkpoint, config, provenance, shards, specification
from qcsbm.models import build

CELL = ("digits", "u", 0)


@pytest.mark.parametrize("batches", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 20])
def test_every_batch_belongs_to_one_shard_and_shards_are_in_order(n, batches):
    shares = [shards.share(f"{i}-of-{n}", batches) for i in range(1, n + 1)]
    assert [batch for share in shares for batch in share] == list(range(batches))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shard", ["0-of-2", "3-of-2", "1-of-0", "1of2", "-1-of-2", ""])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(ValueError, match=f"shard: found '{shard}', expected one such as"):
        shards.share(shard, 4)


@pytest.fixture(scope="module")
def experiment():
    """Three batches of everything, the last one not full."""
    document = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    document["defaults"]["samplers"] = {"pc": {"steps": 3, "snr": 0.16, "batch_size": 4}}
    document["defaults"]["likelihood"] = {
        "samples": 5,
        "rtol": 0.1,
        "atol": 0.1,
        "batch_size": 2,
    }
    digits = document["datasets"]["digits"]
    digits["quality"] = {"samples": 10, "extractor": "efficientnet_lite0"}
    digits["asymmetry"] = {
        "estimator": "probes",
        "probes": 2,
        "levels": 3,
        "samples": 3,
        "batch_size": 2,
    }
    return config.load(document, "test")


@pytest.fixture(scope="module")
def inputs(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    spec = specification.prepare(experiment, "digits")
    assert in_process("prepare", "--spec", json.dumps(spec), "--out", folder / "data") == 0
    spec = specification.train(experiment, *CELL, 60)
    model = build((1, 8, 8), **spec["model"], seed=1)
    weights = model.state_dict()
    ema = {name: tensor.clone() for name, tensor in weights.items()}
    state = checkpoint.TrainingState(60, weights, ema, {}, {}, spec)
    checkpoint.save(folder / "step60.safetensors", state)
    return folder


def measure(stage, spec, inputs, folder, n):
    """Run ``stage`` in ``n`` shards and gather them; the folder with the two results."""
    options = ["--data", inputs / "data", "--checkpoint", inputs / "step60.safetensors"]
    files = [folder / f"{i}-of-{n}.npz" for i in range(1, n + 1)]
    records = [file.with_suffix(".json") for file in files]
    for file, record in zip(files, records, strict=True):
        arguments = [*options, "--shard", file.stem, "--out", file, "--record", record]
        assert in_process(stage, "--spec", json.dumps(spec), *arguments) == 0
    gather = {
        "sample": ["gather_samples", "--data", inputs / "data", "--out"],
        "likelihood": ["gather_likelihood", "--out"],
        "asymmetry": ["gather_asymmetry", "--levels"],
    }[stage]
    result, record = folder / f"{n}.result", folder / f"{n}.record"
    parts = ["--shards", *files, "--records", *records]
    stage, *rest = gather
    arguments = [*rest, result, "--spec", json.dumps(spec), *parts, "--record", record]
    assert in_process(stage, *arguments) == 0
    return result, provenance.read_record(record)


@pytest.mark.parametrize("stage", ["sample", "likelihood", "asymmetry"])
def test_results_do_not_depend_on_the_number_of_shards(stage, experiment, inputs, tmp_path):
    more = ("pc",) if stage == "sample" else ()
    spec = getattr(specification, stage)(experiment, *CELL, *more)
    result, record = measure(stage, spec, inputs, tmp_path, 1)
    for n in (2, 3, 5):
        other, other_record = measure(stage, spec, inputs, tmp_path, n)
        assert result.read_bytes() == other.read_bytes()
        for key in record.keys() - set(provenance.VARYING):
            assert record[key] == other_record[key], key
        assert other_record["provenance"]["shards"] == n
        work = {"sample": "network_calls", "likelihood": "evaluations"}.get(stage)
        if work:
            assert other_record["cost"][work] == record["cost"][work] > 0
    if stage == "sample":
        assert np.load(result).shape == (10, 1, 8, 8)


def test_features_and_quality_do_not_depend_on_the_number_of_shards(
    experiment, inputs, tmp_path, monkeypatch
):
    monkeypatch.setattr("qcsbm.stages.features.BATCH_SIZE", 4)
    images = tmp_path / "images.npy"
    np.save(images, np.load(inputs / "data" / "test.npy")[:10])
    spec = json.dumps(specification.features(experiment, "efficientnet_lite0"))
    options = ["--spec", spec, "--data", inputs / "data", "--images", images]
    quality = json.dumps(specification.quality(experiment, *CELL, "pc"))
    found = []
    for n in (1, 2, 5):
        files = [tmp_path / f"{i}-of-{n}.npz" for i in range(1, n + 1)]
        for file in files:
            assert in_process("features", *options, "--shard", file.stem, "--out", file) == 0
        record = tmp_path / f"quality{n}.json"
        arguments = ["--samples", *files, "--reference", *files, "--record", record]
        assert in_process("quality", "--spec", quality, *arguments) == 0
        found.append(provenance.read_record(record)["metrics"])
    assert found[0] == found[1] == found[2]
    assert {metric["name"]: metric["value"] for metric in found[0]}["precision"] == 1


def test_shards_of_different_measurements_are_not_put_together(
    experiment, inputs, tmp_path, capsys
):
    spec = specification.likelihood(experiment, *CELL)
    _, _ = measure("likelihood", spec, inputs, tmp_path, 2)
    other = json.loads((tmp_path / "2-of-2.json").read_text())
    other["protocol"]["rtol"] = 0.5
    (tmp_path / "2-of-2.json").write_text(json.dumps(other))
    arguments = ["--shards", tmp_path / "1-of-2.npz", tmp_path / "2-of-2.npz"]
    arguments += ["--records", tmp_path / "1-of-2.json", tmp_path / "2-of-2.json"]
    arguments += ["--spec", json.dumps(spec), "--out", tmp_path / "out.npy"]
    capsys.readouterr()
    assert in_process("gather_likelihood", *arguments, "--record", tmp_path / "out.json") == 2
    message = capsys.readouterr().err
    assert "shard 2 of " in message and "expected" in message and len(message.splitlines()) == 1
    assert not (tmp_path / "out.npy").exists() and not (tmp_path / "out.json").exists()
