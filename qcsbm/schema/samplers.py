"""How samples are drawn from a model: a class of settings for each type of sampler.

The module of the package `qcsbm.sampling` that has the name of the type draws them.
"""

from typing import Annotated, Literal, get_args

from pydantic import Field

from qcsbm.schema.base import Closed, Count, Positive, Precision, Whole


class PC(Closed):
    """Predictor–corrector: reverse diffusion, with Langevin steps in between."""

    type: Literal["pc"]
    steps: Annotated[Whole, Field(ge=2)]
    """Predictor steps."""
    snr: Positive
    """Signal-to-noise ratio of the corrector's Langevin steps."""
    corrector_steps: Annotated[Whole, Field(ge=0)] = 1
    """Langevin steps after each predictor step."""
    batch_size: Count
    """Images drawn together; the corrector's step depends on it."""
    precision: Precision = "float32"
    """What the network computes its products and convolutions in."""


class ODE(Closed):
    """The probability flow ODE, each sample in steps of its own."""

    type: Literal["ode"]
    rtol: Positive
    """Relative tolerance."""
    atol: Positive
    """Absolute tolerance."""
    batch_size: Count
    """Images drawn together."""
    precision: Precision = "float32"
    """What the network computes its products and convolutions in."""


class Heun(Closed):
    """The probability flow ODE at fixed noise levels (Karras et al., 2022)."""

    type: Literal["heun"]
    steps: Annotated[Whole, Field(ge=2)]
    """Steps, each but the last with two calls."""
    rho: Positive = 7.0
    """How noise levels are spaced."""
    batch_size: Count
    """Images drawn together."""
    precision: Precision = "float32"
    """What the network computes its products and convolutions in."""


class Langevin(Closed):
    """Langevin dynamics, annealed over noise levels.

    From 2 on, a ``step_size`` could only diverge where there is more noise than data.
    """

    type: Literal["langevin"]
    noise_levels: Count
    """Levels from the largest noise to the smallest; the smallest alone if 1."""
    steps_per_level: Count
    """Steps at each."""
    step_size: Annotated[Positive, Field(lt=2)]
    """A step at noise level σ has this size times σ²."""
    batch_size: Count
    """Images drawn together."""
    precision: Precision = "float32"
    """What the network computes its products and convolutions in."""


Sampler = Annotated[PC | ODE | Heun | Langevin, Field(discriminator="type")]

# The settings of every type, in the order of texts.
TYPES: dict[str, type[PC | ODE | Heun | Langevin]] = {
    get_args(settings.model_fields["type"].annotation)[0]: settings
    for settings in get_args(get_args(Sampler)[0])
}


def sampler_label(name: str) -> str:
    """How texts call the sampler that the experiment file calls ``name``.

    One that is named after its type has the name of that class, any other its own.
    """
    return TYPES[name].__name__ if name in TYPES else name
