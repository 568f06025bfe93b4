"""What is measured of a trained model, and how.

A model from outside has one set of weights, and ``weights`` null.
"""

from typing import Annotated, Literal

from pydantic import Field

from qcsbm.schema.base import (
    Closed,
    Count,
    Derivatives,
    Positive,
    Precision,
    Several,
    Weights,
    Whole,
    default_step,
)


class Quality(Closed):
    """How ``samples`` generated images are compared with real ones, by features of ``extractor``.

    These are the split ``reference``; for the Fréchet distance, where ``statistics`` names an .npz
    of published statistics (``mu`` and ``sigma``, or ``pool_3``), those. Precision, recall, density
    and coverage reach to as many ``neighbours``: their authors take 3 for the first two and 5 for
    the others.
    """

    samples: Annotated[Whole, Field(ge=4)]
    extractor: Literal["classifier", "efficientnet_lite0", "inception"]
    precision: Precision = "float32"
    reference: Literal["train", "test"] = "train"
    statistics: str | None = None
    neighbours: Count = 3
    weights: Weights | None = "ema"


class Likelihood(Closed):
    """Bits/dim of the first ``samples`` test images (all of them if null)."""

    samples: Several | None = None
    divergence: Literal["hutchinson", "exact"] = "hutchinson"
    rtol: Positive
    atol: Positive
    batch_size: Count
    precision: Precision = "float32"
    weights: Weights | None = "ema"


class Circulation(Closed):
    """The circulation of the score around ``triangles`` of three test images each.

    Noise levels, precision and weights are those of `Asymmetry`.
    """

    triangles: Several


class Asymmetry(Closed):
    """Asym and NAsym of the first ``samples`` test images, at ``noise_levels`` equidistant times.

    They are ``exact``, or estimated: ``antisymmetric`` from several ``probes``, ``trace`` (Eq. 9)
    from one, as in the paper's own evaluation; see `qcsbm.conservativeness.asymmetry`.

    ``derivatives: finite_differences`` has the antisymmetric estimator do without second
    derivatives, over a ``difference_step`` relative to the standard deviation of the noise at each
    level, 0.003 where none is given. What is left of a gradient is then the differences' error.
    """

    estimator: Literal["exact", "antisymmetric", "trace"]
    probes: Annotated[Whole, Field(ge=2)] | None = None
    derivatives: Derivatives = "autograd"
    difference_step: Positive | None = Field(default_factory=default_step)
    noise_levels: Count
    samples: Several
    batch_size: Count
    precision: Precision = "float32"
    weights: Weights | None = "ema"
