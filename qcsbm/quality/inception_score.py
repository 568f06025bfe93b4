r"""Inception score: how sure a classifier is of every sample, and how varied the classes are.

.. math:: IS = \exp\, E_x[KL(p(y|x) \,\|\, p(y))], \qquad p(y) = E_x[p(y|x)]

With class probabilities of another network than Inception it is called the class score.

References:
    Improved Techniques for Training GANs (Salimans et al., 2016); https://arxiv.org/abs/1606.03498
    A Note on the Inception Score (Barratt & Sharma, 2018), for the single split;
    https://arxiv.org/abs/1801.01973
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import log_softmax, logsumexp

# Samples whose probabilities are held at a time.
BLOCK = 2048


def inception_score(logits: np.ndarray) -> tuple[float, float]:
    """The score of ``logits`` (N, C) in one split, and its standard error.

    The error is that of a mean over samples: the divergence is stationary in p(y) at its own
    marginal, so the estimated marginal does not contribute to first order.
    """
    sums = [logsumexp(log_p, axis=0) for log_p in _log_probabilities(logits)]
    log_marginal = logsumexp(sums, axis=0) - np.log(len(logits))
    divergence = np.concatenate(
        [(np.exp(log_p) * (log_p - log_marginal)).sum(1) for log_p in _log_probabilities(logits)]
    )
    score = float(np.exp(divergence.mean()))
    return score, score * float(divergence.std(ddof=1) / np.sqrt(len(divergence)))


def _log_probabilities(logits: np.ndarray) -> Iterator[np.ndarray]:
    """log p(y|x) of ``logits`` (N, C), in float64 blocks of rows."""
    for start in range(0, len(logits), BLOCK):
        yield log_softmax(logits[start : start + BLOCK].astype(np.float64), axis=1)
