"""Pictures of the two-dimensional examples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from qcsbm.motivation.toy import SDE, Mixture
from qcsbm.report.figures import style

LABELS = {"c": "C", "u": "U", "qc": "QC"}
# Every third arrow of a 40 × 40 grid, every point of that many samples.
EVERY = 3
POINTS = 1000


@dataclass(frozen=True)
class ExactField:
    """The noised density and its score on a grid: ``density`` (n, n), ``score`` (n, n, 2)."""

    density: np.ndarray
    score: np.ndarray


def exact_field(density: Mixture, t: float, grid: np.ndarray) -> ExactField:
    """``density`` noised up to time ``t``, at the points of ``grid`` (n, n, 2)."""
    x = torch.from_numpy(grid).flatten(0, 1)
    sigma = SDE.sigma(torch.tensor(t, dtype=torch.float64)).expand(len(x))
    n = len(grid)
    return ExactField(
        density.log_prob(x, sigma).exp().view(n, n).numpy(),
        density.score(x, sigma).view(n, n, 2).numpy(),
    )


def examples(
    exact: ExactField, points: np.ndarray, models: dict[str, dict[str, np.ndarray]]
) -> Figure:
    """Vector fields, their curl and samples: in columns the exact density, C, U and QC.

    ``models`` maps the methods to their arrays x, score, curl (`toy.VectorField`) and samples.
    The density stands in place of the exact curl, which is zero.
    """
    grid = next(iter(models.values()))["x"]
    half_width = float(grid.max())
    figure, axes = style.panels(3, 1 + len(models), 4.75, sharex=True, sharey=True)
    columns = [("Exact", exact.score, points)]
    looks = style.looks({name: LABELS[name] for name in models})
    columns += [(looks[name].label, m["score"], m["samples"]) for name, m in models.items()]
    colours = [style.BLACK, *(look.colour for look in looks.values())]
    for i, (label, score, samples) in enumerate(columns):
        axes[0, i].set_title(label, color=colours[i])
        _image(axes[0, i], exact.density, half_width, cmap="Greys", vmax=2 * exact.density.max())
        _arrows(axes[0, i], grid, score, colours[i])
        axes[2, i].plot(*samples[:POINTS].T, ".", color=colours[i], markersize=1.2, alpha=0.6)
    _image(axes[1, 0], exact.density, half_width, cmap="Greys")
    limit = curl_limit(models)
    for panel, model in zip(axes[1, 1:], models.values(), strict=True):
        image = _image(panel, model["curl"], half_width, cmap="PuOr_r", vmin=-limit, vmax=limit)
    figure.colorbar(image, ax=axes[1, :], label="curl", aspect=12, pad=0.01)
    for row, label in zip(axes, ("score", "density, curl", "data, samples"), strict=True):
        row[0].set_ylabel(label)
    for panel in axes.flat:
        panel.set(xlim=(-half_width, half_width), ylim=(-half_width, half_width), aspect="equal")
        panel.set(xticks=[-5, 0, 5], yticks=[-5, 0, 5])
        panel.grid(False)
    return figure


def curl_limit(models: dict[str, dict[str, np.ndarray]]) -> float:
    """The end of the colour scale: 99 % of the curls of all models are smaller in magnitude."""
    return float(np.quantile(np.abs([model["curl"] for model in models.values()]), 0.99))


def _image(panel: Axes, values: np.ndarray, half_width: float, **options: Any) -> AxesImage:
    # The first index is x_1, which runs to the right.
    extent = (-half_width, half_width, -half_width, half_width)
    return panel.imshow(values.T, origin="lower", extent=extent, **options)


def _arrows(panel: Axes, grid: np.ndarray, score: np.ndarray, color: str) -> None:
    """Arrows in the direction of the score; their length saturates, so that all are readable."""
    x, s = grid[1::EVERY, 1::EVERY].reshape(-1, 2), score[1::EVERY, 1::EVERY].reshape(-1, 2)
    norm = np.linalg.norm(s, axis=1, keepdims=True)
    s = s / (norm + np.median(norm))
    panel.quiver(*x.T, *s.T, color=color, scale=14, width=0.006, pivot="mid")
