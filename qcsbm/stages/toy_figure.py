"""Draw the models of a two-dimensional example: vector fields, their rotation, and samples."""

import argparse
from pathlib import Path

from qcsbm.motivation import toy
from qcsbm.report.figures import style
from qcsbm.report.figures import toy as pictures
from qcsbm.runtime.npy import read_array
from qcsbm.schema.specifications import ToyFigureSpec
from qcsbm.stages.arguments import add_spec, existing
from qcsbm.stages.toy import FIELD_TIME, data

FIELD = ("x", "score", "curl", "samples")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, ToyFigureSpec)
    parser.add_argument(
        "--fields", type=existing, nargs="+", required=True, help="C's, U's and QC's, .npz"
    )
    parser.add_argument("--figure", type=Path, required=True, help="picture, without suffix")


def run(arguments: argparse.Namespace) -> None:
    spec: ToyFigureSpec = arguments.spec
    points = data(spec.dataset, spec.points, spec.seed)
    density = toy.oracle(spec.dataset, points)
    models = {}
    for method, path in zip(toy.METHODS, arguments.fields, strict=True):
        models[method] = {name: read_array(path, name) for name in FIELD}
    exact = pictures.exact_field(density, FIELD_TIME, models["u"]["x"])
    style.save(pictures.examples(exact, points.numpy(), models), arguments.figure)
