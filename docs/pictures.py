"""Draw `front.svg`, `parts.svg` and `probes.svg`: what rotation is, and how it is measured.

    python docs/pictures.py [folder] [--steps STEPS]

The first and the last are of a small network that is trained on digits, with L_QC and without it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from sklearn.datasets import load_digits
from torch import Tensor, nn

import qcsbm
from qcsbm.conservativeness.asymmetry import ESTIMATORS
from qcsbm.conservativeness.products import rademacher
from qcsbm.motivation import gaussian
from qcsbm.report.figures import motivation, style

SCHEDULE = qcsbm.VE(sigma_min=0.02, sigma_max=20)
# λ, the weight of L_QC, by the name of the method.
WEIGHTS = {"u": 0.0, "qc": 0.1}
LOOKS = {
    "u": {"color": style.BLUE, "marker": "o", "label": "without L_QC"},
    "qc": {"color": style.GREEN, "marker": "^", "label": "with L_QC"},
}
TRAINED_ON = 1500
NAMES = {"trace": "trace, as published", "antisymmetric": "antisymmetric"}


class Score(nn.Module):
    """s(x, t) of digits x (B, 64) in [0, 1]."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(65, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 64),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        sigma = SCHEDULE.std(t)[:, None]
        scaled = (x - 0.3) / (0.15 + sigma**2).sqrt()
        return self.net(torch.cat([scaled, sigma.log()], 1)) / sigma


def digits() -> Tensor:
    """All of them (1797, 64), in [0, 1] and in an order of their own."""
    images = torch.from_numpy(load_digits().data).float() / 16
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]


def train(x: Tensor, weight: float, steps: int) -> Score:
    """By denoising score matching, with L_QC at ``weight``."""
    torch.manual_seed(0)
    score = Score()
    optimiser = torch.optim.Adam(score.parameters(), lr=1e-3)
    for _ in range(steps):
        x_0, t = x[torch.randint(len(x), (128,))], torch.rand(128)
        z, sigma = torch.randn_like(x_0), SCHEDULE.std(t)
        x_t = x_0 + sigma[:, None] * z
        loss = (sigma[:, None] * score(x_t, t) + z).square().sum(1) / 2
        if weight:
            loss = loss + weight * sigma**2 * qcsbm.quasi_conservative_loss(score, x_t, t)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    return score.eval()


def draw_field(axes: Axes, field: str, title: str) -> None:
    """One of Figure 1's perturbed scores, and where it leads one of the paper's starting points."""
    grid = gaussian.square_grid(4.2, 13)
    u = gaussian.score(grid, field, motivation.EPSILON)
    step_size = gaussian.paper_step_size(motivation.EPSILON)
    path = gaussian.trajectories(gaussian.starts(0), field, motivation.EPSILON, step_size)
    steps = int(gaussian.steps_to_mode(path))
    direction = (u / u.norm(dim=1, keepdim=True)).numpy()
    look = {"color": "#b5b5b5", "scale": 20, "width": 0.005, "pivot": "mid"}
    axes.quiver(*grid.numpy().T, *direction.T, **look)
    color = motivation.FIELDS[field]
    axes.plot(*path[: steps + 1, 0].numpy().T, color=color, linewidth=0.8, alpha=0.6)
    axes.plot(*path[0, 0].numpy(), ".", color=style.BLACK, markersize=7)
    axes.set(title=f"{title}: {steps} steps", xlim=(-4.4, 4.4), ylim=(-4.4, 4.4))
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.grid(False)


def front(path: Path, scores: dict[str, Score], x: Tensor) -> None:
    """Figure 1's two fields, and NAsym against t of a score model with and without L_QC."""
    figure, axes = style.panels(1, 3, 2.35, width_ratios=[1, 1, 1.35])
    draw_field(axes[0, 0], "non-conservative", "an error that rotates")
    draw_field(axes[0, 1], "conservative", "one that does not")
    panel = axes[0, 2]
    t = torch.linspace(0.02, 0.98, 13).tolist()
    for method, score in scores.items():
        report = qcsbm.asymmetry(score, x, t, schedule=SCHEDULE)
        nasym = [level.nasym for level in report.levels]
        low, value, high = np.transpose([(of.low, of.value, of.high) for of in nasym])
        look = LOOKS[method]
        panel.plot(t, value, **look)
        panel.fill_between(t, low, high, color=look["color"], alpha=0.25, linewidth=0)
    panel.set(yscale="log", xlabel="time t, from little noise to much", ylabel="NAsym")
    panel.set(yticks=[0.001, 0.002, 0.004, 0.008])
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")
    panel.set_title("a score model of digits, 95 % intervals")
    panel.legend()
    figure.savefig(path, metadata={"Date": None})


def parts(path: Path) -> None:
    """A linear field in the plane is a gradient plus a rotation."""
    symmetric = torch.tensor([[-1.0, 0.3], [0.3, -0.6]])
    rotation = torch.tensor([[0.0, -0.7], [0.7, 0.0]])
    fields = {
        "x ↦ Sx, a gradient": (symmetric, style.VERMILLION),
        "x ↦ ½Ax, a rotation": (rotation, style.PURPLE),
        "x ↦ Jx, their sum": (symmetric + rotation, style.BLUE),
    }
    figure, axes = style.panels(1, 3, 2.35)
    grid = gaussian.square_grid(1.0, 9).float()
    angle = torch.linspace(0, 2 * np.pi, 200)
    circle = 0.8 * torch.stack([angle.cos(), angle.sin()], 1)
    for panel, (title, (matrix, color)) in zip(axes[0], fields.items(), strict=True):
        look = {"color": color, "scale": 12, "width": 0.007, "pivot": "mid"}
        panel.quiver(*grid.T.numpy(), *(grid @ matrix.T).T.numpy(), **look)
        panel.plot(*circle.T.numpy(), color=style.BLACK, linewidth=0.8)
        # Stokes: the curl, J_21 − J_12, times the area.
        around = float(matrix[1, 0] - matrix[0, 1]) * np.pi * 0.8**2
        panel.set(title=f"{title}\naround the circle: {around:.2g}", aspect="equal")
        panel.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xticks=[], yticks=[])
        panel.grid(False)
    figure.savefig(path, metadata={"Date": None})


def probes(path: Path, score: Score, x: Tensor) -> None:
    """What single probes say of ½‖A‖² at one noisy digit, by both estimators."""
    t = torch.tensor([0.5])
    noise = torch.randn(64, generator=torch.Generator().manual_seed(0))
    x_t = x[0] + SCHEDULE.std(t) * noise
    j = torch.autograd.functional.jacobian(lambda y: score(y[None], t)[0], x_t).double()
    exact = float((j - j.T).square().sum() / 2)
    v = rademacher((20_000, 64), torch.Generator().manual_seed(0)).double()
    figure, axes = style.panels(1, 1, 2.1)
    panel = axes[0, 0]
    values = {name: (of(v @ j, v @ j.T) / exact).numpy() for name, of in ESTIMATORS.items()}
    bins = np.linspace(*np.quantile(values["trace"], [0.001, 0.999]), 80)
    for (name, found), color in zip(values.items(), (style.VERMILLION, style.BLUE), strict=True):
        negative = f"negative in {(found < 0).mean():.0%}"
        label = f"{NAMES[name]}: standard deviation {found.std():.2f}, {negative}"
        look = {"histtype": "stepfilled", "color": color, "alpha": 0.5, "label": label}
        panel.hist(found, bins, density=True, **look)
    panel.axvline(1, color=style.BLACK, linewidth=0.8)
    panel.set(xlabel="estimate of ½‖A‖² by one probe, relative to its value", yticks=[])
    panel.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    parser.add_argument("--steps", type=int, default=2000, help="of every training")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = digits()
    scores = {
        method: train(images[:TRAINED_ON], weight, arguments.steps)
        for method, weight in WEIGHTS.items()
    }
    unseen = images[TRAINED_ON:]
    front(arguments.folder / "front.svg", scores, unseen[:64])
    parts(arguments.folder / "parts.svg")
    probes(arguments.folder / "probes.svg", scores["u"], unseen)


if __name__ == "__main__":
    main()
