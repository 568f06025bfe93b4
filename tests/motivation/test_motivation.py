"""Figure 1 and Figure 4: what their tables hold and what their pictures are drawn from."""

import numpy as np
import pandas as pd
import pytest
import torch

from qcsbm.motivation import autoencoder, gaussian
from qcsbm.report.figures import motivation, style
from qcsbm.stages import figure1, figure4

SIZES = (0.005, 0.0125)


@pytest.fixture(scope="module")
def table():
    return figure1.compare(gaussian.random_starts([0, 5, 6]))


@pytest.fixture(scope="module")
def starts():
    every = pd.concat([gaussian.random_starts([0, 5, 6], size) for size in SIZES])
    return every[every["epsilon"] > 0]


@pytest.fixture(scope="module")
def trends():
    return autoencoder.train(range(3), steps=100), autoencoder.train([0], tied=True, steps=100)


def test_table_has_the_paper_beside_ours_under_the_right_names(table):
    assert len(table) == 14
    assert (table["steps"] == table["steps_paper"]).all()
    rotational = table[(table["field"] == "non-conservative") & (table["epsilon"] > 0)]
    # Three printed digits.
    for name in ("asym", "nasym"):
        printed = rotational[f"{name}_paper"]
        np.testing.assert_allclose(rotational[f"{name}_grid"], printed, rtol=6e-3)
    assert (rotational["asym"] > 1e3 * rotational["nasym"]).all()


def test_table_has_the_spread_over_starts(table):
    row = table[(table["field"] == "conservative") & (table["epsilon"] == 2.25e-3)].iloc[0]
    assert row["starts_n"] == 3
    # Seed 0 are the paper's own starts.
    assert row["starts_min"] == 16 and row["starts_max"] > row["starts_min"]


def test_page_of_figure_1_shows_both_numbers_and_the_reversal_at_small_steps(table, starts):
    comparison, sizes = figure1.sections(table, starts)
    last = comparison.rows[-1]
    assert last[:2] == ["non-conservative", "0.00225"]
    assert last[5:11] == ["7.89e-2", "7.89e-2", "1.96e-6", "1.96e-6", "238", "238"]
    assert any("exchanged" in note for note in comparison.notes)
    means = {(row[0], row[1]): [float(text) for text in row[2:]] for row in sizes.rows}
    small, paper = zip(
        means["conservative", "0.00225"], means["non-conservative", "0.00225"], strict=True
    )
    assert small[0] > small[1] and paper[0] < paper[1]


def test_picture_of_figure_1_is_drawn_from_the_counts_at_the_largest_epsilon(starts):
    counts = motivation.step_counts(starts).set_index(["field", "h"])
    assert len(counts) == 4
    chosen = starts.query("field == 'conservative' and epsilon == 0.00225 and h == 0.005")["steps"]
    row = counts.loc["conservative", 0.005]
    assert (row["mean"], row["min"], row["max"]) == (chosen.mean(), chosen.min(), chosen.max())


def test_picture_of_figure_1_draws_as_many_steps_as_the_table_has(table, starts, tmp_path):
    figure = motivation.figure1(table, starts)
    conservative, rotational, by_epsilon, by_size = figure.axes
    assert conservative.get_title() == "conservative: 16 steps"
    assert [len(line.get_xdata()) for line in rotational.lines[:10]] == [239] * 10
    drawn = {line.get_label(): list(line.get_ydata()) for line in by_epsilon.lines}
    assert drawn["non-conservative"] == [4, 5, 6, 57, 121, 238]
    assert drawn["conservative"] == [2, 3, 3, 4, 5, 16]
    epsilons = [0.5, 0.75, 1.0, 1.5, 1.75, 2.25]
    assert by_epsilon.lines[0].get_xdata() == pytest.approx(epsilons)


def test_picture_of_figure_1_draws_the_mean_between_the_smallest_and_the_largest(table):
    rows = [
        (field, motivation.EPSILON, h, seed, base + 10 * h * 1e3 + added, True)
        for field, base in (("conservative", 0), ("non-conservative", 100))
        for h in SIZES
        for seed, added in enumerate((1, 2, 6))
    ]
    starts = pd.DataFrame(rows, columns=["field", "epsilon", "h", "seed", "steps", "arrived"])
    axes = motivation.figure1(table, starts).axes[3]
    for i, (field, base) in enumerate((("conservative", 0), ("non-conservative", 100))):
        (line,) = [line for line in axes.lines if line.get_label() == field]
        assert list(line.get_xdata()) == list(SIZES)
        assert line.get_ydata() == pytest.approx([base + 53, base + 128])
        outline = axes.collections[i].get_paths()[0].vertices
        lower, upper = (
            float(edge) for edge in np.sort(outline[outline[:, 0] == 0.005, 1])[[0, -1]]
        )
        assert (lower, upper) == (base + 51, base + 56)


def test_table_of_figure_4_has_a_row_per_seed_and_the_tied_case(trends):
    table = figure4.outcomes(range(3), *trends)
    assert table["seed"].tolist() == [0, 1, 2, 0] and table["tied"].tolist() == [False] * 3 + [True]
    assert table["l_qc"].iloc[3] == 0 and (table["l_qc"].iloc[:3] > 0).all()
    section = figure4.section(table, 100)
    assert section.rows[3][0] == "0, tied"
    assert "Of 3 seeds, 0 became" in section.notes[0] and "3 did not in 100" in section.notes[0]
    assert "‖WRᵀ − RWᵀ‖ is 0 and L_QC is 2.08" in section.notes[1]


def test_picture_of_figure_4_shows_every_seed_in_the_colour_of_its_route(trends):
    trend, tied = trends
    figure = motivation.figure4(trend, ["parallel", "none", "merged"], tied)
    l_qc, asymmetry, untying, angle = figure.axes
    lines = [line for line in untying.lines if len(line.get_xdata())]
    colours = [motivation.ROUTES[route][0] for route in ("parallel", "merged", "none")]
    assert [line.get_color() for line in lines] == [*colours, style.BLACK]
    np.testing.assert_array_equal(lines[1].get_ydata(), trend.untying[:, 2])
    assert (lines[3].get_ydata() == 0).all()
    assert l_qc.get_yscale() == "symlog"
    angles, of_tied = (torch.maximum(*t.angle.unbind(2)) for t in (trend, tied))
    drawn = [
        (l_qc, trend.l_qc, tied.l_qc),
        (asymmetry, trend.asymmetry, tied.asymmetry),
        (untying, trend.untying, tied.untying),
        (angle, angles, of_tied),
    ]
    for axes, values, last in drawn:
        expected = [*values[:, [0, 2, 1]].T, last[:, 0]]
        lines = [line for line in axes.lines if len(line.get_xdata())]
        for line, curve in zip(lines, expected, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), curve)
        outline = axes.collections[0].get_paths()[0].vertices
        end = outline[outline[:, 0] == trend.steps[-1].item(), 1]
        assert (end.min(), end.max()) == (values[-1].min(), values[-1].max())
