"""Draw `study/effects.svg`, and print the table of `study.md`.

    python docs/study.py [folder]

The picture has every effect of the two first families of comparisons with its interval. Filled
markers are decided after Holm's correction, open ones are not.
"""

import json
import math
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from tabulate import tabulate

from qcsbm.report.claims import UNDECIDED
from qcsbm.report.figures import style

NO_BREAK = "\N{NO-BREAK SPACE}"
FAMILIES = ("asymmetry", "primary")


def panel(axes: Axes, claims: list[dict], colours: dict[str, str]) -> None:
    """Effects on one dataset, all of them ratios or all differences, from top to bottom."""
    ratios = claims[0]["scale"] == "ratio"
    measures = list(dict.fromkeys(claim["measure"] for claim in claims))
    y, ticks = 0.0, []
    for measure in measures:
        first = y
        for claim in (claim for claim in claims if claim["measure"] == measure):
            colour = colours[claim["subject"]]
            filled = colour if claim["verdict"] != UNDECIDED else "white"
            axes.plot([claim["low"], claim["high"]], [y, y], color=colour, linewidth=1.2)
            axes.plot(claim["effect"], y, "o", color=colour, markerfacecolor=filled, ms=3.5)
            y += 1
        ticks.append((first + y - 1) / 2)
        y += 1
    axes.axvline(1 if ratios else 0, color=style.BLACK, linewidth=0.8)
    axes.set_yticks(ticks, measures)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    if ratios:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        decades = math.log10(high / low)
        subs = (1,) if decades > 1.5 else (1, 2, 5) if decades > 0.75 else (1, 1.5, 2, 3, 5, 7)
        few = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
        axes.xaxis.set_major_locator(LogLocator(subs=subs) if decades > 0.4 else few)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("ratio" if ratios else "difference (bits/dim)")


def draw(claims: list[dict]) -> Figure:
    """A row for each dataset: asymmetry, Fréchet distance, likelihood."""
    claims = [c for c in claims if c["family"] in FAMILIES and c["low"] is not None]
    topics = list(dict.fromkeys(claim["topic"] for claim in claims))
    subjects = list(dict.fromkeys(claim["subject"] for claim in claims))
    colours = dict(zip(subjects, style.COLOURS, strict=False))
    figure = Figure(figsize=(style.WIDTH, 0.6 + 3.3 * len(topics)), layout="constrained")
    rows = figure.subplots(len(topics), 3, squeeze=False)
    for row, topic in zip(rows, topics, strict=True):
        of_topic = [claim for claim in claims if claim["topic"] == topic]
        primary = [claim for claim in of_topic if claim["family"] == "primary"]
        panel(row[0], [c for c in of_topic if c["family"] == "asymmetry"], colours)
        panel(row[1], [c for c in primary if c["scale"] == "ratio"], colours)
        panel(row[2], [c for c in primary if c["scale"] == "difference"], colours)
        row[1].set_title(topic)
    handles = [Line2D([], [], marker="o", color=colours[s], label=s) for s in subjects]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def show(claim: dict) -> str:
    """Effect and interval with two digits of its width, bold where the claim is decided."""
    if claim["low"] is None:
        return "—"
    numbers = claim["effect"], claim["low"], claim["high"]
    decimals = max(0, 1 - math.floor(math.log10(numbers[2] - numbers[1])))
    effect, low, high = (f"{x:.{decimals}f}".replace("-", "−") for x in numbers)
    # A line may break between the effect and its interval, and nowhere else.
    text = f"{f'×{NO_BREAK}' if claim['scale'] == 'ratio' else ''}{effect} [{low},{NO_BREAK}{high}]"
    return f"**{text}**" if claim["verdict"] != UNDECIDED else text


def table(claims: list[dict]) -> str:
    """Every effect of the two first families, a column for each dataset."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for claim in claims:
        if claim["family"] in FAMILIES:
            key = claim["subject"], claim["measure"]
            rows.setdefault(key, {})[claim["topic"]] = show(claim)
    subjects = list(dict.fromkeys(claim["subject"] for claim in claims))
    topics = list(dict.fromkeys(claim["topic"] for claim in claims))
    found = [
        [short(subject), measure, *(effects.get(topic, "—") for topic in topics)]
        for (subject, measure), effects in sorted(
            rows.items(), key=lambda row: subjects.index(row[0][0])
        )
    ]
    heads = ["Of", "Effect on", *topics]
    return tabulate(found, heads, tablefmt="pipe", disable_numparse=True)


def short(subject: str) -> str:
    """A comparison without the name of the network, "equal time" in place of whose time it is."""
    time = ", QC⁺'s time"
    name = subject.replace("-NCSN++", "").replace(time, "")
    name = name.replace(" against ", f"{NO_BREAK}against{NO_BREAK}")
    return f"{name}, equal time" if time in subject else name


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("study"))
    claims = json.loads((folder / "claims.json").read_text(encoding="utf-8"))["claims"]
    draw(claims).savefig(folder / "effects.svg", metadata={"Date": None})
    print(table(claims))


if __name__ == "__main__":
    main()
