"""Draw one picture of the trained models of a dataset, from the records that it needs."""

import argparse
from pathlib import Path

from qcsbm import failure, tables
from qcsbm.figures import frames, runs, style
from qcsbm.provenance import read_record
from qcsbm.stages.arguments import add_spec, existing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    parser.add_argument(
        "--records", type=existing, nargs="+", required=True, help="records of stages"
    )
    parser.add_argument("--out", type=Path, required=True, help="picture to write, without suffix")


def run(arguments: argparse.Namespace) -> None:
    spec = arguments.spec
    draw = PICTURES[spec["picture"]]
    found = {
        path: record
        for path in arguments.records
        if failure.KEY not in (record := read_record(path))
    }
    # Of a method that failed there is nothing to draw.
    drawn = {record["method"] for record in found.values()}
    methods = {method: label for method, label in spec["methods"] if method in drawn}
    controls = {m: control for m, control in spec["controls"].items() if {m, control} <= drawn}
    style.save(draw(list(found), methods, spec | {"controls": controls}), arguments.out)


def _asymmetry(records: list[Path], methods: dict, spec: dict):
    return runs.asymmetry(frames.noise_levels(records), methods, spec["controls"])


def _learning_curves(records: list[Path], methods: dict, spec: dict):
    return runs.learning_curves(frames.curves(records), methods, spec["controls"])


def _metrics_by_seed(records: list[Path], methods: dict, spec: dict):
    return runs.metrics_by_seed(tables.tidy([read_record(path) for path in records]), methods)


def _quality_against_compute(records: list[Path], methods: dict, spec: dict):
    training = [path for path in records if read_record(path)["stage"] == "train"]
    measured = [read_record(path) for path in records if path not in training]
    seconds = frames.compute(training, spec["chains"])
    return runs.quality_against_compute(tables.tidy(measured), seconds, methods)


PICTURES = {
    "asymmetry": _asymmetry,
    "learning_curves": _learning_curves,
    "metrics_by_seed": _metrics_by_seed,
    "quality_against_compute": _quality_against_compute,
}
