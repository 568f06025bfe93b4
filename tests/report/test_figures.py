"""Pictures: their look, their bytes, and the numbers that they are drawn from."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from qcsbm.report.figures import style

ROOT = Path(__file__).parents[2]


def experiments():
    """The methods of all experiment files, in their order, with their labels."""
    paths = [*ROOT.glob("config/*.yaml"), ROOT / "benchmarks/weight_sweep.yaml"]
    methods = [yaml.safe_load(path.read_text())["methods"] for path in paths]
    return [{name: row["label"] for name, row in rows.items()} for rows in methods]


def test_every_method_of_an_experiment_has_its_own_look_with_and_without_markers():
    many = [{f"m{i}": "" for i in range(24)}]
    for methods in experiments() + many:
        looks = style.looks(methods)
        assert [look.label for look in looks.values()] == list(methods.values())
        for shown in ("marker", "line"):
            assert len({(k.colour, getattr(k, shown)) for k in looks.values()}) == len(methods)


def test_models_of_the_paper_look_the_same_in_every_tier():
    found = {}
    for methods in experiments():
        for name, look in style.looks(methods).items():
            if name in style.PAPER_METHODS:
                found.setdefault(name, set()).add((look.colour, look.marker, look.line))
    assert found.keys() == set(style.PAPER_METHODS)
    assert all(len(looks) == 1 for looks in found.values())


def test_another_row_at_the_end_changes_no_look():
    methods = {f"m{i}": "" for i in range(9)}
    assert style.looks({**methods, "last": "", "qc": ""}).items() > style.looks(methods).items()


@pytest.mark.parametrize("n", [1, 4, 17])
def test_legend_of_many_methods_stays_inside_the_page_and_off_the_panels(n):
    looks = list(style.looks({f"m{i}": f"antisymmetric, λ = {i}" for i in range(n)}).values())
    figure, axes = style.panels(1, 3, 2.4)
    style.legend(figure, looks)
    figure.draw_without_rendering()
    box, width = figure.legends[0].get_window_extent(), figure.bbox.width
    assert box.x0 >= 0 and box.x1 <= width
    assert axes[0, 0].get_window_extent().height > 1.2 * figure.dpi


# Linear RGB to that which a viewer without red or without green cones sees (Viénot et al., 1999,
# https://doi.org/10.1002/(SICI)1520-6378(199908)24:4<243::AID-COL5>3.0.CO;2-3).
CONES = {
    "normal": np.eye(3),
    "protan": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deutan": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


@pytest.mark.parametrize("vision", CONES)
def test_colours_of_the_main_methods_differ_with_every_colour_vision(vision):
    def seen(colour):
        srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        linear = np.clip(np.array(CONES[vision]) @ linear, 0, 1)
        return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)

    main = style.COLOURS[: len(style.PAPER_METHODS)]
    for a, b in itertools.combinations(main, 2):
        assert np.linalg.norm(seen(a) - seen(b)) > 0.2, (a, b)


def test_committed_picture_of_the_docs_is_what_its_script_draws(tmp_path):
    path = tmp_path / "figure2.svg"
    subprocess.run([sys.executable, ROOT / "docs/figure2.py", path], check=True)
    assert path.read_bytes() == (ROOT / "docs/figure2.svg").read_bytes()


def picture():
    figure, axes = style.panels(1, 2, 2.0)
    style.band(
        axes[0, 0], np.arange(3), np.array([[1.0, 2, 3], [3, 4, 7]]), style.BLUE, label="QC⁺"
    )
    axes[0, 0].legend()
    axes[0, 1].imshow(np.eye(3))
    return figure


def test_files_are_the_same_bytes_every_time_and_hold_their_text(tmp_path):
    for stem in ("first", "second"):
        style.save(picture(), tmp_path / stem)
    for suffix in (".png", ".svg"):
        first, second = (tmp_path / f"{stem}{suffix}" for stem in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    svg = (tmp_path / "first.svg").read_text()
    assert re.search(r"<text[^>]*>QC⁺</text>", svg)
    assert "<dc:date>" not in svg
    assert b"Software" not in (tmp_path / "first.png").read_bytes()


def test_band_is_the_mean_between_the_smallest_and_the_largest():
    axes = picture().axes[0]
    assert axes.lines[0].get_ydata().tolist() == [2.0, 3.0, 5.0]
    outline = axes.collections[0].get_paths()[0].vertices
    assert {tuple(vertex) for vertex in outline} >= {(2.0, 3.0), (2.0, 7.0), (0.0, 1.0), (0.0, 3.0)}
