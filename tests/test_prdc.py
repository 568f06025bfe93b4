"""Improved precision and recall against the prdc package and constructed samples."""

import numpy as np
import prdc
import pytest

from qcsbm.metrics import prdc as ours
from qcsbm.metrics.prdc import precision_recall


@pytest.mark.parametrize(("n", "m", "d", "k"), [(60, 60, 2, 3), (200, 90, 8, 5), (50, 170, 30, 1)])
def test_same_features_give_the_values_of_prdc(n, m, d, k):
    rng = np.random.default_rng(n)
    real, fake = rng.normal(size=(n, d)), rng.normal(0.2, 0.9, size=(m, d))
    expected = prdc.compute_prdc(real, fake, nearest_k=k)
    result = precision_recall(real, fake, k)
    assert (result.precision, result.recall) == (expected["precision"], expected["recall"])
    assert 0 < result.precision < 1 and 0 < result.recall < 1


def test_chunks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(300, 4)), rng.normal(size=(200, 4))
    whole = precision_recall(real, fake)
    monkeypatch.setattr(ours, "WORKING_MEMORY_MIB", 0.01)
    assert precision_recall(real, fake) == whole


def test_mode_collapse_lowers_recall_and_not_precision():
    rng = np.random.default_rng(0)
    modes = np.array([[0.0, 0.0], [50.0, 0.0]])
    real = modes[np.arange(400) % 2] + rng.normal(size=(400, 2))
    collapsed = modes[0] + rng.normal(size=(400, 2))
    both = modes[np.arange(400) % 2] + rng.normal(size=(400, 2))
    lost, full = precision_recall(real, collapsed), precision_recall(real, both)
    assert lost.precision > 0.9 and full.precision > 0.9
    # Half of the real samples lie in the mode that is missing.
    assert lost.recall < 0.5 < 0.9 < full.recall


def test_samples_far_from_the_data_score_zero():
    rng = np.random.default_rng(0)
    result = precision_recall(rng.normal(size=(50, 3)), 100 + rng.normal(size=(50, 3)))
    assert (result.precision, result.recall) == (0, 0)


def test_standard_errors_are_binomial():
    rng = np.random.default_rng(0)
    r = precision_recall(rng.normal(size=(80, 5)), rng.normal(size=(60, 5)))
    assert r.precision_stderr == pytest.approx(np.sqrt(r.precision * (1 - r.precision) / 60))
    assert r.recall_stderr == pytest.approx(np.sqrt(r.recall * (1 - r.recall) / 80))


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="fake features: found 3, expected more than k = 3"):
        precision_recall(np.zeros((9, 2)), np.zeros((3, 2)))
