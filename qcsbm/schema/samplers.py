"""How samples are drawn from a model: a class of settings for each type of sampler.

The module of the package `qcsbm.sampling` that has the name of the type draws them.
"""

from typing import Annotated, Literal, get_args

from pydantic import Field

from qcsbm.schema.base import Closed, Count, Positive, Precision, Whole


class PC(Closed):
    """Predictor–corrector: reverse diffusion, with Langevin steps of signal-to-noise ``snr``."""

    type: Literal["pc"]
    steps: Annotated[Whole, Field(ge=2)]
    snr: Positive
    corrector_steps: Annotated[Whole, Field(ge=0)] = 1
    batch_size: Count
    precision: Precision = "float32"


class ODE(Closed):
    """The probability flow ODE, integrated to relative and absolute tolerances."""

    type: Literal["ode"]
    rtol: Positive
    atol: Positive
    batch_size: Count
    precision: Precision = "float32"


class Heun(Closed):
    """The probability flow ODE in 2 ``steps`` − 1 calls, at noise levels that ``rho`` spaces."""

    type: Literal["heun"]
    steps: Annotated[Whole, Field(ge=2)]
    rho: Positive = 7.0
    batch_size: Count
    precision: Precision = "float32"


class Langevin(Closed):
    """Langevin dynamics, annealed over ``noise_levels`` from the largest to the smallest.

    With one of them it is that of the smallest. A step at noise level σ has the size
    ``step_size`` · σ², which from 2 on could only diverge where there is more noise than data.
    """

    type: Literal["langevin"]
    noise_levels: Count
    steps_per_level: Count
    step_size: Annotated[Positive, Field(lt=2)]
    batch_size: Count
    precision: Precision = "float32"


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
