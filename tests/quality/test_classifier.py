"""The stage that trains the classifier, and the way of its accuracy into the tables."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT, expecting, in_process
from scipy.stats import binomtest

from qcsbm.data import splits
from qcsbm.data.splits import Split, Splits
from qcsbm.experiment import config, specification
from qcsbm.quality import classification
from qcsbm.runtime import provenance

EXPERIMENT = config.read(ROOT / "config/ci.yaml")
CELL = ("digits", "u", 0, "pc")


def halves(n, seed, labels=None):
    """``n`` noisy images of which one half or the other is bright, as their label says."""
    draws = np.random.default_rng(seed)
    which = draws.integers(0, 2, n)
    images = draws.integers(0, 10, (n, 1, 8, 8))
    for image, half in zip(images, which, strict=True):
        image[0, :, 4 * half : 4 * half + 4] += 5
    return Split(images.astype(np.uint8), which if labels is None else labels)


@pytest.fixture
def run(tmp_path):
    """Train on the first split and try the classifier on the second; the exit status."""

    def stage(train, test):
        splits.write(tmp_path / "data", Splits(train, test, levels=17))
        spec = {"version": 1, "dataset": "digits", "protocol": {"epochs": 2}}
        return in_process(
            *("classifier", "--spec", json.dumps(spec), "--data", tmp_path / "data"),
            *("--out", tmp_path / "weights", "--record", tmp_path / "record"),
        )

    return stage


def test_classifier_learns_from_the_training_split_and_is_tried_on_the_test_split(run, tmp_path):
    # Of the test images, a quarter has the other label: no classifier knows which.
    test = halves(80, 1)
    test.labels[:20] = 1 - test.labels[:20]
    train = halves(200, 0)
    assert run(train, test) == 0
    before = torch.random.get_rng_state()
    expected = classification.train_classifier(train.images, train.labels, 17, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    found, share = classification.load(tmp_path / "weights")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert classification.accuracy(expected, train.images, train.labels, 17) == 1
    assert share == 0.75
    record = provenance.read_record(tmp_path / "record")
    stderr = np.sqrt(0.75 * 0.25 / 80)
    assert record["metrics"] == [
        {"name": "accuracy", "value": 0.75, "stderr": stderr, "n": 80, "unit": "1"}
    ]


@pytest.mark.parametrize(
    "train, test, sentence",
    [
        # Labels of chance; a test split of which the most frequent class is all; too few of it.
        (
            halves(200, 0, np.random.default_rng(2).integers(0, 2, 200)),
            halves(80, 1),
            "expected an interval above 55.0%, the share of the most frequent class",
        ),
        (
            halves(200, 0),
            halves(80, 1, np.zeros(80, np.int64)),
            "expected an interval above 100.0%",
        ),
        (
            halves(200, 0),
            halves(4, 1),
            "recognises 100.0% of 4 test images (95 % interval from 39.",
        ),
        (halves(9, 0, np.ones(9, np.int64)), halves(9, 1), "labels: found 1 for every image"),
        (halves(9, 0, np.full(9, -1)), halves(9, 1), "labels: found 9 images without one"),
    ],
)
def test_what_has_not_learnt_is_no_extractor(run, tmp_path, capsys, train, test, sentence):
    assert run(train, test) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and sentence in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("n", [1, 2, 10, 60])
@pytest.mark.parametrize("frequent", [0.2, 0.5, 0.9, 1.0])
def test_skill_is_an_exact_interval_above_chance(n, frequent):
    most = max(1, round(frequent * n))
    # The most frequent label; all others are different.
    labels = np.r_[np.full(most, 7), np.arange(10, 10 + n - most)]
    np.random.default_rng(0).shuffle(labels)
    for hits in range(n + 1):
        skilled = binomtest(hits, n).proportion_ci(0.95, method="exact").low > most / n
        try:
            classification.require_skill(hits / n, labels)
            assert skilled, hits
        except ValueError:
            assert not skilled, hits


@pytest.mark.parametrize("extractor", ["classifier", "efficientnet_lite0"])
def test_accuracy_of_the_classifier_stands_below_the_table(run, tmp_path, extractor):
    assert run(halves(200, 0), halves(80, 1)) == 0
    share = classification.load(tmp_path / "weights")[1]
    assert 0.8 < share <= 1
    spec = specification.features(EXPERIMENT, extractor, "float32").text()
    weights = ["--weights", tmp_path / "weights"] if extractor == "classifier" else []
    # The second shard is empty.
    shards = [tmp_path / f"{i}-of-2.npz" for i in (1, 2)]
    for shard in shards:
        images = ["--images", tmp_path / "data/test.npy", "--shard", shard.stem, *weights]
        options = ["--spec", spec, "--data", tmp_path / "data", *images, "--out", shard]
        assert in_process("features", *options) == 0
    document = specification.quality(EXPERIMENT, *CELL).document()
    document["protocol"]["extractor"] = extractor
    options = ["--samples", *shards, "--reference", *shards, "--record", tmp_path / "quality"]
    assert in_process("quality", "--spec", json.dumps(document), *options) == 0
    record = provenance.read_record(tmp_path / "quality")
    protocol = record["protocol"]
    assert protocol.get("extractor_accuracy") == (share if weights else None)
    spec = json.dumps(specification.table(EXPERIMENT, "table3").document() | expecting([record]))
    options = ["--records", tmp_path / "quality", "--out", tmp_path / "table"]
    assert in_process("table", "--spec", spec, *options) == 0
    facts = f"extractor accuracy {share:g}, precision float32, reference train"
    note = f"extractor classifier, {facts}"
    assert (note in (tmp_path / "table.md").read_text()) == bool(weights)
