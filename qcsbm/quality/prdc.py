r"""Precision, recall, density and coverage by nearest neighbours in feature space.

A sample's ball reaches to its k-th nearest neighbour among its own kind, and has inside what is
strictly nearer. Of N real and M generated samples

- precision is the share of generated samples inside some real sample's ball,
- recall the share of real samples inside some generated sample's ball,
- density the number of real samples' balls that a generated sample is inside of, divided by k, on
  average; it may exceed 1,
- coverage the share of real samples whose ball has some generated sample inside.

Where both kinds have the same distribution, the means of density and coverage are known exactly: 1
and

.. math:: 1 - \prod_{i=1}^k \frac{N - i}{N + M - i} \approx 1 - (1 + M/N)^{-k}

The authors of the latter two take k = 5, those of the former k = 3; here there is one k.

References:
    Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al.,
    2019); https://arxiv.org/abs/1904.06991
    Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020), for density,
    coverage and the strict inequality; https://arxiv.org/abs/2002.09797
    Large Sample Confidence Regions Based on Subsamples under Minimal Assumptions (Politis & Romano,
    1994), for the standard errors of recall and coverage
"""

from typing import NamedTuple

import numpy as np

from qcsbm.quality.distances import approximate, blocks, exact, nearest
from qcsbm.quality.estimate import Estimate
from qcsbm.quality.order import by_content
from qcsbm.runtime.errors import BadInput

# Ways to halve the samples. With a quarter as many, the estimated variance would vary one and a
# half times as much from draw to draw.
HALVINGS = 100


class PRDC(NamedTuple):
    """All four, with their standard errors over the draw of the generated samples.

    The real samples are held fixed; if they were drawn too, the errors would be larger. Recall has
    no error for fewer than 2 (k + 1) generated samples, coverage for fewer of either kind.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def prdc(real: np.ndarray, fake: np.ndarray, k: int = 3) -> PRDC:
    """All four of ``fake`` (M, D) against ``real`` (N, D) features.

    Raises:
        BadInput: one of them has no k neighbours.
    """
    for name, features in (("real", real), ("fake", fake)):
        if len(features) <= k:
            raise BadInput(
                f"{name} features: found {len(features)}, expected more than k = {k} of them"
            )
    of_real, of_fake = _Balls(real, k, seed=1), _Balls(fake, k, seed=0)
    balls = np.zeros(len(fake), dtype=np.int64)
    recalled, covered = np.zeros((2, len(real)), dtype=bool)
    halves = (2, HALVINGS, 2, len(real))
    recalled_by_half, covered_by_half = np.zeros(halves, dtype=bool)
    for rows in blocks(len(real)):
        for columns in blocks(len(fake)):
            x, y = real[rows], fake[columns]
            squared, error = approximate(x, y)
            inside = _inside(x, y, squared, error, of_real.radius[rows, None])
            balls[columns] += inside.sum(0)
            covered[rows] |= inside.any(1)
            inside = _inside(x, y, squared, error, of_fake.radius[None, columns])
            recalled[rows] |= inside.any(1)
            distances, half = squared + error, of_fake.half[:, columns]
            _mark(recalled_by_half[..., rows], distances, of_fake.radii[:, None, columns], half)
            _mark(covered_by_half[..., rows], distances, of_real.radii[:, rows, None], half)
    m, precision, recall = len(fake), float((balls > 0).mean()), float(recalled.mean())
    density, coverage = float(balls.mean()) / k, float(covered.mean())
    recall_stderr = _stderr(recalled_by_half) if of_fake.enough else None
    coverage_stderr = _stderr(covered_by_half) if of_fake.enough and of_real.enough else None
    return PRDC(
        Estimate(precision, float(np.sqrt(precision * (1 - precision) / m))),
        Estimate(recall, recall_stderr),
        Estimate(density, float(balls.std(ddof=1)) / k / m**0.5),
        Estimate(coverage, coverage_stderr),
    )


class _Balls:
    """The squared radii of the balls around samples, by all of them and by random halves.

    ``radius`` (N,) is the distance to the k-th nearest of all, ``radii`` (halvings, N) that to the
    k-th nearest in the ``half`` (halvings, N), 0 or 1, of the sample itself. ``enough``: there are
    k others in every half.
    """

    def __init__(self, x: np.ndarray, k: int, seed: int):
        """Of ``x`` (N, D), which are halved by content rather than position."""
        n = len(x)
        squared, near = nearest(x, min(8 * (k + 1), n - 1))
        self.enough = n >= 2 * (k + 1)
        self.radius = squared[:, k - 1]
        self.half = np.empty((HALVINGS, n), dtype=np.int8)
        self.radii = np.empty((HALVINGS, n))
        order, draws = by_content(x), np.random.default_rng(seed)
        for half, radius in zip(self.half, self.radii, strict=True):
            half[order] = draws.permutation(n) % 2
            found = (half[near] == half[:, None]).cumsum(1) >= k
            # Eight times as many as needed: once in 100 000 fewer than k of them are in the half.
            found[:, -1] = True
            radius[:] = squared[np.arange(n), found.argmax(1)]


def _inside(
    x: np.ndarray, y: np.ndarray, squared: np.ndarray, error: float, radius: np.ndarray
) -> np.ndarray:
    """Which pairs of ``x`` (N, D) and ``y`` (M, D) are nearer than ``radius``; (N, M).

    ``squared`` (N, M) are distances that may be wrong by ``error``; the squared ``radius`` is
    (N, 1) or (1, M).
    """
    # Nothing is inside a ball of radius 0, and many copies of one sample make many such pairs.
    limit = np.where(radius > 0, radius, -np.inf)
    inside = squared < limit - error
    i, j = np.nonzero((squared < limit + error) & ~inside)
    inside[i, j] = exact(x, y, i, j) < np.broadcast_to(radius, inside.shape)[i, j]
    return inside


def _mark(found: np.ndarray, squared: np.ndarray, radii: np.ndarray, half: np.ndarray) -> None:
    """Mark in ``found`` (halvings, 2, N) the real samples that each half of generated ones reaches.

    ``squared`` (N, M) are distances, ``radii`` (halvings, N or 1, M or 1) those that count as
    reached, and ``half`` (halvings, M) is that of the generated samples.
    """
    pending = np.invert(found.all((0, 1)))
    i, j = np.nonzero((squared < radii.max(0)) & pending[:, None])
    distances = squared[i, j]
    for reached, radius, labels in zip(found, radii, half, strict=True):
        near = distances < np.broadcast_to(radius, squared.shape)[i, j]
        reached[labels[j[near]], i[near]] = True


def _stderr(found: np.ndarray) -> float:
    r"""The standard error of a share of N real samples, from those ``found`` by halves A and B.

    ``found`` is (halvings, 2, N). Everything keeps its proportions if M/2 generated samples stand
    against N/2 real ones, and balls reach to the k-th nearest of such a half: the share of a half
    has twice the variance of the whole, and (r_A − r_B)² / 2 estimates it. With δ_i = [i is found
    by A] − [i is found by B], the mean over the choices of N/2 is

    .. math:: \hat σ^2 = \tfrac14 (\bar δ^2 + s_δ^2 / N)

    and `HALVINGS` of the samples are averaged. A bootstrap would repeat samples, which shrinks
    the balls around them and leaves others empty; leaving out one at a time overestimates, as balls
    overlap.
    """
    difference = found[:, 0].astype(np.int8) - found[:, 1]
    n = difference.shape[1]
    variances = (difference.mean(1) ** 2 + difference.var(1, ddof=1) / n) / 4
    return float(np.sqrt(variances.mean()))
