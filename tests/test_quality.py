"""The stage that compares samples with published statistics instead of a split's features."""

import json

import numpy as np
import pytest
from conftest import in_process

from qcsbm import feature_file, provenance
from qcsbm.files import sha256
from qcsbm.metrics.frechet import feature_statistics, frechet_distance

SPEC = {
    "version": 1,
    "dataset": "digits",
    "method": "u",
    "seed": 0,
    "protocol": {"extractor": "inception", "neighbours": 3},
}


@pytest.fixture
def features(tmp_path):
    draws = np.random.default_rng(0)
    arrays = {name: draws.normal(size=(40, 6)).astype(np.float32) for name in ("samples", "real")}
    for name, array in arrays.items():
        whole = feature_file.Features(array, array[:, :3], "extractor", name)
        feature_file.write(tmp_path / f"{name}.npz", whole)
    return arrays


def quality(folder, statistics):
    arguments = ["--samples", folder / "samples.npz", "--reference", folder / "real.npz"]
    arguments += ["--statistics", statistics, "--record", folder / "quality.json"]
    return in_process("quality", "--spec", json.dumps(SPEC), *arguments)


def test_distance_is_that_to_the_published_statistics(features, tmp_path):
    mu, sigma = np.arange(6.0), np.diag(np.arange(1.0, 7.0))
    np.savez(tmp_path / "published.npz", mu=mu, sigma=sigma)
    assert quality(tmp_path, tmp_path / "published.npz") == 0
    record = provenance.read_record(tmp_path / "quality.json")
    values = {metric["name"]: metric["value"] for metric in record["metrics"]}
    found = feature_statistics(features["samples"])
    expected = frechet_distance(found, type(found)(mu, sigma))
    assert values["fid"] == pytest.approx(expected, rel=1e-9)
    # It is far from the distance to the split, which is a draw like the samples.
    assert values["fid"] > 10 * frechet_distance(found, feature_statistics(features["real"]))
    assert record["protocol"]["statistics_sha256"] == sha256(tmp_path / "published.npz")


def test_distance_to_published_features_says_of_how_many_images(features, tmp_path):
    np.savez(tmp_path / "published.npz", pool_3=features["real"][:30] + 2)
    assert quality(tmp_path, tmp_path / "published.npz") == 0
    record = provenance.read_record(tmp_path / "quality.json")
    values = {metric["name"]: metric["value"] for metric in record["metrics"]}
    statistics = [feature_statistics(x) for x in (features["samples"], features["real"][:30] + 2)]
    assert values["fid"] == pytest.approx(frechet_distance(*statistics), rel=1e-9)
    assert record["protocol"]["statistics_n"] == 30


def test_statistics_of_other_features_are_refused(features, tmp_path, capsys):
    np.savez(tmp_path / "published.npz", mu=np.zeros(5), sigma=np.eye(5))
    assert quality(tmp_path, tmp_path / "published.npz") == 2
    assert "published.npz: found statistics of 5 features, expected 6" in capsys.readouterr().err
    assert not (tmp_path / "quality.json").exists()
