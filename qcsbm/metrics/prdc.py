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

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qcsbm.errors import BadInput

# Distances are computed in squares of this side; 50 000 × 50 000 of them would be 20 GB.
BLOCK = 2048


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
        BadInput: one of them has no k neighbours.
    """
    for name, features in (("real", real), ("fake", fake)):
        if len(features) <= k:
            raise BadInput(
                f"{name} features: found {len(features)}, expected more than k = {k} of them"
            )
    real_radius, fake_radius = _squared_radii(real, k), _squared_radii(fake, k)
    real_inside, fake_inside = np.zeros(len(real), dtype=bool), np.zeros(len(fake), dtype=bool)
    for rows in _blocks(real):
        for columns in _blocks(fake):
            squared = _squared_distances(real[rows], fake[columns])
            fake_inside[columns] |= (squared < real_radius[rows, None]).any(0)
            real_inside[rows] |= (squared < fake_radius[columns]).any(1)
    precision, recall = fake_inside.mean(), real_inside.mean()
    return PrecisionRecall(
        float(precision),
        float(recall),
        float(np.sqrt(precision * (1 - precision) / len(fake))),
        float(np.sqrt(recall * (1 - recall) / len(real))),
    )


def _squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of every feature to its k-th nearest neighbour, itself not counted; (N,)."""
    # The distance to itself, zero, is the smallest of the k + 1.
    nearest = np.full((len(features), k + 1), np.inf)
    blocks = list(_blocks(features))
    for i, rows in enumerate(blocks):
        for columns in blocks[i:]:
            squared = _squared_distances(features[rows], features[columns])
            nearest[rows] = _smallest(np.hstack([nearest[rows], squared]), k + 1)
            if columns != rows:
                nearest[columns] = _smallest(np.hstack([nearest[columns], squared.T]), k + 1)
    return nearest.max(1)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """‖x_i − y_j‖² in float64 of ``x`` (N, D) and ``y`` (M, D); (N, M)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    squared = x @ y.T
    squared *= -2
    squared += np.einsum("id,id->i", x, x)[:, None]
    squared += np.einsum("jd,jd->j", y, y)
    return squared


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` smallest of each row of ``values``, in any order."""
    return np.partition(values, count - 1, axis=1)[:, :count]


def _blocks(features: np.ndarray) -> Iterator[slice]:
    for start in range(0, len(features), BLOCK):
        yield slice(start, start + BLOCK)
