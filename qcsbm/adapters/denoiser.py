"""Any model as a denoiser of images in [0, 1]."""

from torch import Tensor, nn

from qcsbm.adapters.field import Field
from qcsbm.runtime.errors import BadInput
from qcsbm.score.kinds import denoised, to_score
from qcsbm.score.sde import bcast


class Denoiser(nn.Module):
    """E[x_0 | y] for data x_0 in [0, 1], by a model of any kind, schedule and range of data.

    ``forward(y, sigma)`` takes y (B, ...), data plus noise of standard deviation sigma (B,), which
    is what x_t / α(t) is of any schedule; the result is like y. The score of x_t is then
    (α x̂_0 − x_t) / σ², with x̂_0 the result at x_t / α and σ / α.

    Raises:
        BadInput: the field has no schedule, is a force, or does not know the range of its data.
    """

    def __init__(self, field: Field):
        super().__init__()
        if field.schedule is None or field.kind == "force":
            raise BadInput(
                f"{field.name}: found a field of kind {field.kind!r} with schedule "
                f"{field.schedule}, expected a model of data with noise"
            )
        if field.data_range is None:
            raise BadInput(
                f"{field.name}: found no data_range, expected the smallest and the largest value "
                "of the data that the model was trained on"
            )
        self.field = field
        self.schedule = field.schedule
        # The parameters follow what is done to this module.
        self.module = field.module
        self.low, high = field.data_range
        self.width = high - self.low

    def arguments(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The model's own x (B, ...) and t (B,)."""
        t = self.schedule.time(self.width * sigma)
        return bcast(self.schedule.mean(t), y) * (self.low + self.width * y), t

    def score(self, y: Tensor, sigma: Tensor) -> Tensor:
        """∇ log p(y; σ) at y (B, ...) and sigma (B,), like y.

        It is not taken from the posterior mean, which has no digits left for it at small σ.
        """
        x, t = self.arguments(y, sigma)
        s = to_score(self.field.kind, self.schedule, self.field(x, t), x, t)
        return bcast(self.schedule.mean(t) * self.width, y) * s

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        x, t = self.arguments(y, sigma)
        x0 = denoised(self.field.kind, self.schedule, self.field(x, t), x, t)
        return (x0 - self.low) / self.width
