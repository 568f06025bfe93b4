"""One look for every picture, and files whose bytes depend on what they show alone.

Colours are those that Okabe and Ito chose to be told apart with any colour vision; a method has the
same one everywhere, and a marker of its own. Text in SVG files stays text.

References:
    Color Universal Design (Okabe & Ito, 2008); https://jfly.uni-koeln.de/color/
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qcsbm.runtime.files import atomic

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#777777"
COLOURS = {
    "c": VERMILLION,
    "u": BLUE,
    "qc": GREEN,
    "qcplus": ORANGE,
    "u_b8": SKY,
    "qc_k16": PURPLE,
}
MARKERS = {"c": "s", "u": "o", "qc": "^", "qcplus": "D", "u_b8": "v", "qc_k16": "P"}

# Inches: a page's text is about 7 wide.
WIDTH = 7.0

matplotlib.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7.5,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.formatter.limits": (-3, 4),
        "axes.formatter.use_mathtext": True,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e5e5e5",
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
        "image.cmap": "gray",
        "savefig.dpi": 200,
        "svg.fonttype": "none",
        "svg.hashsalt": "qcsbm",
    }
)


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of the page's width, ``height`` inches high, and its axes (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def nothing() -> Figure:
    """What stands in place of a picture when nothing that it shows was measured."""
    figure = Figure(figsize=(WIDTH, 0.5))
    figure.text(0.5, 0.5, "Nothing was measured.", ha="center", va="center", color=GREY)
    return figure


def colour(method: str) -> str:
    """The colour of a method; black for one that has none."""
    return COLOURS.get(method, BLACK)


def marker(method: str) -> str:
    return MARKERS.get(method, "X")


def look(method: str) -> dict[str, Any]:
    """What tells the method's points from those of others: the options of `Axes.plot`."""
    return {"color": colour(method), "marker": marker(method)}


def band(axes: Axes, x: np.ndarray, y: np.ndarray, color: str, **options: Any) -> None:
    """The mean of ``y`` (seeds, len(x)) as a line, from the smallest to the largest as a band."""
    axes.plot(x, y.mean(0), color=color, **options)
    axes.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.2, linewidth=0)


def save(figure: Figure, stem: str | Path) -> None:
    """Write ``stem``.png and ``stem``.svg, without date or version in them."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        with atomic(f"{stem}{suffix}") as temporary:
            figure.savefig(temporary, metadata=metadata)
