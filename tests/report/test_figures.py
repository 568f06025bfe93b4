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


def test_methods_of_every_tier_have_their_own_colour_and_marker():
    for path in (ROOT / "config").glob("*.yaml"):
        methods = yaml.safe_load(path.read_text())["methods"]
        assert set(methods) <= set(style.COLOURS) and set(methods) <= set(style.MARKERS), path
    for looks in (style.COLOURS, style.MARKERS):
        assert len(set(looks.values())) == len(looks)


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

    main = [style.colour(method) for method in ("c", "u", "qc", "qcplus")]
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
