"""Reports as JSON, as text and as figures."""

import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from conftest import ROOT
from fields import linear, matrix, points

import qcsbm
from qcsbm.auditing.force_report import ForceReport
from qcsbm.auditing.report import Quantity, Report, shown
from qcsbm.runtime.errors import BadInput, MissingFile


@pytest.fixture(scope="module")
def report():
    schedule = qcsbm.VE()
    j = matrix(6)

    def field(x, t):
        return linear(j)(x) / schedule.std(t)[:, None] ** 2

    return qcsbm.audit(
        field, points(12, 6), [0.2, 0.5, 0.8], schedule=schedule, kinds=["x0"], dtype="float64"
    )


def test_json_round_trip_keeps_everything(report, tmp_path):
    report.to_json(tmp_path / "audit.json")
    assert Report.from_json(tmp_path / "audit.json") == report
    document = json.loads((tmp_path / "audit.json").read_text())
    assert document["schema_version"] == 1
    assert document["levels"][0]["lambda"]["value"] == report.levels[0].lambda_.value


@pytest.mark.parametrize("model, name", [(Report, "audit"), (ForceReport, "audit-forces")])
def test_the_schemas_in_the_documentation_are_those_of_reports(model, name):
    schema = json.dumps(model.model_json_schema(), indent=1, ensure_ascii=False) + "\n"
    assert (ROOT / f"docs/{name}.schema.json").read_text() == schema


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "found another JSON"),
        ("{}", "found another field"),
        ('{"schema_version": 2}', "found another schema_version"),
    ],
)
def test_other_json_is_refused(tmp_path, text, sentence):
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(BadInput, match=sentence):
        Report.from_json(tmp_path / "audit.json")


@pytest.mark.parametrize("model", [Report, ForceReport])
def test_a_missing_report_is_named(model, tmp_path):
    with pytest.raises(MissingFile, match="none.json: found no such file, expected the report of"):
        model.from_json(tmp_path / "none.json")


def test_the_table_is_narrow_ascii_and_aligned(report):
    lines = str(report).splitlines()
    assert str(report).isascii() and max(map(len, lines)) <= 80
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["t", "sigma"])
    rows = lines[start : start + 4]
    assert len({len(row) for row in rows}) == 1
    assert [row.split()[0] for row in rows] == ["t", "0.2", "0.5", "0.8"]
    for name in ("Asym", "NAsym", "lambda", "kappa^2", "NAsym as x0 at t = 0.2"):
        assert any(line.startswith(name) for line in lines), name


def test_a_table_that_is_too_wide_is_split(report):
    level = report.levels[0]
    wide = Quantity(value=1.2345e123, stderr=1.2345e121, low=1.0e123, high=2.0e123, n=12)
    levels = (
        level.model_copy(
            update={"asym": wide, "nasym": wide, "t": -1.2345e-123, "sigma": 1.2345e-123}
        ),
    )
    text = str(report.model_copy(update={"levels": levels}))
    assert max(map(len, text.splitlines())) <= 80
    heads = [line.split() for line in text.splitlines() if line.split()[:2] == ["t", "sigma"]]
    assert [head[2] for head in heads] == ["Asym", "lambda", "||A||^2"]


@pytest.mark.parametrize(
    "value, stderr, text",
    [
        (0.0044, 0.00042, "0.00440(42)"),
        (141.3, 14.0, "141(14)"),
        (1.413e5, 1.44e4, "1.41(14)e5"),
        (2.0, 0.0, "2"),
        (0.5, None, "0.5"),
        (1.2345e-7, 9.96e-9, "1.23(10)e-7"),
        (-3.0, 0.25, "-3.00(25)"),
        (0.001, 0.02, "0.001(20)"),
        (149.2, 3.3, "149.2(33)"),
        (0.0, 1e-9, "0.0(10)e-9"),
    ],
)
def test_standard_errors_are_in_the_last_digits(value, stderr, text):
    assert shown(Quantity(value=value, stderr=stderr, low=None, high=None, n=2)) == text


def test_the_root_has_the_roots_of_the_interval():
    root = Quantity(value=0.04, stderr=0.01, low=-0.01, high=0.09, n=5).root()
    assert (root.value, root.low, root.high, root.n) == pytest.approx((0.2, 0.0, 0.3, 5))
    assert root.stderr == pytest.approx(0.01 / (2 * 0.2))
    below = Quantity(value=-0.04, stderr=0.01, low=-0.06, high=-0.02, n=5).root()
    assert (below.value, below.stderr, below.high) == (0, None, 0)


@pytest.mark.slow
def test_figures_and_pages_are_the_same_bytes_twice(report, tmp_path):
    for draw, suffix in ((report.plot, ".png"), (report.plot, ".pdf"), (report.page, ".svg")):
        found = []
        for number in range(2):
            path = tmp_path / f"{draw.__name__}{number}{suffix}"
            draw(path)
            found.append(path.read_bytes())
        assert found[0] == found[1] and len(found[0]) > 5000
    page = ElementTree.parse(tmp_path / "page0.svg")
    texts = ["".join(element.itertext()) for element in page.iter() if element.tag.endswith("text")]
    assert any("Audit of field" in text for text in texts)
    for level in report.levels:
        assert shown(level.asym) in texts and shown(level.nasym) in texts
    assert "λ = √NAsym" in texts and "as x0" in texts and "root mean square (nats)" in texts


def test_the_callers_look_of_figures_is_left_alone(report, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    report.plot(tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


def test_other_formats_are_refused(report, tmp_path):
    with pytest.raises(
        BadInput, match=r"found the suffix '.jpg', expected one of .png, .svg, .pdf"
    ):
        report.plot(tmp_path / "audit.jpg")
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_measured_is_left_out(tmp_path):
    report = qcsbm.asymmetry(lambda x: -x, torch.zeros(1, 2))
    report.plot(tmp_path / "audit.png")
    text = str(report)
    assert "circulation" not in text and "||A||" not in text and "sigma" not in text


def test_conclusions_name_what_was_found(report):
    text = " ".join(report.conclusion)
    for word in ("is not a gradient", "Chao et al. 2023", "Horvat & Pfister", "2606.06179", "nats"):
        assert word in text
    low = min(s.denoiser[0] for level in report.levels for s in level.spectrum)
    assert low < 0 and "no posterior mean" in text
    forces = qcsbm.audit(linear(matrix(6)), points(6, 6), kind="force")
    text = " ".join(forces.conclusion)
    assert "Bigi et al." in text and "units of energy" in text and "nats" not in text
    rms = forces.levels[0].circulation.rms.value
    assert f"{rms:.2g}" in text and math.isfinite(rms)


def test_denoisers_have_eigenvalues_and_a_conclusion_of_their_own():
    j = torch.diag(torch.tensor([0.9, 0.5, -0.2, 0.1])) + 0.1 * torch.ones(4, 4).triu(1)
    report = qcsbm.audit(linear(j), points(4, 4), kind="denoiser")
    assert report.levels[0].spectrum[0].denoiser == report.levels[0].spectrum[0].symmetric
    text = " ".join(report.conclusion)
    assert "Reehorst & Schniter" in text and "no posterior mean" in text and "nats" not in text
    assert repr(report) == "<Report: Audit of field: denoiser field on samples of 4>"
