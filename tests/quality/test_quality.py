"""The stage that compares samples with a split's features and with published statistics."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, in_process

from qcsbm.experiment import config, specification
from qcsbm.quality import feature_file
from qcsbm.quality.frechet import feature_statistics, frechet_distance, frechet_estimate
from qcsbm.quality.inception_score import inception_score
from qcsbm.quality.kernel_distance import kernel_distance
from qcsbm.quality.prdc import prdc
from qcsbm.runtime import provenance
from qcsbm.runtime.files import sha256

PAPER = config.read(ROOT / "config/paper.yaml")
SPEC = specification.quality(PAPER, "cifar10", "u", 0, "pc")


@pytest.fixture
def features(tmp_path):
    draws = np.random.default_rng(0)
    arrays = {name: draws.normal(size=(40, 6)).astype(np.float32) for name in ("samples", "real")}
    for name, array in arrays.items():
        whole = feature_file.Features(array, array[:, :3], "extractor", name)
        feature_file.write(tmp_path / f"{name}.npz", whole)
    return arrays


def arguments(folder):
    files = ["--samples", folder / "samples.npz", "--reference", folder / "real.npz"]
    return ["quality", "--spec", SPEC.text(), *files, "--record", folder / "quality.json"]


def quality(folder, statistics):
    return in_process(*arguments(folder), "--statistics", statistics)


def metrics(folder):
    record = provenance.read_record(folder / "quality.json")
    return {metric["name"]: metric for metric in record["metrics"]}


def test_all_metrics_are_those_of_the_features_with_their_errors(features, tmp_path):
    assert in_process(*arguments(tmp_path)) == 0
    found = metrics(tmp_path)
    samples, real = features["samples"], features["real"]
    frechet = frechet_estimate(samples, feature_statistics(real))
    expected = {
        "fid": (frechet.distance, frechet.stderr),
        "fid_infinity": (frechet.infinity, frechet.infinity_stderr),
        "kid": kernel_distance(samples, real),
        "is": inception_score(samples[:, :3]),
        **prdc(real, samples, k=3)._asdict(),
    }
    assert {name: (m["value"], m["stderr"]) for name, m in found.items()} == expected
    # Errors are those over the draw of the samples.
    assert {m["n"] for m in found.values()} == {40}
    assert {m["unit"] for m in found.values()} == {"1"}


SCRIPT = """
import json, sys
from threadpoolctl import threadpool_info
from qcsbm import cli
assert cli.main(sys.argv[1:]) == 0
print(json.dumps([library["num_threads"] for library in threadpool_info()]))
"""


def test_one_thread_computes_everything_however_many_there_are(tmp_path):
    draws = np.random.default_rng(0)
    for name, n in (("samples", 600), ("real", 500)):
        array = draws.normal(size=(n, 300)).astype(np.float32)
        whole = feature_file.Features(array, array[:, :3], "extractor", name)
        feature_file.write(tmp_path / f"{name}.npz", whole)
    found = []
    for threads in ("1", "2"):
        variables = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        command = [sys.executable, "-c", SCRIPT, *map(str, arguments(tmp_path))]
        result = subprocess.run(
            command,
            env={**os.environ, **dict.fromkeys(variables, threads)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        libraries = json.loads(result.stdout)
        assert libraries and set(libraries) == {1}
        found.append(metrics(tmp_path))
    assert found[0] == found[1]


def test_distance_is_that_to_the_published_statistics(features, tmp_path):
    mu, sigma = np.arange(6.0), np.diag(np.arange(1.0, 7.0))
    np.savez(tmp_path / "published.npz", mu=mu, sigma=sigma)
    assert quality(tmp_path, tmp_path / "published.npz") == 0
    found = feature_statistics(features["samples"])
    expected = frechet_distance(found, type(found)(mu, sigma))
    value = metrics(tmp_path)["fid"]["value"]
    assert value == pytest.approx(expected, rel=1e-9)
    # It is far from the distance to the split, which is a draw like the samples.
    assert value > 10 * frechet_distance(found, feature_statistics(features["real"]))
    record = provenance.read_record(tmp_path / "quality.json")
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
