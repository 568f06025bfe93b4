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
    """Adam on the DSM loss. What is measured after training has settings of its own."""

    batch_size: Count
    """Images in a step, of all processes together."""
    processes: Count = 1
    """Processes that share out a batch."""
    micro_batch: Count | None = None
    """The largest part of it that a process computes at once; its whole share if null."""
    precision: Precision = "float32"
    """What the network computes its products and convolutions in; weights are float32."""
    lr: Positive = 2e-4
    """Adam's learning rate."""
    beta1: Fraction = 0.9
    """Adam's decay rate of the first moment."""
    eps: Positive = 1e-8
    """Adam's ε."""
    warmup: Count = 5000
    """Steps over which the learning rate grows linearly from 0."""
    grad_clip: Positive = 1.0
    """The largest norm of a step's gradient."""
    ema: Fraction = 0.999
    """Decay rate of the average of weights."""
    flip: bool = False
    """Mirror images at random."""
    dequantise: bool = False
    """Train on (k + u)/L instead of k/(L − 1)."""


class Regulariser(Closed):
    """L_QC, see `qcsbm.conservativeness.regulariser`.

    With finite differences, truncation grows with their step, and float32 rounds at its inverse.
    """

    weight: NonNegative
    """λ, the factor of L_QC in the loss."""
    probes: Count = 1
    """Rademacher probes for each sample."""
    estimator: Literal["trace", "antisymmetric"]
    """Eq. (9) as published, or ½‖(J − Jᵀ)v‖², which is less noisy (QC⁺)."""
    batch_size: Count | None = None
    """Samples of a batch that are regularised; all of them if null."""
    every: Count = 1
    """L_QC is evaluated in one of so many steps, and its gradient counts until the next one."""
    time_sampling: Literal["uniform", "importance"] = "uniform"
    """`importance` draws more small t, where the gradient varies most, and weights them."""
    derivatives: Derivatives = "autograd"
    """`finite_differences` needs no second derivatives; for `antisymmetric` alone."""
    difference_step: Positive | None = Field(default_factory=default_step)
    """Its step, relative to the noise's standard deviation; 0.003 if null."""


class InitFrom(Closed):
    """The checkpoint that training starts from: another method's, or an imported file."""

    method: str | None = None
    """The method that trained it, with the same seed."""
    checkpoint: str | None = None
    """Or an imported file, relative to the working directory."""
    step: Count
    """The step that it is at."""
