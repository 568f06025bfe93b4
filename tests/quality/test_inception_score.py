import numpy as np
import pytest
from scipy.stats import chi2

from qcsbm.quality import inception_score as module
from qcsbm.quality.inception_score import inception_score


def one_hot(n, c, scale=1000.0):
    """Logits (n * c, c) of a classifier that is certain, with every class n times."""
    return scale * np.tile(np.eye(c), (n, 1))


def test_undecided_classifier_scores_one():
    assert inception_score(np.zeros((20, 7))) == pytest.approx((1, 0), abs=1e-14)
    # The same for every sample, but not uniform.
    logits = np.tile(np.random.default_rng(0).standard_normal(7), (20, 1))
    assert inception_score(logits) == pytest.approx((1, 0), abs=1e-14)


@pytest.mark.parametrize("c", [2, 10, 1000])
def test_certain_classifier_of_balanced_classes_scores_their_number(c):
    score, stderr = inception_score(one_hot(3, c))
    assert score == pytest.approx(c, rel=1e-12)
    assert stderr == pytest.approx(0, abs=1e-12 * c)


def test_two_samples_by_hand():
    # p(y|x) = (1, 3) / 4 and (3, 1) / 4, p(y) = (1, 1) / 2: both divergences are the same.
    logits = np.log([[1, 3], [3, 1]])
    divergence = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    assert inception_score(logits) == pytest.approx((np.exp(divergence), 0), abs=1e-14)


def test_standard_error_by_hand():
    # Three samples certain of class 0 and one of class 1: divergences log(4/3), thrice, and log 4.
    logits = 1000.0 * np.array([[1, 0], [1, 0], [1, 0], [0, 1]])
    divergences = np.log([4 / 3, 4 / 3, 4 / 3, 4])
    score = np.exp(divergences.mean())
    expected = (score, score * divergences.std(ddof=1) / 2)
    assert inception_score(logits) == pytest.approx(expected, rel=1e-12)


def test_score_ignores_a_constant_added_to_a_sample_s_logits():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 10))
    shifted = logits + rng.uniform(-1e4, 1e4, size=(50, 1))
    # A logit of 1e4 is known to 2e-12 in float64.
    assert inception_score(shifted) == pytest.approx(inception_score(logits), rel=1e-10)


def test_score_of_float32_logits_is_computed_in_float64():
    logits = 10 * np.random.default_rng(0).standard_normal((5000, 10)).astype(np.float32)
    assert inception_score(logits) == inception_score(logits.astype(np.float64))


def test_score_does_not_depend_on_how_many_samples_are_held_at_a_time(monkeypatch):
    logits = 3 * np.random.default_rng(0).standard_normal((300, 10)).astype(np.float32)
    expected = inception_score(logits)
    for block in (1, 7, 128):
        monkeypatch.setattr(module, "BLOCK", block)
        # The marginal is a sum of 300 positive terms in another order.
        assert inception_score(logits) == pytest.approx(expected, rel=300 * 1e-16)


def test_class_that_no_sample_is_given_does_not_matter():
    logits = np.random.default_rng(0).standard_normal((50, 3))
    # exp(-800) underflows.
    padded = np.pad(logits, ((0, 0), (0, 1)), constant_values=-800.0)
    assert inception_score(padded) == pytest.approx(inception_score(logits), rel=1e-12)


@pytest.mark.parametrize("sharpness", [1.0, 5.0])
def test_standard_error_is_the_spread_of_independent_draws(sharpness):
    rng = np.random.default_rng(0)
    n, repeats = 500, 400
    # Unequal classes: with equal ones the marginal could not contribute anyway.
    offset = np.array([2.0, 1.0, 0.0, 0.0, -1.0])
    draws = [
        inception_score(sharpness * rng.standard_normal((n, 5)) + offset) for _ in range(repeats)
    ]
    scores, errors = np.array(draws).T
    # (R - 1) s^2 / sigma^2 is chi-square for a normal statistic; 1e-4 on each side, and 2 % for
    # the terms of order 1 / N that a linearisation leaves out.
    low, high = np.sqrt(chi2.ppf([1e-4, 1 - 1e-4], repeats - 1) / (repeats - 1))
    ratio = scores.std(ddof=1) / np.sqrt(np.mean(errors**2))
    assert low - 0.02 < ratio < high + 0.02


def test_score_of_few_samples_and_many_classes_is_too_small():
    # Certain of one of C classes, all equally likely: the score of infinitely many samples is C.
    rng = np.random.default_rng(0)
    n, repeats = 512, 100
    few, many = (
        np.array([inception_score(1000.0 * np.eye(c)[rng.integers(c, size=n)]) for _ in range(r)])
        for c, r in ((10, repeats), (1000, 5))
    )
    # The entropy of n draws is too small by (C - 1) / 2n, up to higher orders (Miller, 1955).
    logarithms = np.log(few[:, 0])
    noise = logarithms.std(ddof=1) / np.sqrt(repeats)
    assert logarithms.mean() - np.log(10) == pytest.approx(-9 / (2 * n), abs=4 * noise + 1e-4)
    assert many[:, 0].max() < 450
    # No standard error says so.
    assert (many[:, 0] + 20 * many[:, 1] < 1000).all()
