"""Average Asym and NAsym over all noise levels, and list them by level.

The same images are perturbed at every level, so the standard error of the mean over levels is that
of the images' means over levels.
"""

import argparse

import pandas as pd

from qcsbm.quality.metrics import METRICS
from qcsbm.report.intervals import standard_error
from qcsbm.runtime import shards
from qcsbm.runtime.files import write_text
from qcsbm.runtime.provenance import gathered, read_record
from qcsbm.schema.specifications import AsymmetrySpec
from qcsbm.stages.arguments import add_output, add_record, add_shards, add_spec

NAMES = ("asym", "nasym")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, AsymmetrySpec)
    add_shards(parser)
    add_output(parser, "--levels", "values per noise level to write, CSV")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    # values: (levels, 2, images)
    t, sigma, values = shards.join(arguments.shards, ["t", "sigma", "values"])
    n = values.shape[2]
    levels = pd.DataFrame({"t": t, "sigma": sigma})
    records = [read_record(path) for path in arguments.records]
    with gathered(arguments.record, "gather_asymmetry", records, [arguments.levels]) as record:
        for i, name in enumerate(NAMES):
            per_image = values[:, i].mean(0)
            stderr = standard_error(per_image)
            record.metric(name, per_image.mean(), stderr, n, METRICS[name].unit)
            levels[name] = values[:, i].mean(1)
            levels[f"{name}_stderr"] = [standard_error(level) for level in values[:, i]]
        write_text(arguments.levels, levels.to_csv(index=False))
