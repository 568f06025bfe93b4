"""Pictures of trained models: samples, asymmetry, learning curves, metrics and their cost.

``methods`` always maps the names of the methods to their looks, in the order of drawing;
``controls`` maps those that have one to the method that they are compared with.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qcsbm.quality.metrics import METRICS, OF_MODELS, OF_SAMPLES, names
from qcsbm.report.figures import frames, style
from qcsbm.report.figures.style import Look
from qcsbm.report.intervals import t_interval
from qcsbm.schema.samplers import sampler_label

# Asymmetry that is smaller than this fraction of the largest is rounding: the model has none.
ROUNDING = 1e-6
SAMPLES = 16


def samples(
    real: Path, generated: dict[str, Path], methods: dict[str, Look], levels: int
) -> Figure:
    """Real images in the first row, then samples of every method, from the same noise by column.

    ``real`` and ``generated`` are files of uint8 images with ``levels`` levels.
    """
    rows = {"Real data": frames.strip(real, SAMPLES)}
    rows |= {
        methods[method].label: frames.strip(path, SAMPLES) for method, path in generated.items()
    }
    figure, axes = style.panels(len(rows), 1, 0.41 * len(rows) + 0.1)
    figure.set_layout_engine("constrained", h_pad=0.02, hspace=0)
    for panel, (label, row) in zip(axes[:, 0], rows.items(), strict=True):
        panel.imshow(np.nan_to_num(row / (levels - 1), nan=1.0), interpolation="nearest")
        panel.set_ylabel(label, rotation=0, ha="right", va="center")
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    return figure


def asymmetry(levels: pd.DataFrame, methods: dict[str, Look], controls: dict[str, str]) -> Figure:
    """Asym and NAsym against t, and NAsym as a multiple of the control's with the same seed.

    ``levels`` is that of `frames.noise_levels`. A model whose asymmetry is rounding is not drawn,
    but named as such.
    """
    largest = levels.groupby("method")["asym"].max()
    drawn = [method for method in methods if largest[method] > ROUNDING * largest.max()]
    figure, axes = style.panels(1, 3, 2.4)
    for panel, name in zip(axes[0], ("asym", "nasym"), strict=False):
        for method in drawn:
            _band(panel, by_seed(levels, method, "t", name), methods[method])
        panel.set(yscale="log", title=METRICS[name].heading)
    for method in drawn:
        if method in controls:
            ratio = _paired(levels, method, controls[method], "t", "nasym", np.divide)
            _band(axes[0, 2], ratio, methods[method])
    axes[0, 2].axhline(1, color=style.GREY, linewidth=0.8, ls=":")
    axes[0, 2].set_title("NAsym, multiple of the control's")
    for panel in axes[0]:
        panel.set_xlabel("t")
    named = [
        look if method in drawn else replace(look, label=f"{look.label} (0 up to rounding)")
        for method, look in methods.items()
    ]
    style.legend(figure, named)
    return figure


def by_seed(frame: pd.DataFrame, method: str, x: str, y: str) -> pd.DataFrame:
    """The values of one method: a row per seed, a column per ``x``."""
    return frame[frame["method"] == method].pivot(index="seed", columns=x, values=y)


def _paired(
    frame: pd.DataFrame, method: str, control: str, x: str, y: str, how: np.ufunc
) -> pd.DataFrame:
    """``how`` of the values of ``method`` and ``control`` at the same seed and ``x``."""
    of_method, of_control = by_seed(frame, method, x, y), by_seed(frame, control, x, y)
    return how(*of_method.align(of_control, join="inner"))


def _band(panel: Axes, values: pd.DataFrame, look: Look, **options: Any) -> None:
    x, y = values.columns.to_numpy(), values.to_numpy()
    style.band(panel, x, y, **(look.options | options))


def learning_curves(
    curves: pd.DataFrame, methods: dict[str, Look], controls: dict[str, str]
) -> Figure:
    """DSM, its difference to the control's with the same batches, and σ² L_QC, in training.

    ``curves`` is that of `frames.curves`. A method that starts from another one's checkpoint
    begins there.
    """
    figure, (axes,) = style.panels(1, 3, 2.4)
    for method, look in methods.items():
        _band(axes[0], by_seed(curves, method, "step", "dsm"), look, marker="")
        if method in controls:
            difference = _paired(curves, method, controls[method], "step", "dsm", np.subtract)
            _band(axes[1], difference, look, marker="")
        regularised = by_seed(curves.dropna(subset=["qc"]), method, "step", "qc")
        if len(regularised):
            _band(axes[2], regularised, look, marker="")
    axes[1].axhline(0, color=style.GREY, linewidth=0.8, ls=":")
    axes[1].set_yscale("symlog", linthresh=0.1)
    for panel, title in zip(
        axes, ("DSM", "DSM, difference to the control's", "σ² $L_{QC}$"), strict=True
    ):
        panel.set(xlabel="step", title=title)
    for panel in (axes[0], axes[2]):
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(style.LogTicks())
        panel.yaxis.set_minor_formatter(style.LogTicks())
    style.legend(figure, list(methods.values()), marker="")
    return figure


def metric_values(metrics: pd.DataFrame) -> pd.DataFrame:
    """The metrics that tables show: method, seed, metric, sampler ("" where none), value."""
    chosen = metrics[metrics["metric"].isin([*OF_MODELS, *OF_SAMPLES])].copy()
    quality = chosen["metric"].isin(OF_SAMPLES)
    chosen["sampler"] = chosen["sampler"].where(quality, "") if "sampler" in chosen else ""
    return chosen[["method", "seed", "metric", "sampler", "value"]].reset_index(drop=True)


def metrics_by_seed(metrics: pd.DataFrame, methods: dict[str, Look]) -> Figure:
    """Every metric of `qcsbm.report.tables.tidy`, with its mean and 95 % interval over seeds.

    A line joins the values of one seed, which saw the same data and noise with every method. NFE is
    left out where it is the sampler's own.
    """
    values = metric_values(metrics)
    nfe = values[values["metric"] == "nfe"].groupby("sampler")["value"]
    values = values.drop(nfe.filter(lambda calls: calls.nunique() == 1).index)
    order = [*OF_MODELS, *OF_SAMPLES]
    panels = sorted(
        {(row.sampler, order.index(row.metric)) for row in values.itertuples()},
    )
    columns = 4
    rows = -(-len(panels) // columns)
    figure, axes = style.panels(rows, columns, 1.75 * rows + 0.3)
    samplers = {sampler for sampler, _ in panels} - {""}
    for panel, (sampler, index) in zip(axes.flat, panels, strict=False):
        chosen = values[(values["sampler"] == sampler) & (values["metric"] == order[index])]
        by_seed = chosen.pivot(index="seed", columns="method", values="value")
        _metric(panel, by_seed, methods)
        suffix = f", {sampler_label(sampler)}" if len(samplers) > 1 and sampler else ""
        panel.set_title(METRICS[order[index]].column + suffix)
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    style.legend(figure, list(methods.values()), linestyle="")
    return figure


def _metric(panel: Axes, by_seed: pd.DataFrame, methods: dict[str, Look]) -> None:
    """One metric, a column of ``by_seed`` per method that has it."""
    by_seed = by_seed.reindex(columns=list(methods))
    for _, row in by_seed.iterrows():
        panel.plot(range(len(row)), row, color="#cccccc", linewidth=0.7, zorder=1)
    for x, (method, look) in enumerate(methods.items()):
        values = by_seed[method].dropna()
        dots = look.options | {"linestyle": "", "markersize": 3.5, "alpha": 0.7}
        panel.plot([x] * len(values), values, **dots)
        interval = t_interval(values)
        if interval:
            panel.plot([x + 0.25] * 2, interval, color=look.colour, linewidth=1.2)
            panel.plot([x + 0.25], [values.mean()], "_", color=look.colour, markersize=7)
    panel.set(xlim=(-0.5, len(by_seed.columns) - 0.25), xticks=[])


def quality_against_compute(
    metrics: pd.DataFrame, seconds: pd.DataFrame, methods: dict[str, Look]
) -> Figure:
    """Fréchet distances and NLL against the seconds of training, `frames.compute`, of every run."""
    values = metric_values(metrics)
    values = values[values["metric"].isin(["nll", *names("fd")])].merge(
        seconds, on=["method", "seed"], validate="many_to_one"
    )
    if values.empty:
        return style.nothing()
    groups = list(values.groupby(["sampler", "metric"]))
    figure, axes = style.panels(1, len(groups), 2.7)
    for panel, ((sampler, metric), chosen) in zip(axes[0], groups, strict=True):
        for method, look in methods.items():
            points = chosen[chosen["method"] == method]
            dots = look.options | {"linestyle": "", "alpha": 0.8}
            panel.plot(points["seconds"], points["value"], **dots)
        clock = " and ".join(sorted(chosen["clock"].unique()))
        suffix = f", {sampler_label(sampler)}" if sampler else ""
        panel.set(xlabel=f"{clock} seconds of training", title=METRICS[metric].column + suffix)
        panel.set_xlim(left=0)
    style.legend(figure, list(methods.values()), linestyle="")
    return figure
