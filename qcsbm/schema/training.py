"""How a model is trained: the loss, its regulariser, and where training starts."""

from typing import Literal

from pydantic import Field

from qcsbm.schema.base import (
    Closed,
    Count,
    Derivatives,
    Fraction,
    NonNegative,
    Positive,
    Precision,
    default_step,
)


class Training(Closed):
    """Adam on the DSM loss; ``dequantise`` trains on (k + u)/L instead of k/(L − 1).

    ``batch_size`` samples are shared out to that many ``processes``, see `qcsbm.training.parallel`;
    each takes its share in parts of at most ``micro_batch``, or at once if null.
    The network's products and convolutions are computed in ``precision``; weights and losses are
    float32, and what is measured after training has settings of its own.
    """

    batch_size: Count
    processes: Count = 1
    micro_batch: Count | None = None
    precision: Precision = "float32"
    lr: Positive = 2e-4
    beta1: Fraction = 0.9
    eps: Positive = 1e-8
    warmup: Count = 5000
    grad_clip: Positive = 1.0
    ema: Fraction = 0.999
    flip: bool = False
    dequantise: bool = False


class Regulariser(Closed):
    """λ = ``weight`` and the estimator of L_QC, averaged over ``probes`` Rademacher probes.

    ``batch_size`` samples of a batch are regularised, all of them if null. L_QC is evaluated in one
    step of ``every``, and that gradient counts until the next one. ``time_sampling: importance``
    draws more small t in these steps, where the gradient varies most, and weights them for it.

    ``derivatives: finite_differences`` has the antisymmetric estimator do without second
    derivatives, over a ``difference_step`` relative to the standard deviation of the noise: see
    `qcsbm.conservativeness.regulariser`. 0.003 where none is given: truncation grows with the step,
    and float32 rounds at its inverse.
    """

    weight: NonNegative
    probes: Count = 1
    estimator: Literal["trace", "antisymmetric"]
    batch_size: Count | None = None
    every: Count = 1
    time_sampling: Literal["uniform", "importance"] = "uniform"
    derivatives: Derivatives = "autograd"
    difference_step: Positive | None = Field(default_factory=default_step)


class InitFrom(Closed):
    """The checkpoint at ``step`` that training starts from.

    It is that of another ``method``, with the same seed, or an imported file, ``checkpoint``, with
    its path relative to the working directory.
    """

    method: str | None = None
    checkpoint: str | None = None
    step: Count
