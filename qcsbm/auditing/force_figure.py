"""An audit of forces as a figure, λ of every structure and λ_ij by distance, and as one page."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcsbm.auditing.figure import (
    BLACK,
    BLUE,
    GREY,
    ROW,
    VERMILLION,
    WIDTH,
    draw_quantities,
    fill,
    save,
    write_page,
)
from qcsbm.auditing.force_report import (
    ForceReport,
    heading,
    protocol,
    structure_rows,
    summary,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot(report: ForceReport, path: str | Path) -> None:
    """Draw ``report`` into ``path``, whose suffix says the format: .png, .svg or .pdf.

    Raises:
        BadInput: it has another suffix, or Matplotlib is missing.
    """

    def draw(figure: "Figure") -> None:
        figure.set_size_inches(WIDTH, ROW)
        fill(figure, _panels(report))

    save(draw, path)


def page(report: ForceReport, path: str | Path) -> None:
    """The table, the figure and what may be concluded on one page, into ``path`` as in `plot`.

    Raises:
        BadInput: as in `plot`.
    """
    above = [protocol(report), " ".join(summary(report))]
    rows, left = structure_rows(report)
    below = [*left, *report.conclusion]
    write_page(path, heading(report), above, rows, _panels(report), below)


def _panels(report: ForceReport) -> list[Callable[["Axes"], None]]:
    panels: list[Callable[[Axes], None]] = [lambda axes: _draw_structures(axes, report)]
    if report.pairs:
        panels.append(lambda axes: _draw_pairs(axes, report))
    return panels


def _draw_structures(axes: "Axes", report: ForceReport) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(title=f"{report.protocol.calculator}: structures", xlabel="atoms", ylabel="λ")
    found = [(one.atoms, one.lambda_) for one in report.structures if not one.zero_within]
    if found:
        axes.plot(*zip(*found, strict=True), "o", color=BLUE, alpha=0.6, label="structure")
    zeros = [(one.atoms, z.lambda_) for one in report.structures if (z := one.zero_within)]
    if zeros:
        x, bounds = zip(*zeros, strict=True)
        axes.plot(x, bounds, "v", color=GREY, markerfacecolor="white", label="zero within")
    mean = report.lambda_
    if found:
        axes.axhline(mean.value, color=BLACK, linewidth=0.8, label="mean")
        if mean.low is not None and mean.high is not None:
            axes.axhspan(mean.low, mean.high, color=BLACK, alpha=0.1, linewidth=0)
    sizes = [one.atoms for one in report.structures]
    if min(sizes) == max(sizes):
        axes.set_xlim(sizes[0] - 2, sizes[0] + 2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    values = np.array([value for _, value in [*found, *zeros]])
    _from_zero(axes, values)
    axes.legend()


def _draw_pairs(axes: "Axes", report: ForceReport) -> None:
    axes.set(title="Pairs of atoms", xlabel="distance (Å)", ylabel="λ_ij")
    x = np.array([(pairs.low + pairs.high) / 2 for pairs in report.pairs])
    quantities = [pairs.lambda_ for pairs in report.pairs]
    draw_quantities(axes, x, quantities, color=VERMILLION, marker="s")
    _from_zero(axes, np.array([q.value for q in quantities]))


def _from_zero(axes: "Axes", values: np.ndarray) -> None:
    if values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
