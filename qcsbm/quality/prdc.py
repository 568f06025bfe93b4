"""Improved precision and recall by nearest neighbours in feature space.

A sample's ball reaches to its k-th nearest neighbour among its own kind. Precision is the share of
generated samples inside (strictly) some real sample's ball, recall the share of real samples inside
some generated sample's ball.

References:
    Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al.,
    2019); https://arxiv.org/abs/1904.06991
    Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020), for the
    strict inequality; https://arxiv.org/abs/2002.09797
    Large Sample Confidence Regions Based on Subsamples under Minimal Assumptions (Politis & Romano,
    1994), for recall's standard error
"""

from dataclasses import dataclass

import numpy as np

from qcsbm.quality.distances import approximate, blocks, exact, nearest
from qcsbm.quality.order import by_content
from qcsbm.runtime.errors import BadInput

# Ways to halve the generated samples. With a quarter as many, the estimated variance would vary one
# and a half times as much from draw to draw.
HALVINGS = 100


@dataclass(frozen=True)
class PrecisionRecall:
    """Both shares, and their standard errors over the draw of the generated samples.

    The real samples are held fixed; if they were drawn too, the errors would be larger.
    ``recall_stderr`` is None for fewer than 2 (k + 1) generated samples.
    """

    precision: float
    recall: float
    precision_stderr: float
    recall_stderr: float | None


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
    real_radius = nearest(real, k)[0][:, -1]
    halves = _Halves(fake, k, len(real))
    fake_inside, real_inside = np.zeros(len(fake), dtype=bool), np.zeros(len(real), dtype=bool)
    for rows in blocks(len(real)):
        for columns in blocks(len(fake)):
            squared, error = approximate(real[rows], fake[columns])
            x, y = real[rows], fake[columns]
            fake_inside[columns] |= _inside(
                y, x, squared.T, error, real_radius[rows], ~fake_inside[columns]
            )
            real_inside[rows] |= _inside(
                x, y, squared, error, halves.radius[columns], ~real_inside[rows]
            )
            halves.cover(rows, columns, squared, error)
    precision, recall = float(fake_inside.mean()), float(real_inside.mean())
    precision_stderr = float(np.sqrt(precision * (1 - precision) / len(fake)))
    return PrecisionRecall(precision, recall, precision_stderr, halves.recall_stderr())


def _inside(
    points: np.ndarray,
    centres: np.ndarray,
    squared: np.ndarray,
    error: float,
    radius: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:
    """Which of ``points`` (N, D), of those ``wanted`` (N,), are inside a ball around ``centres``.

    The balls (M, D) have the squared ``radius`` (M,); ``squared`` (N, M) are distances that may be
    wrong by ``error``.
    """
    # Nothing is inside a ball of radius 0.
    limit = np.where(radius > 0, radius + error, -np.inf)
    i, j = np.nonzero((squared < limit) & wanted[:, None])
    surely = squared[i, j] < radius[j] - error
    inside = np.zeros(len(points), dtype=bool)
    inside[i[surely]] = True
    i, j = i[~inside[i]], j[~inside[i]]
    inside[i[exact(points, centres, i, j) < radius[j]]] = True
    return inside


class _Halves:
    r"""Recall's standard error, from that of random halves A and B of the generated samples.

    Against N/2 of the N real ones, the recall of a half has twice the variance that the recall of
    all M has against N, since everything keeps its proportions; (r_A − r_B)² / 2 estimates it. With
    δ_i = [i inside a ball of A] − [i inside a ball of B], the mean over the choices of N/2 is

    .. math:: \hat σ^2 = \tfrac14 (\bar δ^2 + s_δ^2 / N)

    and `HALVINGS` of the samples are averaged. A bootstrap would repeat samples, which shrinks
    their balls; leaving out one at a time overestimates, as balls overlap.
    """

    def __init__(self, fake: np.ndarray, k: int, real: int):
        """Halve ``fake`` (M, D), by content rather than position, for ``real`` real samples."""
        m = len(fake)
        squared, near = nearest(fake, min(8 * (k + 1), m - 1))
        self.radius = squared[:, k - 1]
        halvings = HALVINGS if m >= 2 * (k + 1) else 0
        self.half = np.empty((halvings, m), dtype=np.int8)
        self.radii = np.empty((halvings, m))
        order, draws = by_content(fake), np.random.default_rng(0)
        for half, radius in zip(self.half, self.radii, strict=True):
            half[order] = draws.permutation(m) % 2
            found = (half[near] == half[:, None]).cumsum(1) >= k
            # Eight times as many as needed: once in 100 000 fewer than k of them are in the half.
            found[:, -1] = True
            radius[:] = squared[np.arange(m), found.argmax(1)]
        self.covered = np.zeros((halvings, 2, real), dtype=bool)

    def cover(self, rows: slice, columns: slice, squared: np.ndarray, error: float) -> None:
        """Note which real samples ``rows`` are inside balls of the generated ones ``columns``."""
        if not len(self.half):
            return
        covered, radii = self.covered[:, :, rows], self.radii[:, columns]
        pending = np.invert(covered.all((0, 1)))
        i, j = np.nonzero((squared < radii.max(0)) & pending[:, None])
        distances = squared[i, j] + error
        for p, half in enumerate(self.half[:, columns]):
            inside = distances < radii[p, j]
            covered[p, half[j[inside]], i[inside]] = True

    def recall_stderr(self) -> float | None:
        """The standard error, once all blocks are covered."""
        if not len(self.half):
            return None
        difference = self.covered[:, 0].astype(np.int8) - self.covered[:, 1]
        n = difference.shape[1]
        variances = (difference.mean(1) ** 2 + difference.var(1, ddof=1) / n) / 4
        return float(np.sqrt(variances.mean()))
