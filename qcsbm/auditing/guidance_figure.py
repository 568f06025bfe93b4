"""An audit of guidance as a figure: κ² and the circulation against the weight."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcsbm.auditing.figure import (
    GREY,
    ROW,
    WIDTH,
    draw_quantities,
    fill,
    markers,
    named,
    save,
    scale,
)
from qcsbm.auditing.guidance_report import GuidanceReport
from qcsbm.auditing.report import Quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot(report: GuidanceReport, path: str | Path) -> None:
    """Draw ``report`` into ``path``, whose suffix says the format: .png, .svg or .pdf.

    Raises:
        BadInput: it has another suffix, or Matplotlib is missing.
    """
    panels: list[Callable[[Axes], None]] = [lambda axes: _draw_kappa(axes, report)]
    if any(found.circulation for level in report.levels for found in level.weights):
        panels.append(lambda axes: _draw_circulation(axes, report))

    def draw(figure: "Figure") -> None:
        figure.set_size_inches(WIDTH, ROW)
        fill(figure, panels)

    save(draw, path)


def _draw_kappa(axes: "Axes", report: GuidanceReport) -> None:
    lines = [
        [
            (w.weight, w.kappa_squared, 4 * w.zero_within.nasym if w.zero_within else None)
            for w in level.weights
        ]
        for level in report.levels
    ]
    axes.set(title="Asymmetry under guidance", ylabel="κ² = 4 NAsym")
    _draw(axes, report, lines)
    # Beside the panel, where no line can run through it.
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1.05), handlelength=1, handletextpad=0.5)


def _draw_circulation(axes: "Axes", report: GuidanceReport) -> None:
    circles = [
        [(found.weight, found.circulation) for found in level.weights] for level in report.levels
    ]
    lines = [
        [(weight, c.rms, None if c.seen else c.error) for weight, c in level if c]
        for level in circles
    ]
    unit = next(c.unit for level in circles for _, c in level if c)
    axes.set(title="Circulation around triangles of samples", ylabel=f"root mean square ({unit})")
    _draw(axes, report, lines)


def _draw(
    axes: "Axes",
    report: GuidanceReport,
    lines: list[list[tuple[float, Quantity, float | None]]],
) -> None:
    """A line for each level, with hollow triangles where there is nothing but a bound.

    They stand below the axis unless there is nothing else: on an axis with bounds nothing else
    could be read.
    """
    import matplotlib

    axes.set_xlabel("guidance weight w")
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, max(len(lines), 2)))
    seen = [quantity for line in lines for _, quantity, bound in line if bound is None]
    names = named(report.levels)
    hollow: dict[str, Any] = {"marker": "v", "markerfacecolor": "white", "linestyle": "none"}
    for line, colour, name, marker in zip(lines, colours, names, markers(), strict=False):
        line = sorted(line, key=lambda point: point[0])
        axes.plot([], [], color=colour, marker=marker, label=name)
        found = [(weight, quantity) for weight, quantity, bound in line if bound is None]
        if found:
            weights, quantities = zip(*found, strict=True)
            draw_quantities(axes, np.array(weights), quantities, color=colour, marker=marker)
        bounds = [(weight, bound) for weight, _, bound in line if bound is not None]
        if bounds:
            weights, sizes = zip(*bounds, strict=True)
            if seen:
                sizes, transform = (0,) * len(sizes), axes.get_xaxis_transform()
            else:
                transform = axes.transData
            axes.plot(weights, sizes, color=colour, clip_on=False, transform=transform, **hollow)
    if len(seen) < sum(map(len, lines)):
        axes.plot([], [], color=GREY, label="zero within", **hollow)
    if seen:
        scale(axes, seen)
    elif any(bound for line in lines for _, _, bound in line):
        axes.set_yscale("log", nonpositive="clip")
