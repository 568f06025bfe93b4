"""Differences between audits and between result folders, and their exit status."""

import csv
import math

import pytest
import torch
from conftest import in_process
from fields import Potential, linear, matrix, points

import qcsbm
from qcsbm.runtime.errors import BadInput

X = points(40, 6)


def varying(turn):
    """A field whose rotation grows by ``turn`` and differs from sample to sample."""

    def field(x):
        rotation = linear(matrix(6) - matrix(6).T)(x)
        return -2 * x + turn * x.square().sum(1, keepdim=True) * rotation

    return field


@pytest.fixture(scope="module")
def audits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audits")
    for name, turn, seed in (("a", 0.1, 0), ("more", 0.11, 0), ("less", 0.09, 0), ("b", 0.1, 1)):
        report = qcsbm.audit(varying(turn), X, seed=seed)
        report.to_json(folder / name / "audit.json")
    return folder


def rows(comparison):
    return {(row.place, row.metric): row for row in comparison.differences}


def test_the_samples_of_two_audits_are_paired(audits):
    found = rows(qcsbm.compare(audits / "a", audits / "more"))
    assert set(found) == {("samples", name) for name in ("Asym", "NAsym", "circulation")}
    a, b = (qcsbm.Report.from_json(audits / name / "audit.json") for name in ("a", "more"))
    differences = torch.tensor(b.levels[0].samples.asym) - torch.tensor(a.levels[0].samples.asym)
    asym = found["samples", "Asym"]
    assert asym.change.value == pytest.approx(float(differences.mean()))
    assert asym.change.stderr == pytest.approx(float(differences.std()) / math.sqrt(40), rel=1e-4)
    # The samples differ by more than the two fields.
    assert asym.change.stderr < a.levels[0].asym.stderr / 4
    assert asym.verdict == found["samples", "NAsym"].verdict == "worse"
    # Root mean squares, whose difference is not the mean of anything.
    circulation = found["samples", "circulation"]
    assert circulation.change.value == pytest.approx(circulation.b - circulation.a)


@pytest.mark.parametrize(
    "a, b, status, verdict",
    [
        ("a", "more", 1, "worse"),
        ("a", "less", 0, "better"),
        ("a", "a", 0, "same"),
        ("a", "b", 0, "same"),
    ],
)
def test_exit_status_says_whether_the_second_is_worse(audits, capsys, a, b, status, verdict):
    assert in_process("compare", audits / a, audits / b / "audit.json") == status
    text = capsys.readouterr().out
    words = [line.split()[-1] for line in text.splitlines() if line.startswith("samples")]
    assert words[:2] == [verdict] * 2 and len(words) == 3 and text.isascii()
    assert max(map(len, text.splitlines())) <= 80


def test_other_seeds_are_compared_without_pairs():
    plain, more = (qcsbm.audit(varying(turn), X, seed=seed) for turn, seed in ((0.1, 0), (0.11, 1)))
    found = rows(qcsbm.compare(plain, more))["samples", "Asym"]
    errors = [report.levels[0].asym.stderr for report in (plain, more)]
    assert found.change.stderr == pytest.approx(math.hypot(*errors))
    assert found.verdict == "undecided"


def test_two_gradients_are_the_same_whatever_rounding_says():
    potential = Potential(6)
    reports = [qcsbm.asymmetry(lambda x, w=w: w * potential(x), X) for w in (1.0, 20.0)]
    assert reports[1].mean.asym.low > reports[0].mean.asym.high
    assert {row.verdict for row in qcsbm.compare(*reports).differences} == {"same"}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"kind": "force"}, "another kind, force, expected score as in A"),
        ({"x": points(40, 6, seed=1)}, "another data"),
        ({"x": X.double()}, "another data"),
        ({"probes": 4}, "another estimator, probes, expected exact"),
        ({"t": [1.0, 2.0]}, "another levels, "),
    ],
)
def test_audits_of_different_protocols_are_not_compared(audits, change, sentence):
    field = varying(0.1)
    options = {"x": X} | change
    other = qcsbm.asymmetry((lambda x, t: field(x)) if "t" in change else field, **options)
    with pytest.raises(BadInput, match=sentence):
        qcsbm.compare(audits / "a", other)


# Result folders.

COLUMNS = (
    "dataset",
    "method",
    "seed",
    "metric",
    "value",
    "stderr",
    "n",
    "unit",
    "stage",
    "sampler",
)


def results(folder, rows, method="u", **columns):
    folder.mkdir()
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *columns])
        for metric, seed, value, stderr in rows:
            stage = "likelihood" if metric == "nll" else "quality"
            sampler = "" if metric == "nll" else "pc"
            row = ["digits", method, seed, metric, value, stderr, 64, "1", stage, sampler]
            writer.writerow([*row, *columns.values()])
    return folder


def test_metrics_are_compared_over_seeds_in_their_direction(tmp_path):
    a = [("nll", s, 2.0 + s, 0.1) for s in range(3)] + [("recall", s, 0.5, 0.1) for s in range(3)]
    b = [("nll", s, 2.1 + s + 0.01 * (s == 1), 0.1) for s in range(4)]
    b += [("recall", s, 0.6 + 0.01 * s, 0.1) for s in range(3)]
    found = rows(qcsbm.compare(results(tmp_path / "a", a), results(tmp_path / "b", b)))
    nll, recall = found["digits, u", "nll"], found["digits, u, pc", "recall"]
    assert nll.verdict == "worse" and nll.change.n == 3
    assert nll.change.value == pytest.approx(0.1 + 0.01 / 3)
    assert recall.verdict == "better" and recall.change.value == pytest.approx(0.11)


def test_positive_metrics_are_compared_by_ratio(tmp_path):
    a = results(tmp_path / "a", [("fd", 0, 50.0, 5.0), ("fd", 1, 100.0, 5.0)])
    b = results(tmp_path / "b", [("fd", 0, 55.0, 5.0), ("fd", 1, 112.0, 5.0)])
    (row,) = qcsbm.compare(a, b).differences
    assert row.ratio and row.change.value == pytest.approx(math.sqrt(1.1 * 1.12))
    assert "x 1.11" in str(qcsbm.compare(a, b))


def test_long_names_of_methods_stand_above_their_metrics(tmp_path):
    values = [("nll", 0, 2.0, 0.03), ("fd_infinity", 0, 1234.5, 67.8), ("recall", 0, 0.5, 0.01)]
    method = "antisymmetric_0001_of_16"
    a, b = (results(tmp_path / name, values, method=method) for name in "ab")
    lines = str(qcsbm.compare(a, b)).splitlines()
    assert max(map(len, lines)) <= 80
    below = lines[lines.index(f"digits, {method}, pc") + 1 :]
    assert lines[lines.index(f"digits, {method}") + 1].split()[0] == "nll"
    assert {line.split()[0] for line in below[:2]} == {"fd_infinity", "recall"}


def test_one_seed_is_judged_by_the_errors_within_its_runs(tmp_path):
    a = results(tmp_path / "a", [("nll", 0, 2.0, 0.03)])
    b = results(tmp_path / "b", [("nll", 0, 2.09, 0.04)])
    (row,) = qcsbm.compare(a, b).differences
    assert row.verdict == "undecided" and row.change.stderr == pytest.approx(0.05)
    worse = results(tmp_path / "worse", [("nll", 0, 2.11, 0.04)])
    assert in_process("compare", a, worse) == 1
    assert in_process("compare", worse, a) == 0


def test_results_of_different_protocols_are_not_compared(tmp_path):
    a = results(tmp_path / "a", [("nll", 0, 2.0, 0.1)], rtol="0.1", train_steps=600)
    b = results(tmp_path / "b", [("nll", 0, 2.0, 0.1)], rtol="0.01", train_steps=1200)
    with pytest.raises(BadInput, match="found rtol 0.01 for nll of u on digits, expected 0.1"):
        qcsbm.compare(a, b)
    # How a model was trained is what is compared.
    trained = results(tmp_path / "c", [("nll", 0, 2.0, 0.1)], rtol="0.1", train_steps=1200)
    assert not qcsbm.compare(a, trained).worse


@pytest.mark.parametrize(
    "a, b, sentence",
    [
        ("results", "audit", "found a result folder and an audit"),
        ("results", "empty", "found neither audit.json nor metrics.csv"),
        ("results", "strange", "found no metrics"),
        ("results", "other", "found no metric of a dataset and method"),
    ],
)
def test_what_cannot_be_compared_is_refused(audits, tmp_path, capsys, a, b, sentence):
    results(tmp_path / "results", [("nll", 0, 2.0, 0.1)])
    results(tmp_path / "other", [("fd", 0, 2.0, 0.1)])
    (tmp_path / "empty").mkdir()
    results(tmp_path / "strange", [("nll", 0, "much", 0.1)])
    (tmp_path / "audit").symlink_to(audits / "a")
    assert in_process("compare", tmp_path / a, tmp_path / b) == 2
    message = capsys.readouterr().err
    assert sentence in message and len(message.splitlines()) == 1
