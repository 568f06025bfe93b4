"""Measurements that are split over jobs: the same bytes, however many jobs there are."""

import json

import numpy as np
import pytest
from conftest import ROOT, in_process

from qcsbm.experiment import config, specification
from qcsbm.runtime import provenance, shards

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


def measure(stage, spec, inputs, folder, n):
    """Run ``stage`` in ``n`` shards and gather them; the folder with the two results."""
    options = ["--data", inputs / "data", "--checkpoint", inputs / "step60.safetensors"]
    files = [folder / f"{i}-of-{n}.npz" for i in range(1, n + 1)]
    records = [file.with_suffix(".json") for file in files]
    for file, record in zip(files, records, strict=True):
        arguments = [*options, "--shard", file.stem, "--out", file, "--record", record]
        assert in_process(stage, "--spec", spec.text(), *arguments) == 0
    gather = {
        "sample": ["gather_samples", "--data", inputs / "data", "--out"],
        "likelihood": ["gather_likelihood", "--out"],
        "asymmetry": ["gather_asymmetry", "--levels"],
    }[stage]
    result, record = folder / str(n) / "result", folder / str(n) / "record"
    parts = ["--shards", *files, "--records", *records]
    stage, *rest = gather
    arguments = [*rest, result, "--spec", spec.text(), *parts, "--record", record]
    assert in_process(stage, *arguments) == 0
    return result, provenance.read_record(record)


@pytest.mark.parametrize("stage", ["sample", "likelihood", "asymmetry"])
def test_results_do_not_depend_on_the_number_of_shards(stage, tiny, inputs, tmp_path):
    more = ("pc",) if stage == "sample" else ()
    spec = getattr(specification, stage)(tiny, *CELL, *more)
    result, record = measure(stage, spec, inputs, tmp_path, 1)
    for n in (2, 3, 5):
        other, other_record = measure(stage, spec, inputs, tmp_path, n)
        assert result.read_bytes() == other.read_bytes() != b""
        for key in record.keys() - set(provenance.VARYING):
            assert record[key] == other_record[key], key
        assert other_record["provenance"]["shards"] == n
        work = {"sample": "network_calls", "likelihood": "evaluations"}.get(stage)
        if work:
            assert other_record["cost"][work] == record["cost"][work] > 0
    if stage == "sample":
        assert np.load(result).shape == (10, 1, 8, 8)


def test_features_and_quality_do_not_depend_on_the_number_of_shards(
    tiny, inputs, tmp_path, monkeypatch
):
    monkeypatch.setattr("qcsbm.stages.features.BATCH_SIZE", 4)
    images = tmp_path / "images.npy"
    np.save(images, np.load(inputs / "data" / "test.npy")[:10])
    spec = specification.features(tiny, "efficientnet_lite0", "float32").text()
    options = ["--spec", spec, "--data", inputs / "data", "--images", images]
    quality = specification.quality(tiny, *CELL, "pc").text()
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


def test_shards_of_different_measurements_are_not_put_together(tiny, inputs, tmp_path, capsys):
    spec = specification.likelihood(tiny, *CELL)
    _, _ = measure("likelihood", spec, inputs, tmp_path, 2)
    other = json.loads((tmp_path / "2-of-2.json").read_text())
    other["protocol"]["rtol"] = 0.5
    (tmp_path / "2-of-2.json").write_text(json.dumps(other))
    arguments = ["--shards", tmp_path / "1-of-2.npz", tmp_path / "2-of-2.npz"]
    arguments += ["--records", tmp_path / "1-of-2.json", tmp_path / "2-of-2.json"]
    arguments += ["--spec", spec.text(), "--out", tmp_path / "out.npy"]
    capsys.readouterr()
    assert in_process("gather_likelihood", *arguments, "--record", tmp_path / "out.json") == 2
    message = capsys.readouterr().err
    assert "shard 2 of " in message and "expected" in message and len(message.splitlines()) == 1
    assert not (tmp_path / "out.npy").exists() and not (tmp_path / "out.json").exists()


def gathered(stage, output, tmp_path, **arrays):
    """Gather one shard of ``arrays``: exit status, record and output."""
    shard, record = tmp_path / "shard.npz", tmp_path / "shard.json"
    np.savez(shard, **arrays)
    spec = getattr(specification, stage)(config.read(ROOT / "config/ci.yaml"), "digits", "u", 3)
    with provenance.recorded(record, stage, spec, []):
        pass
    out, whole = tmp_path / "out", tmp_path / "whole.json"
    arguments = ["--spec", spec.text(), "--shards", shard, "--records", record, output, out]
    status = in_process(f"gather_{stage}", *arguments, "--record", whole)
    metrics = provenance.read_record(whole)["metrics"] if whole.exists() else []
    return status, {metric["name"]: metric for metric in metrics}, out


def test_a_single_image_has_a_value_and_no_standard_error(tmp_path):
    bits, nfe = np.array([2.5]), np.array([26])
    status, metrics, _ = gathered("likelihood", "--out", tmp_path, bits=bits, nfe=nfe)
    assert status == 0
    for name, value in (("nll", 2.5), ("nll_nfe", 26)):
        assert (metrics[name]["value"], metrics[name]["stderr"]) == (value, None)

    values = np.array([[[6.0], [0.25]], [[2.0], [0.75]]])  # (levels, 2, images)
    arrays = {"t": np.array([0.0, 0.5]), "sigma": np.array([0.1, 1.0]), "values": values}
    status, metrics, levels = gathered("asymmetry", "--levels", tmp_path, **arrays)
    assert status == 0
    for name, value in (("asym", 4.0), ("nasym", 0.5)):
        assert (metrics[name]["value"], metrics[name]["stderr"]) == (value, None)
    assert levels.read_text().splitlines() == [
        "t,sigma,asym,asym_stderr,nasym,nasym_stderr",
        "0.0,0.1,6.0,,0.25,",
        "0.5,1.0,2.0,,0.75,",
    ]


def test_several_images_have_the_standard_error_of_their_mean(tmp_path):
    bits, nfe = np.array([1.0, 2.0, 6.0]), np.array([20, 20, 26])
    _, metrics, _ = gathered("likelihood", "--out", tmp_path, bits=bits, nfe=nfe)
    # Deviations −2, −1, 3: variance 14 / 2, of the mean of three 7 / 3.
    assert metrics["nll"]["value"] == 3 and metrics["nll"]["n"] == 3
    assert metrics["nll"]["stderr"] == pytest.approx((7 / 3) ** 0.5, rel=1e-14)
    assert metrics["nll_nfe"]["stderr"] == pytest.approx(2.0, rel=1e-14)


def test_arrays_of_shards_that_do_not_fit_are_refused(tmp_path, capsys):
    status, _, _ = gathered("likelihood", "--out", tmp_path, bits=np.array(2.5), nfe=np.array([26]))
    message = capsys.readouterr().err
    assert status == 2 and len(message.splitlines()) == 1
    assert "shard.npz and the other shards: found bits that do not fit" in message
