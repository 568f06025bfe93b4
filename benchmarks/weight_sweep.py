"""Does an estimator of lower variance buy quality? Asym, NLL and FD against λ.

    snakemake results/weight_sweep/metrics.csv --configfile benchmarks/weight_sweep.yaml
    python benchmarks/weight_sweep.py [--out docs/weight_sweep.svg]

Every number of `weight_sweep.yaml` is compared with that of another method with the same seed, as
both saw the same data and noise: a difference, or for Asym a ratio. Means over seeds have Student's
95 % intervals; of ratios, those of the logarithm. A picture is written; printed are a table of
every method against U, one of the uses of the antisymmetric estimator against the trace at the same
λ, and as the last line a JSON object.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter

from qcsbm.experiment.config import read
from qcsbm.report.figures import style
from qcsbm.report.intervals import t_interval

HERE = Path(__file__).parent
METRICS = {"asym": "Asym / U's", "nll": "NLL − U's (bits/dim)", "fd": "FD − U's"}
COLOURS = {
    "trace": style.GREEN,
    "antisymmetric": style.ORANGE,
    "part": style.SKY,
    "fourth": style.BLUE,
    "sparse": style.PURPLE,
}
MARKERS = {"trace": "^", "antisymmetric": "D", "part": "v", "fourth": "s", "sparse": "P"}


def compare(metrics: pd.DataFrame, metric: str, method: str, other: str) -> tuple[float, ...]:
    """Mean and interval over seeds of ``method`` against ``other``; a ratio if of Asym."""
    values = metrics[metrics["metric"] == metric].pivot(
        index="seed", columns="method", values="value"
    )
    if metric == "asym":
        changes = np.log(values[method]) - np.log(values[other])
        return tuple(np.exp([changes.mean(), *t_interval(changes)]))
    changes = values[method] - values[other]
    return (changes.mean(), *t_interval(changes))


def training_s(root: Path, method: str, steps: int, seeds: list[int]) -> float:
    """Mean CPU seconds of the last segment of a method's training."""
    paths = [root / f"runs/digits/{method}/seed{seed}/step{steps}.json" for seed in seeds]
    return float(np.mean([json.loads(path.read_text())["cost"]["cpu_s"] for path in paths]))


def show(value: tuple[float, ...]) -> str:
    return "{:.3g} [{:.3g}, {:.3g}]".format(*value)


def draw(compared: pd.DataFrame, out: Path) -> None:
    """A panel for each metric against λ, a line for each kind that was tried at several."""
    figure, (axes,) = style.panels(1, 3, 2.4)
    for panel, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for place, kind in enumerate(COLOURS):
            rows = compared[(compared["kind"] == kind) & (compared["metric"] == metric)]
            mean, low, high = rows[["mean", "low", "high"]].to_numpy().T
            panel.errorbar(
                rows["weight"] * 1.1 ** (place - 2),
                mean,
                [mean - low, high - mean],
                color=COLOURS[kind],
                marker=MARKERS[kind],
                elinewidth=0.8,
                label=kind,
            )
        panel.axhline(metric == "asym", color=style.GREY, linewidth=0.8, ls=":")
        panel.set(xscale="log", xlabel="λ", title=title)
    axes[0].set_yscale("log")
    # A model that was pulled apart is off the scale: what it lost is in the table.
    axes[1].set_ylim(-0.02, 0.4)
    axes[2].set_ylim(-8, 150)
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/weight_sweep.svg")
    arguments = parser.parse_args()
    experiment = read(HERE / "weight_sweep.yaml")
    root, seeds = Path(experiment.root), experiment.seeds["digits"]
    metrics = pd.read_csv(root / "metrics.csv")

    rows, result = [], {}
    print(f"{'method':>20} {'λ':>6} {'CPU s':>7}" + "".join(f" {m:>26}" for m in METRICS.values()))
    for method in experiment.methods[1:]:
        cell, kind = experiment.cells["digits", method], method.partition("_")[0]
        against = {metric: compare(metrics, metric, method, "u") for metric in METRICS}
        weight, cpu_s = cell.regulariser.weight, training_s(root, method, cell.steps, seeds)
        rows += [(kind, weight, metric, *value) for metric, value in against.items()]
        shown = "".join(f" {show(value):>26}" for value in against.values())
        print(f"{kind:>20} {weight:6g} {cpu_s:7.1f}{shown}")
        result[method] = against | {"cpu_s": cpu_s}
    compared = pd.DataFrame(rows, columns=["kind", "weight", "metric", "mean", "low", "high"])
    for method in experiment.methods:
        kind, _, weight = method.partition("_")
        trace = f"trace_{weight}"
        if kind not in ("u", "trace"):
            against = [compare(metrics, metric, method, trace) for metric in METRICS]
            print(
                f"{method:>20} / {trace:<10}" + "".join(f" {show(value):>26}" for value in against)
            )
    draw(compared, arguments.out)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
