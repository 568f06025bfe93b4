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
    """How generated images are compared with real ones, by their features."""

    samples: Annotated[Whole, Field(ge=4)]
    """Generated images that are compared."""
    extractor: Literal["classifier", "efficientnet_lite0", "inception"]
    """What extracts features: the workflow's own classifier, or an ImageNet network."""
    precision: Precision = "float32"
    """What the extractor computes its products and convolutions in."""
    reference: Literal["train", "test"] = "train"
    """The split of real images that samples are compared with."""
    statistics: str | None = None
    """An .npz of published statistics (`mu` and `sigma`, or `pool_3`) for the Fréchet distance."""
    neighbours: Count = 3
    """k of precision, recall, density and coverage; their authors take 3, 3, 5 and 5."""
    weights: Weights | None = "ema"
    """EMA or raw weights; null for a model from outside, which has one set."""


class Likelihood(Closed):
    """Bits/dim of test images, by the probability flow ODE."""

    samples: Several | None = None
    """The first so many test images; all of them if null."""
    divergence: Literal["hutchinson", "exact"] = "hutchinson"
    """Of the drift: estimated with one probe for each image, or exact."""
    rtol: Positive
    """Relative tolerance of the ODE."""
    atol: Positive
    """Absolute tolerance of the ODE."""
    batch_size: Count
    """Images that are integrated together; each has steps of its own."""
    precision: Precision = "float32"
    """What the network computes its products and convolutions in."""
    weights: Weights | None = "ema"
    """EMA or raw weights; null for a model from outside, which has one set."""


class Circulation(Closed):
    """The circulation of the score around ``triangles`` of three test images each.

    Noise levels, precision and weights are those of `Asymmetry`.
    """

    triangles: Several
    """Triangles, each with three test images as its corners."""


class Asymmetry(Closed):
    """Asym and NAsym of noisy test images, see `qcsbm.conservativeness.asymmetry`.

    The paper's own evaluation has the estimator ``trace``.
    """

    estimator: Literal["exact", "antisymmetric", "trace"]
    """Exact, or estimated: `antisymmetric` from ``probes`` probes, `trace` (Eq. 9) from one."""
    probes: Count | None = None
    """Probes for each image of `antisymmetric`; a single one leaves NAsym the bias of a ratio."""
    derivatives: Derivatives = "autograd"
    """`finite_differences` needs no second derivatives; for `antisymmetric` alone."""
    difference_step: Positive | None = Field(default_factory=default_step)
    """Its step, relative to the noise's standard deviation; 0.003 if null."""
    noise_levels: Count
    """Equidistant times at which it is measured."""
    samples: Several
    """The first so many test images."""
    batch_size: Count
    """Images whose products are computed together."""
    precision: Precision = "float32"
    """What the network computes its products and convolutions in."""
    weights: Weights | None = "ema"
    """EMA or raw weights; null for a model from outside, which has one set."""
