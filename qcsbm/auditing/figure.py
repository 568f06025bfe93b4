"""An audit as a figure, and as one page with its table.

Colours are those that Okabe and Ito chose to be told apart with any colour vision; markers and
lines differ too, so that nothing is lost in grey. Bytes depend on the report alone.

References:
    Color Universal Design (Okabe & Ito, 2008); https://jfly.uni-koeln.de/color/
"""

import itertools
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcsbm.auditing.guidance_report import GuidedLevel
from qcsbm.auditing.report import (
    Level,
    Mean,
    Quantity,
    Report,
    heading,
    interval,
    protocol,
    short,
    shown,
)
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# By format, what keeps dates and versions out of a file.
METADATA = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
BLACK, GREY, BLUE, VERMILLION, GREEN = "#000000", "#777777", "#0072B2", "#D55E00", "#009E73"
OTHER_KINDS = ((VERMILLION, "s"), (GREEN, "^"), ("#CC79A7", "D"), ("#E69F00", "v"))
LOOK: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "errorbar.capsize": 2,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "qcsbm",
    "pdf.fonttype": 42,
}
# Inches: a page's text is about 7 wide.
WIDTH, ROW = 7.0, 2.35
MARGIN, LINE, CHARACTER = 0.4, 0.155, 0.07
# Beside a panel, below it and above it.
LABELS, EDGE, BELOW, TITLE = 0.68, 0.1, 0.45, 0.25
# Values this many times as large as others need a logarithmic axis.
FAR = 20


def plot(report: Report, path: str | Path) -> None:
    """Draw ``report`` into ``path``, whose suffix says the format: .png, .svg or .pdf.

    Raises:
        BadInput: it has another suffix, or Matplotlib is missing.
    """

    def draw(figure: "Figure") -> None:
        panels = list(_panels(report))
        figure.set_size_inches(WIDTH, ROW * -(-len(panels) // 2))
        fill(figure, panels)

    save(draw, path)


def page(report: Report, path: str | Path) -> None:
    """The table, the figure and what may be concluded on one page, into ``path`` as in `plot`.

    Raises:
        BadInput: as in `plot`.
    """

    below = [*(f"Warning: {text}" for text in report.warnings), *report.conclusion]
    panels = list(_panels(report))
    how = protocol(report.field, report.protocol, report.cost)
    write_page(
        path,
        heading(report.field),
        [how],
        list(_rows(report)),
        panels,
        below,
    )


def write_page(
    path: str | Path,
    title: str,
    above: list[str],
    rows: list[list[str]],
    panels: list[Callable[["Axes"], None]],
    below: list[str],
) -> None:
    """A ``title``, paragraphs, the cells of a table with its head first, panels and paragraphs.

    Raises:
        BadInput: as in `plot`.
    """

    def draw(figure: "Figure") -> None:
        first, last = (
            [line for text in texts for line in [*_wrapped(text), ""]] for texts in (above, below)
        )
        heights = [
            MARGIN + LINE * (len(first) + len(rows) + 3),
            ROW * -(-len(panels) // 2),
            MARGIN + LINE * (len(last) + 1),
        ]
        figure.set_size_inches(WIDTH + 2 * MARGIN, sum(heights))
        _write_table(figure, title, first, rows)
        fill(figure, panels, MARGIN, heights[0])
        _write(figure, last, heights[0] + heights[1] + LINE)

    save(draw, path)


def save(draw: Callable[["Figure"], None], path: str | Path) -> None:
    path = Path(path)
    if path.suffix not in METADATA:
        raise BadInput(
            f"{path}: found the suffix {path.suffix!r}, expected one of {', '.join(METADATA)}"
        )
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput(
            "Matplotlib: found no such package, expected it for figures; pip install "
            "'qcsbm[figures]'"
        ) from None
    # The look is not the caller's: it holds while this figure is drawn and saved.
    with matplotlib.rc_context(LOOK), atomic(path) as temporary:
        figure = Figure()
        draw(figure)
        figure.savefig(temporary, metadata=METADATA[path.suffix])


def fill(
    figure: "Figure", panels: list[Callable[["Axes"], None]], left: float = 0.0, above: float = 0.0
) -> None:
    """Draw two ``panels`` a row, ``left`` and ``above`` inches from the corner of ``figure``.

    Automatic layouts differ in their last digits from one time to the next.
    """
    width, height = figure.get_size_inches()
    columns = min(2, len(panels))
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        x = left + column * WIDTH / columns + LABELS
        y = height - above - (row + 1) * ROW + BELOW
        right = LABELS if column == 0 else EDGE
        inches = (x, y, WIDTH / columns - LABELS - right, ROW - BELOW - TITLE)
        parts = zip(inches, (width, height) * 2, strict=True)
        first, second, wide, high = (part / whole for part, whole in parts)
        panel(figure.add_axes((first, second, wide, high)))


def _panels(report: Report) -> Iterator[Callable[["Axes"], None]]:
    yield lambda axes: _draw_asymmetry(axes, report)
    if any(level.circulation for level in report.levels):
        yield lambda axes: _draw_circulation(axes, report)
    if any(level.spectrum and not level.zero_within for level in report.levels):
        yield lambda axes: _draw_rotation(axes, report)
    if any(level.spectrum for level in report.levels):
        yield lambda axes: _draw_eigenvalues(axes, report)


def _noise(levels: tuple[Level, ...]) -> tuple[np.ndarray, str, bool]:
    """Where levels stand on the axis, its label, and whether it is logarithmic."""
    sigma = [level.sigma for level in levels if level.sigma is not None]
    if len(sigma) == len(levels):
        return np.array(sigma), "noise level σ, relative to the data", min(sigma) > 0
    times = [level.t for level in levels if level.t is not None]
    if len(times) == len(levels):
        return np.array(times), "t", False
    return np.arange(len(levels), dtype=float), "", False


def _along_noise(axes: "Axes", report: Report, title: str) -> np.ndarray:
    x, label, logarithmic = _noise(report.levels)
    axes.set(title=title, xlabel=label)
    if logarithmic:
        axes.set_xscale("log")
        if len(x) == 1:
            axes.set_xlim(x[0] / 3, x[0] * 3)
    if not label:
        axes.set_xticks([])
    return x


def draw_quantities(
    axes: "Axes", x: np.ndarray, quantities: Sequence[Quantity], **options: Any
) -> None:
    value = np.array([q.value for q in quantities])
    low = np.array([q.value if q.low is None else q.low for q in quantities])
    high = np.array([q.value if q.high is None else q.high for q in quantities])
    # An estimate may lie outside of what is left of its interval where it is cut at 0.
    errors = np.maximum(np.stack([value - low, high - value]), 0)
    axes.errorbar(x, value, errors, **options)


def _draw_asymmetry(axes: "Axes", report: Report) -> None:
    x = _along_noise(axes, report, "Asymmetry")
    found = [
        (p, level.nasym) for p, level in zip(x, report.levels, strict=True) if not level.zero_within
    ]
    if found:
        points, quantities = zip(*found, strict=True)
        kind = report.field.kind
        draw_quantities(axes, np.array(points), quantities, color=BLUE, marker="o", label=kind)
    bounds = [
        (p, z.nasym) for p, level in zip(x, report.levels, strict=True) if (z := level.zero_within)
    ]
    _draw_zeros(axes, bounds, alone=not found)
    kinds = report.levels[0].nasym_by_kind
    for kind, (colour, marker) in zip(kinds, OTHER_KINDS, strict=False):
        of_kind = [level.nasym_by_kind[kind] for level in report.levels]
        # Larger and hollow: kinds that differ by a factor alone lie upon each other.
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 7}
        look |= {"markerfacecolor": "none", "linestyle": "--", "label": f"as {kind}"}
        draw_quantities(axes, x, of_kind, **look)
    axes.set_ylabel("NAsym")
    if kinds or bounds:
        axes.legend()
    seen = [level.nasym for level in report.levels if not level.zero_within]
    scale(axes, [*seen, *(q for level in report.levels for q in level.nasym_by_kind.values())])
    # λ at the ticks of NAsym, whose lines it shares.
    roots = axes.secondary_yaxis("right")
    roots.set_ylabel("λ = √NAsym")
    roots.yaxis.set_major_formatter(lambda nasym, _: short(np.sqrt(max(nasym, 0))))
    roots.yaxis.set_minor_formatter("")


def _draw_circulation(axes: "Axes", report: Report) -> None:
    x = _along_noise(axes, report, "Circulation around triangles of samples")
    found = [
        (point, level.circulation)
        for point, level in zip(x, report.levels, strict=True)
        if level.circulation
    ]
    seen = [(point, circulation.rms) for point, circulation in found if circulation.seen]
    if seen:
        points, quantities = zip(*seen, strict=True)
        draw_quantities(axes, np.array(points), quantities, color=VERMILLION, marker="s")
    bounds = [(point, circulation.error) for point, circulation in found if not circulation.seen]
    _draw_zeros(axes, bounds, alone=not seen)
    if bounds:
        axes.legend()
    axes.set_ylabel(f"root mean square ({found[0][1].unit})")
    scale(axes, [rms for _, rms in seen])


def _draw_zeros(axes: "Axes", bounds: list[tuple[float, float]], alone: bool) -> None:
    """Levels at which nothing was seen: below the axis, or at their bounds if these are ``alone``.

    Bounds may be so small that nothing else could be read on an axis with them.
    """
    if bounds:
        x, y = zip(*bounds, strict=True)
        look: dict[str, Any] = {"marker": "v", "markerfacecolor": "white", "linestyle": "none"}
        look |= {"color": GREY, "label": "zero within", "clip_on": False}
        if alone:
            axes.plot(x, y, **look)
        else:
            axes.plot(x, [0] * len(x), transform=axes.get_xaxis_transform(), **look)


def _draw_rotation(axes: "Axes", report: Report) -> None:
    import matplotlib

    axes.set(title="Rotation", xlabel="planes", ylabel="share of ‖A‖² in the first planes")
    levels = [level for level in report.levels if level.spectrum and not level.zero_within]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, max(len(levels), 2)))
    names = named(levels)
    planes, highest = 1, 0.0
    for level, colour, name, marker in zip(levels, colours, names, markers(), strict=False):
        for number, spectrum in enumerate(level.spectrum):
            squares = np.square(spectrum.rotation).cumsum()
            if spectrum.share and squares[-1] > 0:
                shares = spectrum.share * squares / squares[-1]
                planes, highest = max(planes, len(shares)), max(highest, *shares)
                label = name if number == 0 else None
                k = np.arange(1, len(shares) + 1)
                axes.plot(k, shares, color=colour, marker=marker, label=label)
    columns = 2 if len(levels) < 7 else 3
    # The legend stands above what the lines reach.
    highest = min(1.0, 1.1 * highest) or 1.0
    axes.set_ylim(0, highest * (1.05 + 0.13 * -(-len(levels) // columns)))
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= highest])
    axes.set_xlim(0.6, planes + 0.4)
    axes.set_xticks(range(1, planes + 1))
    if levels:
        axes.legend(ncols=columns, loc="upper left", columnspacing=1.2)


def _draw_eigenvalues(axes: "Axes", report: Report) -> None:
    of_denoiser = any(s.denoiser for level in report.levels for s in level.spectrum)
    x = _along_noise(axes, report, "Eigenvalues")
    points, lows, highs = [], [], []
    for point, level in zip(x, report.levels, strict=True):
        ends = [s.denoiser if of_denoiser else s.symmetric for s in level.spectrum]
        for low, high in (end for end in ends if end):
            if low is None or high is None:
                continue
            points.append(point)
            lows.append(low)
            highs.append(high)
    axes.vlines(points, lows, highs, color=GREY, linewidth=0.8)
    axes.plot(points, highs, color=BLUE, marker="^", linestyle="none", label="highest")
    axes.plot(points, lows, color=VERMILLION, marker="v", linestyle="none", label="lowest")
    axes.axhline(0, color=BLACK, linewidth=0.8)
    sizes = np.abs([0.0, *lows, *highs])
    if not of_denoiser and sizes.max() > FAR * np.median(sizes):
        axes.set_yscale("symlog", linthresh=max(float(np.median(sizes)), 1e-30))
    axes.set_ylabel("denoiser's Jacobian" if of_denoiser else "(J + Jᵀ) / 2")
    beside_title: dict[str, Any] = {
        "loc": "lower right",
        "bbox_to_anchor": (1, 1),
        "borderaxespad": 0.2,
    }
    axes.legend(ncols=2, handletextpad=0, columnspacing=0.8, **beside_title)


def scale(axes: "Axes", quantities: Sequence[Quantity]) -> None:
    """Logarithmic where values are far apart, else from 0 on."""
    values = [q.value for q in quantities if q.value > 0]
    if values and max(values) > FAR * min(values):
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom=min(values) / 5)
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: short(value))


def named(levels: Sequence[Level | GuidedLevel]) -> list[str]:
    return [
        f"σ = {level.sigma:.3g}"
        if level.sigma is not None
        else "samples"
        if level.t is None
        else f"t = {level.t:.3g}"
        for level in levels
    ]


def markers() -> Iterator[str]:
    return itertools.cycle("os^Dv<>P")


def _rows(report: Report) -> Iterator[list[str]]:
    """The cells of the page's table, its head first."""
    mean = report.mean
    unit = next((level.circulation.unit for level in report.levels if level.circulation), None)
    head = ["t", "σ", "Asym", "NAsym", "95 % interval", "λ", "κ²"]
    yield [*head, f"circulation ({unit})" if unit else ""]
    for level in report.levels:
        place = ["" if number is None else f"{number:.3g}" for number in (level.t, level.sigma)]
        yield [*place, *_numbers(level), str(level.circulation or "")]
    if len(report.levels) > 1:
        yield ["mean", "", *_numbers(mean), ""]


def _numbers(found: Level | Mean) -> list[str]:
    if found.zero_within:
        bounds = (found.zero_within.asym, found.zero_within.nasym, found.zero_within.lambda_)
        asym, nasym, root = (f"< {short(bound)}" for bound in bounds)
        return [asym, nasym, "zero", root, f"< {short(4 * found.zero_within.nasym)}"]
    quantities = [found.asym, found.nasym, found.lambda_, found.kappa_squared]
    asym, nasym, root, kappa = map(shown, quantities)
    return [asym, nasym, interval(found.nasym), root, kappa]


def _write_table(figure: "Figure", title: str, above: list[str], rows: list[list[str]]) -> None:
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    left = MARGIN / width
    figure.text(left, 1 - MARGIN / height, title, fontsize=11, weight="bold", va="top")
    start = MARGIN + 2 * LINE
    _write(figure, above, start)
    start += LINE * len(above)
    # Columns as wide as their longest cell, and as far apart as the page allows.
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    lengths = [1 + max(map(len, column)) for column in columns]
    gap = (WIDTH - sum(lengths) * CHARACTER) / max(len(columns) - 1, 1)
    right = MARGIN
    for column, length in zip(columns, lengths, strict=True):
        right += length * CHARACTER
        for number, cell in enumerate(column):
            below = 1 - (start + LINE * (number + (number > 0) / 2)) / height
            figure.text(right / width, below, cell, fontsize=7.5, ha="right", va="top")
        right += min(gap, MARGIN)
    end = start + LINE * (len(rows) + 0.6)
    for y in (start - 0.04, start + LINE * 1.15, end):
        across = [left, 1 - left]
        figure.add_artist(Line2D(across, [1 - y / height] * 2, color=BLACK, linewidth=0.8))


def _write(figure: "Figure", lines: list[str], start: float) -> None:
    """``lines`` of text, ``start`` inches from the top."""
    width, height = figure.get_size_inches()
    for number, line in enumerate(lines):
        below = 1 - (start + LINE * number) / height
        figure.text(MARGIN / width, below, line, fontsize=7.5, va="top")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 122)
