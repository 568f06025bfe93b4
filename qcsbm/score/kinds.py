"""What the output of a network stands for, and the score that follows from it."""

from typing import Literal

Kind = Literal["score", "epsilon", "x0", "v", "denoiser", "velocity", "force"]
