"""Do models with less asymmetry have better likelihood and samples? Rank correlations over models.

    python benchmarks/asymmetry_and_quality.py METRICS.csv [--out FIGURE.svg]

`asymmetry_and_quality.yaml` says how to make the numbers.

For every dataset, NAsym and circulation (where it was measured) against NLL and every FD:

- *within*: Spearman's correlation over seeds for each method, averaged over methods. λ is the same,
  so that it cannot be the cause. p is exact up to drawing: seeds of quality are exchanged, the same
  way for all methods, since these share a seed's data and noise.
- *across*: the correlation over methods for each seed, averaged over seeds. λ lowers asymmetry and
  costs capacity at the same time. It is a cause of both, and the correlation says nothing of what
  asymmetry by itself does.

Intervals are 95 % bootstrap percentiles over seeds, of which all methods are measured. They are
too narrow: in 200 simulated sweeps of six methods each (correlation 0 and 0.6), those within λ
covered the truth in 89 and 89 % with five seeds, and in 93 and 92 % with ten. Fewer than five have
no interval. Reported is what is found, none included; nothing here is a test of a cause.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from tabulate import tabulate

from qcsbm.quality.metrics import METRICS, names
from qcsbm.report.figures import style
from qcsbm.schema.samplers import sampler_label

CAUSES, EFFECTS = ("nasym", "circulation"), ("nll", *names("fd"))
DRAWS = 2000
# Of three seeds the only resample with three different ones is the sample itself.
SEEDS_OF_AN_INTERVAL = 5


def table(rows, metric, sampler=None):
    """Values (seeds, methods) of what all seeds of a method have."""
    chosen = rows[rows["metric"] == metric]
    if sampler:
        chosen = chosen[chosen["sampler"] == sampler]
    return chosen.pivot(index="seed", columns="method", values="value")


def spearman(x, y):
    """Rank correlations of the columns of ``x`` and ``y`` (n, k), NaN where one is constant."""
    a, b = (rankdata(values, axis=0) for values in (x, y))
    a, b = a - a.mean(0), b - b.mean(0)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def within(x, y):
    """The mean over methods of correlations over seeds; ``x`` and ``y`` are (seeds, methods)."""
    return float(np.nanmean(spearman(x, y)))


def across(x, y):
    """The mean over seeds of correlations over methods."""
    return float(np.nanmean(spearman(x.T, y.T)))


def bootstrap(statistic, x, y, draws):
    """95 % percentiles over resampled seeds, NaN of few; resamples with fewer than three different
    ones are left out, as ranks of two say little."""
    if len(x) < SEEDS_OF_AN_INTERVAL:
        return np.nan, np.nan
    found = []
    for _ in range(DRAWS):
        chosen = draws.integers(len(x), size=len(x))
        if len(set(chosen)) > 2:
            found.append(statistic(x[chosen], y[chosen]))
    return np.nanpercentile(found, [2.5, 97.5])


def permutation(x, y, draws):
    """The share of exchanges of seeds that have a correlation within methods at least as large."""
    observed = abs(within(x, y))
    # Rounding must not tell equal correlations apart.
    exchanged = (y[draws.permutation(len(y))] for _ in range(DRAWS))
    larger = [abs(within(x, other)) >= observed - 1e-12 for other in exchanged]
    return (1 + sum(larger)) / (1 + DRAWS)


def pairs(rows):
    """(what, x, y) of every relation that was measured, on the seeds and methods of both."""
    for cause in CAUSES:
        x = table(rows, cause)
        for effect in EFFECTS:
            of_effect = rows[rows["metric"] == effect]
            for sampler in of_effect["sampler"].dropna().unique() if effect != "nll" else [None]:
                y = table(rows, effect, sampler)
                methods = x.columns.intersection(y.columns)
                both = pd.concat([x[methods], y[methods]], axis=1, keys=["x", "y"]).dropna()
                if len(both) > 2 and len(methods) > 2:
                    name = sampler and sampler_label(sampler)
                    what = METRICS[cause].heading, METRICS[effect].heading, name
                    yield what, both["x"], both["y"]


def relations(rows, seed=0):
    """A row for every relation: names, seeds, methods, both correlations, their intervals, p."""
    draws, found = np.random.default_rng(seed), []
    for (cause, effect, sampler), x, y in pairs(rows):
        x, y = x.to_numpy(), y.to_numpy()
        what = f"{cause}, {effect}" + (f", {sampler}" if sampler else "")
        inside, outside = (
            (statistic(x, y), *bootstrap(statistic, x, y, draws)) for statistic in (within, across)
        )
        found.append((what, *x.shape, inside, permutation(x, y, draws), outside))
    return found


def show(correlation, low, high):
    return f"{correlation:.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")


def draw(rows, out):
    """A panel for every relation of NAsym: models as points, those of a method in one colour."""
    found = [relation for relation in pairs(rows) if relation[0][0] == METRICS["nasym"].heading]
    figure, (axes,) = style.panels(1, len(found), 2.6)
    for panel, ((cause, effect, sampler), x, y) in zip(axes, found, strict=True):
        order = x.mean().sort_values().index
        for place, method in enumerate(order):
            # From the method with the least asymmetry to that with the most, dark to light.
            shade = str(0.75 * place / max(len(order) - 1, 1))
            panel.plot(x[method], y[method], ls="", marker="o", ms=2.5, color=shade)
        panel.set(xscale="log", xlabel=cause, title=effect + (f", {sampler}" if sampler else ""))
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metrics", type=Path)
    parser.add_argument("--out", type=Path, help="picture to write")
    arguments = parser.parse_args()
    metrics = pd.read_csv(arguments.metrics)
    for dataset, rows in metrics.groupby("dataset"):
        found = [
            [what, seeds, methods, show(*inside), f"{p:.2g}", show(*outside)]
            for what, seeds, methods, inside, p, outside in relations(rows)
        ]
        heads = ["relation", "seeds", "methods", "within λ", "p", "across λ (λ costs capacity)"]
        print(f"{dataset}\n\n{tabulate(found, heads, tablefmt='pipe', disable_numparse=True)}\n")
        if arguments.out and found:
            draw(rows, arguments.out.with_stem(f"{arguments.out.stem}_{dataset}"))


if __name__ == "__main__":
    main()
