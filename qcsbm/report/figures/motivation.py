"""Pictures of the motivational examples: Figure 1 and Figure 4."""

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qcsbm.motivation import gaussian
from qcsbm.motivation.autoencoder import Trend
from qcsbm.report.figures import style

# The fields stand for the models that can and cannot leave them: they have the colours of C and U.
FIELDS = {"conservative": style.VERMILLION, "non-conservative": style.BLUE}
EPSILON = gaussian.EPSILONS[-1]
ROUTES = {
    "parallel": (style.BLUE, "each $r_i$ parallel to $w_i$"),
    "merged": (style.PURPLE, "units merged"),
    "none": (style.ORANGE, "not converged"),
}
# Below this everything is rounding; the scale is linear there, so that it shows an exact 0.
ROUNDING = 1e-16


def step_counts(starts: pd.DataFrame) -> pd.DataFrame:
    """Step counts at the largest ε against the step size: field, h, mean, min, max.

    ``starts`` holds `gaussian.random_starts` at several sizes. A count is at least the limit of 300
    where trajectories did not arrive.
    """
    spread = gaussian.spread(starts)
    columns = ["field", "h", "mean", "min", "max"]
    return spread.loc[spread["epsilon"] == EPSILON, columns].reset_index(drop=True)


def figure1(table: pd.DataFrame, starts: pd.DataFrame) -> Figure:
    """Trajectories under both fields, and their step counts against ε and against the step size.

    ``table`` is that of `gaussian.table`, ``starts`` as in `step_counts`.
    """
    figure, axes = style.panels(2, 2, 5.2)
    for panel, (field, color) in zip(axes[0], FIELDS.items(), strict=True):
        _trajectories(panel, field, color)
    by_epsilon, by_size = axes[1]
    for field, color in FIELDS.items():
        rows = table[(table["field"] == field) & (table["epsilon"] > 0)]
        line = {"color": color, "marker": "s" if field == "conservative" else "o", "label": field}
        by_epsilon.plot(rows["epsilon"] * 1e3, rows["steps"], **line)
        counts = step_counts(starts).query("field == @field")
        by_size.plot(counts["h"], counts["mean"], **line)
        by_size.fill_between(
            counts["h"], counts["min"], counts["max"], color=color, alpha=0.2, linewidth=0
        )
    by_epsilon.set(
        xlabel="ε · 10³", ylabel="steps to the mode", yscale="log", title="at the paper's step size"
    )
    by_size.axvline(gaussian.paper_step_size(EPSILON), color=style.GREY, linewidth=0.8, ls=":")
    by_size.text(
        gaussian.paper_step_size(EPSILON) - 1.5e-4, 3, "paper", color=style.GREY, ha="right"
    )
    by_size.axhline(gaussian.MAX_STEPS, color=style.GREY, linewidth=0.8, ls=":")
    by_size.text(2.5e-3, 1.08 * gaussian.MAX_STEPS, "limit", color=style.GREY)
    by_size.set(
        xlabel="step size h",
        yscale="log",
        ylim=(2.5, 450),
        title=f"at ε = {EPSILON * 1e3:g} · 10⁻³, 100 sets of random starts",
    )
    by_epsilon.legend(loc="upper left")
    for panel in axes[1]:
        panel.yaxis.set_major_formatter("{x:g}")
    return figure


def _trajectories(axes: Axes, field: str, color: str) -> None:
    grid = gaussian.square_grid(4.5, 19)
    u = gaussian.score(grid, field, EPSILON)
    direction = (u / u.norm(dim=1, keepdim=True)).numpy()
    x = grid.numpy()
    axes.quiver(*x.T, *direction.T, color="#b5b5b5", scale=32, width=0.003, pivot="mid")
    path = gaussian.trajectories(
        gaussian.starts(0), field, EPSILON, gaussian.paper_step_size(EPSILON)
    )
    steps = gaussian.steps_to_mode(path).item()
    for trajectory in path[: steps + 1].unbind(1):
        axes.plot(*trajectory.numpy().T, color=color, linewidth=0.5, alpha=0.3)
    axes.plot(*path[0].numpy().T, ".", color=style.BLACK, markersize=4)
    axes.set(
        title=f"{field}: {steps} steps",
        xlabel="$x_1$",
        ylabel="$x_2$",
        xlim=(-4.7, 4.7),
        ylim=(-4.7, 4.7),
        aspect="equal",
    )
    axes.grid(False)


def figure4(trend: Trend, routes: list[str], tied: Trend) -> Figure:
    """What training did to every seed of ``trend``, coloured by its route, and to ``tied`` weights.

    ``routes`` holds the route of each seed, see `autoencoder.outcomes`.
    """
    figure, axes = style.panels(2, 2, 4.6, sharex=True)
    quantities = [
        ("$L_{QC}$", trend.l_qc, tied.l_qc, True),
        ("$\\Vert WR^T - RW^T\\Vert_F$", trend.asymmetry, tied.asymmetry, True),
        ("$\\Vert W - R\\Vert_F$", trend.untying, tied.untying, False),
        ("largest angle of $r_i$ and $w_i$ (°)", largest_angle(trend), largest_angle(tied), False),
    ]
    steps = trend.steps.numpy()
    for panel, (label, values, of_tied, logarithmic) in zip(axes.flat, quantities, strict=True):
        y = values.numpy()
        panel.fill_between(steps, y.min(1), y.max(1), color="#ececec", linewidth=0)
        for route, (color, _) in ROUTES.items():
            chosen = y[:, np.array(routes) == route]
            panel.plot(steps, chosen, color=color, linewidth=0.9)
        panel.plot(steps, of_tied.numpy(), color=style.BLACK, ls="--", linewidth=1.2)
        panel.set_title(label)
        if logarithmic:
            panel.set_yscale("symlog", linthresh=ROUNDING)
            panel.set_yticks([0, 1e-16, 1e-12, 1e-8, 1e-4, 1])
    for panel in axes[1]:
        panel.set_xlabel("step")
    handles = [
        figure.axes[0].plot([], [], color=color, label=f"{text} ({routes.count(route)})")[0]
        for route, (color, text) in ROUTES.items()
    ]
    handles += figure.axes[0].plot([], [], color=style.BLACK, ls="--", label="tied, R = W")
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def largest_angle(trend: Trend) -> torch.Tensor:
    """The larger of the two angles between r_i and w_i, in degrees; (T, S)."""
    return trend.angle.max(2).values
