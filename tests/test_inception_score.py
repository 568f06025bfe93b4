"""The inception score on logits whose score is known."""

import numpy as np
import pytest

from qcsbm.metrics.inception_score import inception_score


def test_undecided_classifier_scores_one():
    assert inception_score(np.zeros((50, 10)))[0] == pytest.approx(1, abs=1e-12)


def test_sure_and_varied_classifier_scores_the_number_of_classes():
    logits = np.tile(1000 * np.eye(7), (5, 1))
    assert inception_score(logits) == pytest.approx((7, 0), abs=1e-9)


def test_two_samples_by_hand():
    p = np.array([[0.9, 0.1], [0.4, 0.6]])
    marginal = np.array([0.65, 0.35])
    divergence = (p * np.log(p / marginal)).sum(1)
    # Adding a constant to logits changes nothing.
    value, stderr = inception_score(np.log(p) + np.array([[3.0], [-2.0]]))
    assert value == pytest.approx(np.exp(divergence.mean()), rel=1e-12)
    assert stderr == pytest.approx(value * divergence.std(ddof=1) / np.sqrt(2), rel=1e-12)


def test_standard_error_is_the_spread_over_draws():
    rng = np.random.default_rng(0)
    draws, n = 400, 600
    results = [inception_score(2 * rng.normal(size=(n, 5))) for _ in range(draws)]
    spread = np.std([value for value, _ in results], ddof=1)
    # A standard deviation over 400 draws has a relative error of 1/√800; four of those.
    assert np.mean([e for _, e in results]) == pytest.approx(spread, rel=4 / np.sqrt(2 * draws))
