"""Draw all pictures of the trained models of a dataset, from the records of all its stages."""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from qcsbm.data.splits import describe
from qcsbm.report import tables
from qcsbm.report.figures import frames, runs, style
from qcsbm.report.figures.style import Look
from qcsbm.schema.specifications import FiguresSpec
from qcsbm.stages.aggregation import add_records, read_records
from qcsbm.stages.arguments import add_data

Records = dict[Path, dict[str, Any]]
MEASURED = ("likelihood", "asymmetry", "circulation", "sample", "quality")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_records(parser, FiguresSpec, "records of all stages")
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write pictures to")


def run(arguments: argparse.Namespace) -> None:
    spec: FiguresSpec = arguments.spec
    records, _ = read_records(arguments)
    looks = style.looks(dict(spec.methods))
    for picture, (stages, draw) in PICTURES.items():
        # Of a method that failed there is nothing to draw.
        chosen = {path: record for path, record in records.items() if record["stage"] in stages}
        drawn = {record["method"] for record in chosen.values()}
        methods = {method: look for method, look in looks.items() if method in drawn}
        controls = {m: control for m, control in spec.controls.items() if {m, control} <= drawn}
        told = spec.model_copy(update={"controls": controls})
        figure = draw(chosen, methods, told) if chosen else style.nothing()
        style.save(figure, arguments.out / picture)
    for sampler in spec.samplers:
        figure = _samples(records, looks, sampler, arguments.data, spec)
        style.save(figure, arguments.out / f"figure3_{sampler}")


def _asymmetry(records: Records, methods: dict[str, Look], spec: FiguresSpec) -> Figure:
    return runs.asymmetry(frames.noise_levels(records), methods, spec.controls)


def _learning_curves(records: Records, methods: dict[str, Look], spec: FiguresSpec) -> Figure:
    return runs.learning_curves(frames.curves(records), methods, spec.controls)


def _metrics_by_seed(records: Records, methods: dict[str, Look], spec: FiguresSpec) -> Figure:
    return runs.metrics_by_seed(tables.tidy(list(records.values())), methods)


def _quality_against_compute(
    records: Records, methods: dict[str, Look], spec: FiguresSpec
) -> Figure:
    training = [path for path, record in records.items() if record["stage"] == "train"]
    measured = [record for record in records.values() if record["stage"] != "train"]
    seconds = frames.compute(training, spec.chains)
    return runs.quality_against_compute(tables.tidy(measured), seconds, methods)


def _samples(
    records: Records, looks: dict[str, Look], sampler: str, data: Path, spec: FiguresSpec
) -> Figure:
    generated = {
        record["method"]: path.parent / "samples.npy"
        for path, record in records.items()
        if record["stage"] == "sample"
        and (record["seed"], record["protocol"]["sampler"]) == (spec.seed, sampler)
    }
    levels = describe(data).levels
    return runs.samples(data / "test.npy", generated, looks, levels)


# What each picture is drawn from, and by what.
PICTURES = {
    "asymmetry": (("asymmetry",), _asymmetry),
    "learning_curves": (("train",), _learning_curves),
    "metrics_by_seed": (MEASURED, _metrics_by_seed),
    "quality_against_compute": ((*MEASURED, "train"), _quality_against_compute),
}
