"""Improved precision and recall by nearest neighbours in feature space.

A sample's ball reaches to its k-th nearest neighbour among its own kind. Precision is the share of
generated samples inside (strictly) some real sample's ball, recall the share of real samples inside
some generated sample's ball.

References:
    Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al.,
    2019); https://arxiv.org/abs/1904.06991
    Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020), for the
    strict inequality; https://arxiv.org/abs/2002.09797
"""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import pairwise_distances_chunked

# Rows of distances that are held at a time; 50 000 × 50 000 of them would be 20 GB.
WORKING_MEMORY_MIB = 256


@dataclass(frozen=True)
class PrecisionRecall:
    """Both shares, and their binomial standard errors with the other side's balls held fixed."""

    precision: float
    recall: float
    precision_stderr: float
    recall_stderr: float


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Precision and recall of ``fake`` (M, D) against ``real`` (N, D) features.

    Raises:
        ValueError: one of them has no k neighbours.
    """
    for name, features in (("real", real), ("fake", fake)):
        if len(features) <= k:
            raise ValueError(
                f"{name} features: found {len(features)}, expected more than k = {k} of them"
            )
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    real_radius, fake_radius = _radii(real, k), _radii(fake, k)
    fake_inside = np.zeros(len(fake), dtype=bool)
    real_inside = []
    start = 0
    for distances in _distances(real, fake):
        radius = real_radius[start : start + len(distances), None]
        fake_inside |= (distances < radius).any(0)
        real_inside.append((distances < fake_radius).any(1))
        start += len(distances)
    precision, recall = fake_inside.mean(), np.concatenate(real_inside).mean()
    return PrecisionRecall(
        float(precision),
        float(recall),
        float(np.sqrt(precision * (1 - precision) / len(fake))),
        float(np.sqrt(recall * (1 - recall) / len(real))),
    )


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Distance of every feature to its k-th nearest neighbour, itself not counted; (N,)."""
    # The distance to itself, zero, comes first; a view of the column would keep the whole matrix.
    return np.concatenate(
        [
            np.partition(distances, k, axis=1)[:, k].copy()
            for distances in _distances(features, features)
        ]
    )


def _distances(x: np.ndarray, y: np.ndarray):
    return pairwise_distances_chunked(x, y, working_memory=WORKING_MEMORY_MIB)
