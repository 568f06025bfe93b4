"""What an audit is told about a vector field."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from qcsbm.score.kinds import Kind
from qcsbm.score.schedules import Schedule
from qcsbm.score.sde import bcast


@dataclass(frozen=True)
class Field:
    """A vector field and what its values mean.

    A field is called with x (B, ...) and t (B,) and gives a tensor like x. The time t is that of
    ``schedule``; a field without one has no noise level and may ignore t. ``kind`` says what the
    values are, see `qcsbm.score.kinds`. ``function`` is what is called, with x and t themselves;
    only of the kind ``denoiser`` under a schedule, with x / α, which is data plus noise, and σ / α,
    the noise's standard deviation. ``name`` is what the report calls the field. ``shape`` is
    that of a sample and ``data_range`` the smallest and largest value of data, where these are
    known. ``module`` holds the parameters, where there are some: it is moved and converted with the
    samples. ``files`` has the SHA-256 of every file that the field was read from, by its path.
    ``differentiable`` is false where PyTorch cannot differentiate the function.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    kind: Kind = "score"
    schedule: Schedule | None = None
    name: str = "field"
    shape: tuple[int, ...] | None = None
    data_range: tuple[float, float] | None = None
    module: nn.Module | None = None
    files: dict[str, str] = field(default_factory=dict)
    differentiable: bool = True

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.kind == "denoiser" and self.schedule is not None:
            y = x / bcast(self.schedule.mean(t), x)
            return self.function(y, self.schedule.sigma(t))
        return self.function(x, t)
