"""What effects can a study detect, judging by the spread over seeds of a run that is there?

    python benchmarks/study_power.py results/metrics.csv [--configfile config/study.yaml]
        [--called trace_001=qc …]

For every dataset and family of comparisons that the experiment file declares: the smallest effect
that would be found in 80 of 100 studies with its number of seeds, after Holm's correction for the
whole family. First in standard deviations of paired differences, then, where the run has two or
more seeds of both methods, in the metric's unit, or as a factor for metrics that are compared by
ratios. A deviation from few seeds is rough: beside it stands its own 95 % interval.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import chdtri
from tabulate import tabulate

from qcsbm.experiment.config import read
from qcsbm.quality.metrics import METRICS, OF_SAMPLES, names
from qcsbm.report.claims import paired
from qcsbm.report.intervals import detectable
from qcsbm.report.tables import format_value


def tests_of(family):
    """(metric, sampler, method, control) of all comparisons of a family."""
    return [
        (metric, sampler, *pair)
        for metric in family.metrics
        for sampler in (family.samplers if metric in OF_SAMPLES else [None])
        for pair in family.pairs
    ]


def deviations(rows, metric, sampler, method, control):
    """Name, number of pairs and standard deviation of what is compared, None if there is none."""
    for name in names(metric):
        of_method, of_control = paired(rows, name, sampler, method, control)
        positive = not METRICS[name].ratio or min([*of_method, *of_control], default=0) > 0
        if len(of_method) > 1 and positive:
            logarithm = np.log if METRICS[name].ratio else np.asarray
            differences = logarithm(of_method) - logarithm(of_control)
            return name, len(differences), float(differences.std(ddof=1))
    return None


def shown(size, ratio):
    return f"× {np.exp(size):.3g}" if ratio else f"±{format_value(size, None)}"


def in_deviations(experiment):
    """A row for every dataset: what its seeds detect in every family."""
    rows = [
        [dataset, len(seeds)]
        + [
            f"{detectable(1.0, len(seeds), len(tests_of(family))):.2f}"
            for family in experiment.comparisons.values()
        ]
        for dataset, seeds in experiment.seeds.items()
    ]
    families = [f"{name} ({len(tests_of(f))})" for name, f in experiment.comparisons.items()]
    return tabulate(rows, ["dataset", "seeds", *families], tablefmt="pipe", disable_numparse=True)


def in_units(experiment, metrics, dataset):
    """A row for every comparison that the run has the spread of."""
    found = metrics[metrics["dataset"] == dataset]
    n, rows = len(experiment.seeds[dataset]), []
    for name, family in experiment.comparisons.items():
        tests = tests_of(family)
        for metric, sampler, method, control in tests:
            spread = deviations(found, metric, sampler, method, control)
            if spread is None:
                continue
            metric, seeds, deviation = spread
            # Of a variance, by the χ² distribution.
            ends = deviation * np.sqrt((seeds - 1) / chdtri(seeds - 1, [0.025, 0.975]))
            ratio = METRICS[metric].ratio
            sizes = [detectable(d, n, len(tests)) for d in (deviation, *ends)]
            effect, low, high = (shown(size, ratio) for size in sizes)
            what = METRICS[metric].heading + (f", {sampler}" if sampler else "")
            rows.append([name, f"{method}, {control}", what, seeds, effect, f"{low} to {high}"])
    heads = ["family", "compared", "metric", "seeds here", "detectable", "95 %"]
    return tabulate(rows, heads, tablefmt="pipe", disable_numparse=True) if rows else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metrics", type=Path, help="metrics.csv of a run that is there")
    parser.add_argument("--configfile", type=Path, default=Path("config/study.yaml"))
    parser.add_argument("--called", nargs="*", default=[], metavar="NAME=METHOD")
    arguments = parser.parse_args()
    experiment = read(arguments.configfile)
    metrics = pd.read_csv(arguments.metrics)
    called = dict(pair.split("=") for pair in arguments.called)
    metrics["method"] = metrics["method"].replace(called)
    print(in_deviations(experiment))
    for dataset in experiment.datasets:
        table = in_units(experiment, metrics, dataset)
        print(f"\n{dataset}\n\n{table or 'found no spread in this run'}")


if __name__ == "__main__":
    main()
