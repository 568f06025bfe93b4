"""How samples are drawn from a model: a model for each type of sampler."""

from typing import Annotated, Literal

from pydantic import Field

from qcsbm.schema.base import Closed, Count, Positive, Whole


class PC(Closed):
    """Predictor–corrector: reverse diffusion, with Langevin steps of signal-to-noise ``snr``."""

    type: Literal["pc"]
    steps: Annotated[Whole, Field(ge=2)]
    snr: Positive
    corrector_steps: Annotated[Whole, Field(ge=0)] = 1
    batch_size: Count


class ODE(Closed):
    """The probability flow ODE, integrated to relative and absolute tolerances."""

    type: Literal["ode"]
    rtol: Positive
    atol: Positive
    batch_size: Count


Sampler = Annotated[PC | ODE, Field(discriminator="type")]
