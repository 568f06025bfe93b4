"""One look for every picture, and files whose bytes depend on what they show alone.

Colours are those that Okabe and Ito chose to be told apart with any colour vision. A method has the
same colour, marker and line in every picture of an experiment, and the paper's methods have them in
every experiment. Text in SVG files stays text.

References:
    Color Universal Design (Okabe & Ito, 2008); https://jfly.uni-koeln.de/color/
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import LogFormatter

from qcsbm.runtime.files import atomic

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#777777"
# Eight and more methods share colours. Colour and marker together repeat after 77 methods, colour
# and line, where there is no marker, after 28.
COLOURS = [VERMILLION, BLUE, GREEN, ORANGE, SKY, PURPLE, BLACK]
MARKERS = ["s", "o", "^", "D", "v", "P", "X", "<", ">", "*", "p"]
LINES = ["-", "--", ":", "-."]
# These come first, in every experiment.
PAPER_METHODS = ["c", "u", "qc", "qcplus"]

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


@dataclass(frozen=True)
class Look:
    """How a method is drawn: ``label`` names it in legends."""

    label: str
    colour: str
    marker: str
    line: str

    @property
    def options(self) -> dict[str, Any]:
        """The options of `Axes.plot` for points on a line."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line}


def looks(labels: Mapping[str, str]) -> dict[str, Look]:
    """The look of every method of an experiment, whose ``labels`` are in the order of its file.

    It depends on the method's place among those that are not `PAPER_METHODS`.
    """
    places = [*PAPER_METHODS, *(method for method in labels if method not in PAPER_METHODS)]
    return {method: _look(places.index(method), label) for method, label in labels.items()}


def _look(place: int, label: str) -> Look:
    return Look(
        label,
        COLOURS[place % len(COLOURS)],
        MARKERS[place % len(MARKERS)],
        LINES[place // len(COLOURS) % len(LINES)],
    )


def legend(figure: Figure, looks: Sequence[Look], **options: Any) -> None:
    """A legend above all panels, in as many rows as it needs; the figure grows by them.

    ``options`` are those of its entries that are not the `Look`'s.
    """
    entries = [Line2D([], [], label=look.label, **(look.options | options)) for look in looks]
    size = matplotlib.rcParams["legend.fontsize"]
    texts = [TextPath((0, 0), look.label, size=size) for look in looks]
    # Beside its label an entry has a handle, and space around both, of 4.8 times the size of text.
    widths = [text.get_extents().width + 4.8 * size for text in texts]
    columns = max(
        (n for n in range(1, len(entries) + 1) if _width(widths, n) < 72 * figure.get_figwidth()),
        default=1,
    )
    rows = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + (rows - 1) * 1.5 * size / 72)
    figure.legend(handles=entries, loc="outside upper center", ncols=columns)


def _width(widths: Sequence[float], columns: int) -> float:
    """How wide entries of these ``widths`` are in so many columns, filled one by one."""
    return float(sum(max(column) for column in np.array_split(widths, columns)))


class LogTicks(LogFormatter):
    """Labels of a logarithmic axis as plain numbers, between powers of ten as far as they fit."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def band(axes: Axes, x: np.ndarray, y: np.ndarray, color: str, **options: Any) -> None:
    """The mean of ``y`` (seeds, len(x)) as a line, from the smallest to the largest as a band."""
    axes.plot(x, y.mean(0), color=color, **options)
    axes.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.2, linewidth=0)


def save(figure: Figure, stem: str | Path) -> None:
    """Write ``stem``.png and ``stem``.svg, without date or version in them."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        with atomic(f"{stem}{suffix}") as temporary:
            figure.savefig(temporary, metadata=metadata)
