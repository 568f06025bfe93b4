"""Prediction intervals of a study's seeds, and what a run is told that is set beside it."""

import csv
import re

import numpy as np
import pytest
from conftest import in_process

from qcsbm.auditing.prediction import PIECE, reproduce

COLUMNS = ["dataset", "method", "seed", "metric", "value", "stage", "sampler", "samples"]
COLUMNS += ["train_steps", "samples_sha256", "extractor_sha256"]
# Base, standard deviation over seeds (of the logarithm for fd), stage and sampler.
NUMBERS = {"nll": (3.0, 0.1, "likelihood", ""), "fd": (50.0, 0.2, "quality", "pc")}


def write(folder, values, **changes):
    """A folder with metrics: values by metric and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for (method, metric), by_seed in values.items():
            *_, stage, sampler = NUMBERS.get(metric, ("likelihood", ""))
            for seed, value in by_seed.items():
                row = {"dataset": "digits", "method": method, "seed": seed, "metric": metric}
                row |= {"value": value, "stage": stage, "sampler": sampler, "samples": 64}
                row |= {"train_steps": 100, "samples_sha256": folder, "extractor_sha256": folder}
                table.writerow(row | changes)
    return folder


def study(folder, values):
    write(folder, values)
    (folder / PIECE).write_text("{}")
    return folder


def test_intervals_are_those_of_the_formula_and_of_logarithms_for_ratios(tmp_path):
    nll, fd = {0: 3.0, 1: 3.2, 2: 3.1, 3: 2.9}, {0: 40.0, 1: 50.0, 2: 60.0, 3: 55.0}
    a = study(tmp_path / "a", {("u", "nll"): nll, ("u", "fd"): fd, ("c", "nll"): nll})
    b = write(tmp_path / "b", {("u", "nll"): {7: 3.5, 8: 3.3}, ("u", "fd"): {7: 70.0, 8: 71.0}})
    found = reproduce(a, b)
    by_metric = {p.metric: p for p in found.predictions}
    # Student's quantile at 0.975 with three degrees of freedom is 3.182446.
    values = np.array(list(nll.values()))
    half_width = 3.182446 * values.std(ddof=1) * (1 / 4 + 1 / 2) ** 0.5
    p = by_metric["nll"]
    assert (p.study, p.new) == pytest.approx((3.05, 3.4))
    assert (p.low, p.high) == pytest.approx((3.05 - half_width, 3.05 + half_width), rel=1e-6)
    assert found.verdict(p) == "in" and not p.same
    values = np.log(list(fd.values()))
    half_width = 3.182446 * values.std(ddof=1) * (1 / 4 + 1 / 2) ** 0.5
    p = by_metric["fd"]
    expected = np.exp(values.mean() + half_width * np.array([-1, 1]))
    assert (p.low, p.high) == pytest.approx(tuple(expected), rel=1e-6)
    assert p.new == pytest.approx((70 * 71) ** 0.5) and p.seeds == 2
    assert (found.missing, found.failed) == (1, False)


@pytest.mark.parametrize("n, m", [(3, 1), (5, 20)])
def test_intervals_hold_new_means_as_often_as_they_say(n, m, tmp_path):
    from qcsbm.auditing.prediction import predicted

    rng, repeats = np.random.default_rng(0), 2000
    p = []
    for _ in range(repeats):
        old, new = (dict(enumerate(rng.lognormal(1.0, 0.5, size=k))) for k in (n, m))
        found = predicted(("digits", "u", "fd", "quality", "pc"), old, new)
        assert (found.p > 0.05) == (found.low < found.new < found.high)
        p.append(found.p)
    for level in (0.05, 0.5):
        tolerance = 4 * (level * (1 - level) / repeats) ** 0.5
        assert np.mean(np.array(p) < level) == pytest.approx(level, abs=tolerance)


def many(shift=0.0, seeds=range(10), draws=0):
    """Twenty methods' NLL, the first of which is off by ``shift`` standard deviations."""
    rng = np.random.default_rng(draws)
    return {
        (f"m{i}", "nll"): {seed: rng.normal(3 + 0.1 * shift * (i == 0), 0.1) for seed in seeds}
        for i in range(20)
    }


def test_exit_status_and_table_say_what_is_out_and_how_many_are_to_be_expected(tmp_path, capsys):
    a = study(tmp_path / "a", many())
    for name, shift, draws, status in (("same", 0, 0, 0), ("new", 0, 1, 0), ("far", 9, 1, 1)):
        b = write(tmp_path / name, many(shift, range(10, 15) if draws else range(10), draws))
        assert in_process("compare", a, b) == status
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80
        counts = {
            verdict: len(re.findall(f" {verdict}$", text, re.MULTILINE))
            for verdict in ("in", "far out")
        }
        assert counts["far out"] == status
        words = " ".join(text.split())
        assert f"interval: {counts['in']} of 20 numbers" in words
        assert "1.0 are to be expected" in words
        assert ("to all digits: 20." in words) == (name == "same")


def test_what_was_measured_in_another_way_or_not_at_all_is_refused(tmp_path, capsys):
    a = study(tmp_path / "a", many())
    other = write(tmp_path / "other", many(), samples=32)
    assert in_process("compare", a, other) == 2
    assert "found samples 32 for nll of m0 on digits, expected 64" in capsys.readouterr().err
    shorter = write(tmp_path / "shorter", many(), train_steps=50)
    assert in_process("compare", a, shorter) == 2
    assert "found train_steps 50 for nll" in capsys.readouterr().err
    nothing = write(tmp_path / "nothing", many(), dataset="patches")
    assert in_process("compare", a, nothing) == 2
    assert "found no metric of the study" in capsys.readouterr().err
    assert in_process("compare", a, tmp_path) == 2
    assert "metrics.csv: found no such file" in capsys.readouterr().err
    single = study(tmp_path / "single", many(seeds=[0]))
    assert in_process("compare", single, a) == 2
    assert "found one seed of m0, expected at least 2" in capsys.readouterr().err


def test_a_number_that_never_varies_has_to_be_the_same(tmp_path):
    constant = {("u", "nll"): dict.fromkeys(range(3), 0.1)}
    a = study(tmp_path / "a", constant)
    same = reproduce(a, write(tmp_path / "b", constant))
    other = reproduce(a, write(tmp_path / "c", {("u", "nll"): {0: 0.1, 1: 0.2}}))
    assert [r.verdict(r.predictions[0]) for r in (same, other)] == ["in", "far out"]
