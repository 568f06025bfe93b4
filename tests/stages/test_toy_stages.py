"""The two-dimensional examples as stages: record, table and picture of tiny runs."""

import json
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import in_process
from matplotlib.quiver import Quiver

from qcsbm.experiment import specification
from qcsbm.motivation import toy
from qcsbm.report.figures import toy as pictures
from qcsbm.report.tables import tidy
from qcsbm.runtime.errors import Diverged
from qcsbm.schema.specifications import ToyFigureSpec, ToySpec
from qcsbm.stages import toy as stage
from qcsbm.stages import toy_figure, toy_table

PROTOCOL = {"points": 500, "steps": 3, "batch_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run of every method on 8-Gaussian."""
    folder = tmp_path_factory.mktemp("toy")
    for method in toy.METHODS:
        spec = {"version": 1, "dataset": "8-gaussian", "method": method, "seed": 0}
        stage.run(
            Namespace(
                spec=ToySpec.model_validate({**spec, "protocol": PROTOCOL}),
                out=folder / f"{method}.npz",
                record=folder / f"{method}.json",
            )
        )
    return folder


@pytest.fixture(scope="module")
def records(folder):
    return {method: json.loads((folder / f"{method}.json").read_text()) for method in toy.METHODS}


def test_a_divergence_ends_the_job_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def diverge(*_):
        raise Diverged("it diverged")

    monkeypatch.setattr(toy, "train", diverge)
    spec = {"version": 1, "dataset": "8-gaussian", "method": "u", "seed": 0, "protocol": PROTOCOL}
    outputs = ["--out", tmp_path / "u.npz", "--record", tmp_path / "u.json"]
    assert in_process("toy", "--spec", json.dumps(spec), *outputs) == 1
    assert capsys.readouterr().err == "qcsbm toy: it diverged\n"
    assert not list(tmp_path.iterdir())


def test_names_that_the_workflow_knows_are_those_of_the_experiment():
    assert tuple(toy.DATASETS) == specification.TOY_DATASETS
    assert tuple(toy.METHODS) == specification.TOY_METHODS


def test_record_has_every_metric_with_its_error(records):
    for record in records.values():
        metrics = {metric["name"]: metric for metric in record["metrics"]}
        assert set(metrics) == set(toy_table.COLUMNS)
        assert all(metric["stderr"] is not None for metric in metrics.values())
        assert record["protocol"] == {**PROTOCOL, "test_points": stage.TEST}
    asym = {name: record["metrics"][1]["value"] for name, record in records.items()}
    assert asym["c"] < 1e-20 < 1e-4 < asym["u"]


def test_nll_excess_estimates_a_divergence_and_is_zero_for_the_exact_score():
    density = toy.oracle("8-gaussian", torch.empty(0))
    sigma = torch.full((200,), toy.SDE.sigma_min, dtype=torch.float64)
    x = density.sample(sigma, torch.Generator().manual_seed(0))
    excess = toy.nll(lambda x, t: density.score(x, toy.SDE.sigma(t)), density, x)
    excess = excess + density.log_prob(x, sigma)
    # The solver's tolerance is 1e-5 per step.
    assert excess.abs().max() < 1e-3


def test_field_and_samples_are_those_of_the_trained_model(folder):
    points = stage.data("8-gaussian", PROTOCOL["points"], 0)
    model = toy.train(toy.METHODS["qc"], points, PROTOCOL["steps"], PROTOCOL["batch_size"], 0)
    field = toy.vector_field(model, stage.FIELD_TIME)
    with np.load(folder / "qc.npz") as file:
        np.testing.assert_array_equal(file["curl"], field.curl)
        assert file["samples"].shape == (stage.TEST, 2)


def test_table_shows_means_over_seeds_by_data_set(records):
    again = {**records["u"], "seed": 1}
    again["metrics"] = [{**m, "value": m["value"] + 0.2} for m in records["u"]["metrics"]]
    (section,) = toy_table.sections(tidy([*records.values(), again]))
    assert section.heading == "8-gaussian"
    assert [row[0] for row in section.rows] == ["C", "U", "QC"]
    value = records["u"]["metrics"][0]["value"]
    mean, error = (float(text) for text in section.rows[1][1].split(" ± "))
    assert mean == pytest.approx(value + 0.1, abs=0.05) and error == pytest.approx(0.1)
    assert section.notes[0] == "Points: 500; steps: 3, with batches of 16; seeds: 2."


def test_picture_is_drawn_from_the_exact_density_and_the_models(folder, tmp_path):
    spec = ToyFigureSpec(version=1, dataset="8-gaussian", points=500, seed=0)
    fields = [folder / f"{method}.npz" for method in toy.METHODS]
    toy_figure.run(Namespace(spec=spec, fields=fields, figure=tmp_path / "picture"))
    svg = (tmp_path / "picture.svg").read_text()
    assert all(f">{label}</text>" in svg for label in ("Exact", "C", "U", "QC", "curl"))

    models = {}
    for method, path in zip(toy.METHODS, fields, strict=True):
        with np.load(path) as file:
            models[method] = dict(file)
    density = toy.oracle("8-gaussian", torch.empty(0))
    exact = pictures.exact_field(density, stage.FIELD_TIME, models["u"]["x"])
    cell_area = (16 / 39) ** 2
    assert exact.density.sum() * cell_area == pytest.approx(1, abs=0.02)
    figure = pictures.examples(exact, np.zeros((5, 2)), models)
    scores = [exact.score, *(model["score"] for model in models.values())]
    for axes, score in zip(figure.axes[:4], scores, strict=True):
        (arrows,) = (c for c in axes.collections if isinstance(c, Quiver))
        shown = score[1 :: pictures.EVERY, 1 :: pictures.EVERY].reshape(-1, 2)
        angle = np.arctan2(arrows.V, arrows.U) - np.arctan2(shown[:, 1], shown[:, 0])
        assert np.cos(angle) == pytest.approx(1)
    samples = [
        np.zeros((5, 2)),
        *(model["samples"][: pictures.POINTS] for model in models.values()),
    ]
    for axes, points in zip(figure.axes[8:12], samples, strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), points)
    curls = [figure.axes[i].images[0] for i in (5, 6, 7)]
    limit = pictures.curl_limit(models)
    for image, model in zip(curls, models.values(), strict=True):
        np.testing.assert_array_equal(image.get_array(), model["curl"].T)
        assert image.get_clim() == (-limit, limit)
    assert limit > np.abs(models["c"]["curl"]).max()


def test_missing_method_is_a_dash():
    frame = pd.DataFrame(
        [("spirals", "u", 0, "asym", 1.0, 5, 1, 2)],
        columns=["dataset", "method", "seed", "metric", "value", "points", "steps", "batch_size"],
    )
    (section,) = toy_table.sections(frame)
    assert section.rows[0] == ["C", *["—"] * 7]
