"""Pictures of trained models: what is read from records, and what is drawn from it."""

import json
import re

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from conftest import expecting, in_process, told

from qcsbm.report.figures import frames, runs, style
from qcsbm.runtime import failure

METHODS = style.looks({"c": "C", "u": "U", "qc": "QC"})
# What a quantity has on top at each of three seeds: the mean, 3, is not the median, 2.
BY_SEED = (1.0, 2.0, 6.0)
CONTROLS = {"c": "u", "qc": "u"}


def write_record(folder, name, stage, method, seed, **parts):
    folder.mkdir(parents=True, exist_ok=True)
    record = {"stage": stage, "dataset": "x", "method": method, "seed": seed, "metrics": []}
    record |= {"protocol": {}, **parts}
    # A specification of its own for every file of a run.
    record["specification"] = {"version": name, "seed": seed, "protocol": record["protocol"]}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record))
    return path


@pytest.fixture
def levels():
    rows = []
    for method, scale in (("c", 1e-12), ("u", 1.0), ("qc", 0.5)):
        for seed, factor in enumerate(BY_SEED):
            for t in (0.0, 0.5):
                asym, nasym = 100 * scale * (1 - t) * factor, scale**2 * (1 + t) * factor**2 / 1000
                errors = asym / 7, nasym / 7
                rows.append((method, seed, t, asym, errors[0], nasym, errors[1]))
    columns = ["method", "seed", "t", "asym", "asym_stderr", "nasym", "nasym_stderr"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def curves():
    rows = []
    for method, first, shift in (("c", 10, 2.0), ("u", 10, 0.0), ("qc", 30, -0.01)):
        for seed, added in enumerate(BY_SEED):
            for step in range(first, 60, 10):
                qc = step + 2 * added if method == "qc" else np.nan
                rows.append((method, seed, step, 100 / step + added + shift, qc, 7.0 * step))
    return pd.DataFrame(rows, columns=["method", "seed", "step", "dsm", "qc", "grad_norm"])


@pytest.fixture
def metrics():
    rows = []
    for metric, sampler in (("nll", np.nan), ("fd", "pc"), ("fd", "heun35"), ("nll_nfe", np.nan)):
        for i, method in enumerate(METHODS):
            for seed, added in enumerate(BY_SEED):
                value = 10.0 * i + added + (100 if sampler == "heun35" else 0)
                rows.append((method, seed, metric, value, sampler))
    return pd.DataFrame(rows, columns=["method", "seed", "metric", "value", "sampler"])


def drawn(axes, method):
    """The lines of a method that hold points."""
    color = METHODS[method].colour
    return [line for line in axes.lines if line.get_color() == color and len(line.get_xdata())]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_levels_and_curves_are_read_from_beside_their_records(tmp_path):
    paths = []
    for method, seed in (("u", 1), ("u", 0)):
        folder = tmp_path / method / str(seed)
        paths.append(write_record(folder, "step2", "train", method, seed))
        paths[-1].with_suffix(".csv").write_text(f"step,dsm,qc,grad_norm\n2,{seed}.5,,1\n")
    frame = frames.curves(paths)
    assert frame["dsm"].tolist() == [0.5, 1.5] and frame["seed"].tolist() == [0, 1]
    assert frame["qc"].isna().all() and (frame["method"] == "u").all()
    assert frames.noise_levels(paths)["seed"].tolist() == [1, 0]


def test_compute_adds_the_segments_that_lead_to_a_checkpoint(tmp_path):
    def training(method, last, started, seed, **cost):
        return write_record(
            tmp_path / method / str(seed),
            f"step{last}",
            "train",
            method,
            seed,
            protocol={"stop": last},
            cost={"started_at_step": started, **cost},
        )

    chains = {
        "u": [("u", 0, 100), ("u", 100, 150)],
        "qc": [("u", 0, 100), ("qc", 100, 150)],
        "imported": [],
    }
    records = [
        training("u", 100, 0, 0, cpu_s=10.0, wall_s=99.0),
        training("u", 150, 100, 0, cpu_s=6.0, wall_s=99.0),
        # Interrupted after 30 of 50 steps; the other 20 took 8 s.
        training("qc", 150, 130, 0, cpu_s=8.0, wall_s=99.0),
        training("u", 100, 0, 1, gpu_s=1.0, cpu_s=77.0),
        training("u", 150, 100, 1, gpu_s=2.0, cpu_s=77.0),
    ]
    frame = frames.compute(records, chains)
    assert frame.to_dict("split")["data"] == [
        ["u", 0, 16.0, "CPU"],
        ["u", 1, 3.0, "GPU"],
        ["qc", 0, 30.0, "CPU"],
    ]


def test_strip_puts_images_side_by_side(tmp_path):
    images = np.arange(2 * 1 * 2 * 3, dtype=np.uint8).reshape(2, 1, 2, 3)
    np.save(tmp_path / "grey.npy", images)
    picture = frames.strip(tmp_path / "grey.npy", 3)
    assert picture.shape == (2, 3 * 3 + 2, 3)
    np.testing.assert_array_equal(picture[:, :3, 2], images[0, 0])
    np.testing.assert_array_equal(picture[:, 4:7, 0], images[1, 0])
    assert np.isnan(picture[:, [3, 7]]).all() and np.isnan(picture[:, 8:]).all()
    colour = np.arange(3, dtype=np.uint8).reshape(1, 3, 1, 1)
    np.save(tmp_path / "colour.npy", colour)
    np.testing.assert_array_equal(frames.strip(tmp_path / "colour.npy", 1)[0, 0], [0, 1, 2])


def test_samples_have_the_real_images_above_and_white_at_the_highest_level(tmp_path):
    files = {}
    for name, level in (("real", 16), ("u", 0), ("qc", 8)):
        files[name] = tmp_path / f"{name}.npy"
        np.save(files[name], np.full((20, 1, 2, 2), level, dtype=np.uint8))
    real = files.pop("real")
    figure = runs.samples(real, files, METHODS, levels=17)
    assert [axes.get_ylabel() for axes in figure.axes] == ["Real data", "U", "QC"]
    pictures = [axes.images[0].get_array() for axes in figure.axes]
    assert [float(picture[0, 0, 0]) for picture in pictures] == [1.0, 0.0, 0.5]


def band(axes, index=0):
    """The lower and the upper edge of a band, by x."""
    edges = {}
    for x, y in axes.collections[index].get_paths()[0].vertices.tolist():
        edges.setdefault(x, set()).add(y)
    return {x: (min(ys), max(ys)) for x, ys in edges.items()}


def test_asymmetry_shows_mean_and_range_and_names_what_has_none(levels):
    figure = runs.asymmetry(levels, METHODS, CONTROLS)
    asym, nasym, ratio = figure.axes
    titles = ["Asym", "NAsym", "NAsym, multiple of the control's"]
    assert [axes.get_title() for axes in figure.axes] == titles
    assert drawn(asym, "u")[0].get_xdata().tolist() == [0.0, 0.5]
    assert drawn(asym, "u")[0].get_ydata() == pytest.approx([300.0, 150.0])
    assert drawn(asym, "qc")[0].get_ydata() == pytest.approx([150.0, 75.0])
    # The mean of the squares 1, 4 and 36.
    assert drawn(nasym, "u")[0].get_ydata() == pytest.approx([41e-3 / 3, 61.5e-3 / 3])
    assert drawn(nasym, "qc")[0].get_ydata() == pytest.approx([41e-3 / 12, 61.5e-3 / 12])
    # Of Asym it would be 0.5.
    assert drawn(ratio, "qc")[0].get_ydata() == pytest.approx([0.25, 0.25])
    assert not drawn(asym, "c") and not drawn(ratio, "u")
    assert legend(figure) == ["C (0 up to rounding)", "U", "QC"]
    assert band(asym) == {0.0: (100.0, 600.0), 0.5: (50.0, 300.0)}
    assert band(nasym)[0.0] == pytest.approx((1e-3, 36e-3))


def test_multiple_of_the_control_is_that_of_the_same_seed(levels):
    levels.loc[(levels["method"] == "qc") & (levels["seed"] == 2), "nasym"] *= 7
    axes = runs.asymmetry(levels, METHODS, CONTROLS).axes[2]
    # Ratios of 1/4, 1/4 and 7/4; the ratio of the means is another.
    assert drawn(axes, "qc")[0].get_ydata() == pytest.approx([0.75, 0.75])
    assert band(axes)[0.5] == pytest.approx((0.25, 1.75))


def test_learning_curve_of_a_fine_tuned_model_starts_at_its_checkpoint(curves):
    figure = runs.learning_curves(curves, METHODS, CONTROLS)
    dsm, difference, qc = figure.axes
    assert [axes.get_title() for axes in figure.axes] == [
        "DSM",
        "DSM, difference to the control's",
        "σ² $L_{QC}$",
    ]
    steps = np.arange(10, 60, 10)
    assert drawn(dsm, "u")[0].get_xdata().tolist() == steps.tolist()
    assert drawn(dsm, "u")[0].get_ydata() == pytest.approx(100 / steps + 3)
    assert drawn(dsm, "qc")[0].get_xdata().tolist() == [30, 40, 50]
    assert drawn(dsm, "qc")[0].get_ydata() == pytest.approx(100 / steps[2:] + 2.99)
    assert band(dsm, 1)[10.0] == pytest.approx((11.0, 16.0))
    assert drawn(difference, "qc")[0].get_ydata() == pytest.approx([-0.01] * 3)
    assert drawn(difference, "c")[0].get_ydata() == pytest.approx([2.0] * 5)
    assert drawn(qc, "qc")[0].get_xdata().tolist() == [30, 40, 50]
    assert drawn(qc, "qc")[0].get_ydata().tolist() == [36.0, 46.0, 56.0]
    assert band(qc)[40.0] == (42.0, 52.0)
    assert not drawn(qc, "u")


def test_metric_values_keep_samplers_apart_and_only_what_tables_show(metrics):
    values = runs.metric_values(metrics)
    assert set(zip(values["metric"], values["sampler"], strict=True)) == {
        ("nll", ""),
        ("fd", "pc"),
        ("fd", "heun35"),
    }
    alone = metrics[metrics["metric"] == "nll"].drop(columns="sampler")
    assert (runs.metric_values(alone)["sampler"] == "").all()


def test_metrics_by_seed_draws_every_value_with_the_t_interval_of_the_mean(metrics):
    figure = runs.metrics_by_seed(metrics, METHODS)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title() for axes in shown]
    assert titles == ["NLL (bits/dim) ↓", "FD ↓, heun35", "FD ↓, PC"]
    points, interval, mean = drawn(shown[0], "qc")
    assert points.get_ydata().tolist() == [21.0, 22.0, 26.0]
    # Variance 7; Student's quantile at 0.975 with two degrees of freedom is 4.3027.
    half_width = 4.302653 * np.sqrt(7 / 3)
    assert interval.get_ydata() == pytest.approx([23 - half_width, 23 + half_width])
    assert mean.get_ydata()[0] == 23.0
    joined = [line for line in shown[0].lines if line.get_color() == "#cccccc"]
    assert [line.get_ydata().tolist() for line in joined] == [
        [0.0 + added, 10.0 + added, 20.0 + added] for added in BY_SEED
    ]
    assert drawn(shown[1], "u")[0].get_ydata().tolist() == [111.0, 112.0, 116.0]
    assert drawn(shown[2], "u")[0].get_ydata().tolist() == [11.0, 12.0, 16.0]


def test_metrics_by_seed_has_the_nfe_of_samplers_in_which_it_differs(metrics):
    ode = metrics[metrics["sampler"] == "heun35"].assign(metric="nfe", sampler="ode")
    figure = runs.metrics_by_seed(
        pd.concat([metrics, ode, ode.assign(sampler="pc", value=50.0)], ignore_index=True), METHODS
    )
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert [title for title in titles if "NFE" in title] == ["NFE ↓, ODE"]


def test_one_seed_has_points_and_no_interval(metrics):
    figure = runs.metrics_by_seed(metrics[metrics["seed"] == 0], METHODS)
    assert len(drawn(figure.axes[0], "u")) == 1


def test_quality_stands_at_the_seconds_of_its_run(metrics):
    seconds = pd.DataFrame(
        [
            (method, seed, 100.0 * i + seed, "CPU")
            for i, method in enumerate(METHODS)
            for seed in range(3)
        ],
        columns=["method", "seed", "seconds", "clock"],
    )
    figure = runs.quality_against_compute(metrics, seconds, METHODS)
    assert [axes.get_title() for axes in figure.axes] == [
        "NLL (bits/dim) ↓",
        "FD ↓, heun35",
        "FD ↓, PC",
    ]
    assert figure.axes[0].get_xlabel() == "CPU seconds of training"
    (points,) = drawn(figure.axes[2], "qc")
    assert points.get_xdata().tolist() == [200.0, 201.0, 202.0]
    assert points.get_ydata().tolist() == [21.0, 22.0, 26.0]
    (points,) = drawn(figure.axes[1], "c")
    assert points.get_xdata().tolist() == [0.0, 1.0, 2.0]
    assert points.get_ydata().tolist() == [101.0, 102.0, 106.0]


def test_without_seconds_of_training_no_quality_is_drawn(metrics):
    seconds = pd.DataFrame(columns=["method", "seed", "seconds", "clock"])
    figure = runs.quality_against_compute(metrics, seconds, METHODS)
    assert [text.get_text() for text in figure.texts] == ["Nothing was measured."]


def failed(folder, method, *names):
    paths = [folder / f"{name}.json" for name in names]
    for name, path in zip(names, paths, strict=True):
        facts = {"dataset": "x", "method": method, "seed": 0, "version": name, "protocol": {}}
        failure.write([path], "it diverged", told(**facts))
    return paths


@pytest.fixture
def finished(tmp_path, curves):
    """Records of C, which could not be trained, U, and QC without samples; no asymmetry at all."""
    blank = np.zeros((20, 1, 2, 2), dtype=np.uint8)
    np.save(tmp_path / "test.npy", blank)
    (tmp_path / "data.json").write_text('{"shape": [1, 2, 2], "levels": 17, "classes": 10}')
    records = failed(tmp_path / "c", "c", "step50", "likelihood", "asymmetry", "sample")
    nll, circulation = (
        {"name": name, "value": 2.0, "stderr": 0.1, "n": 9, "unit": unit}
        for name, unit in (("nll", "bits/dim"), ("circulation", "nats"))
    )
    training = {"protocol": {"stop": 50}, "cost": {"started_at_step": 0, "cpu_s": 5.0}}
    for method in ("u", "qc"):
        folder = tmp_path / method
        records += [
            write_record(folder, "step50", "train", method, 0, **training),
            write_record(folder, "likelihood", "likelihood", method, 0, metrics=[nll]),
            write_record(folder, "circulation", "circulation", method, 0, metrics=[circulation]),
            *failed(folder, method, "asymmetry"),
        ]
        curve = curves.query("method == @method and seed == 0").drop(columns=["method", "seed"])
        curve.to_csv(folder / "step50.csv", index=False)
    records += failed(tmp_path / "qc", "qc", "sample")
    # Without the file of its samples, a record of another seed or sampler must not be opened.
    for seed, sampler in ((0, "pc"), (1, "pc"), (0, "heun35")):
        folder = tmp_path / f"u/seed{seed}/{sampler}"
        protocol = {"sampler": sampler}
        records.append(write_record(folder, "sample", "sample", "u", seed, protocol=protocol))
    np.save(tmp_path / "u/seed0/pc/samples.npy", blank)
    return records


def draw(finished, tmp_path):
    """The SVG files that the stage draws, by name."""
    spec = {
        "version": 1,
        **expecting(json.loads(path.read_text()) for path in finished),
        "methods": [["c", "C"], ["u", "U"], ["qc", "QC"]],
        "seed": 0,
        "samplers": ["pc"],
        "controls": {"u": "c", "qc": "u"},
        "chains": {method: [[method, 0, 50]] for method in METHODS},
    }
    arguments = ["--data", tmp_path, "--records", *finished, "--out", tmp_path / "figures"]
    assert in_process("figures", "--spec", json.dumps(spec), *arguments) == 0
    return {path.stem: path.read_text() for path in (tmp_path / "figures").glob("*.svg")}


def test_every_picture_is_drawn_of_the_methods_that_have_what_it_shows(finished, tmp_path):
    named = {
        name: re.findall(r">(C|U|QC|Nothing was measured\.)</text>", svg)
        for name, svg in draw(finished, tmp_path).items()
    }
    assert named == {
        "asymmetry": ["Nothing was measured."],
        "learning_curves": ["U", "QC"],
        "metrics_by_seed": ["U", "QC"],
        "quality_against_compute": ["U", "QC"],
        "figure3_pc": ["U"],
    }


def test_metrics_by_seed_shows_what_every_stage_has_measured(finished, tmp_path):
    titles = re.findall(r">(NLL|Circulation) \(", draw(finished, tmp_path)["metrics_by_seed"])
    assert titles == ["NLL", "Circulation"]


def test_colours_in_pictures_are_those_of_the_style(levels):
    figure = runs.asymmetry(levels, METHODS, CONTROLS)
    handles = dict(zip(legend(figure)[1:], figure.legends[0].legend_handles[1:], strict=True))
    for look in (METHODS["u"], METHODS["qc"]):
        seen = matplotlib.colors.to_hex(handles[look.label].get_color(), keep_alpha=False)
        assert seen.upper() == look.colour.upper()


def test_a_method_that_failed_leaves_the_looks_of_others_alone(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "PAPER_METHODS", [])
    pictures = draw(finished, tmp_path)
    for name in ("learning_curves", "metrics_by_seed", "quality_against_compute"):
        used = {colour for colour in style.COLOURS if colour.lower() in pictures[name]}
        assert used - {style.BLACK} == {style.COLOURS[1], style.COLOURS[2]}, name
