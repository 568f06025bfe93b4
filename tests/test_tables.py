"""From records to tables."""

import numpy as np
import pandas as pd
import pytest

from qcsbm import pages
from qcsbm.tables import build, flat, format_value, latex, over_seeds, sections, tidy


def markdown(title, blocks):
    return pages.markdown(title, sections(blocks))


def record(stage, method, seed, metrics, **protocol):
    return {
        "stage": stage,
        "dataset": "digits",
        "method": method,
        "seed": seed,
        "metrics": [
            {"name": name, "value": value, "stderr": 0.1, "n": 8, "unit": "1"}
            for name, value in metrics.items()
        ],
        "protocol": protocol,
    }


@pytest.fixture
def records():
    rows = []
    for seed, shift in enumerate((0.0, 0.3, 0.6)):
        for method, nll in (("u", 3.0), ("qc", 2.0)):
            rows.append(record("likelihood", method, seed, {"nll": nll + shift}, rtol=1e-3))
            rows.append(record("asymmetry", method, seed, {"asym": 2e8, "nasym": 1e-3}, levels=10))
    return rows


@pytest.fixture
def spec():
    methods = [["u", "U-Net"], ["qc", "QC⁺"], ["c", "C"]]
    return {"sampler": None, "datasets": {"digits": "Digits"}, "methods": {"digits": methods}}


def test_records_keep_asym_and_nasym_apart(records):
    frame = tidy(records)
    means = frame.groupby("metric")["value"].mean()
    assert means["asym"] == 2e8 and means["nasym"] == 1e-3
    assert len(frame) == 3 * 2 * 3
    assert frame.loc[frame["metric"] == "nll", "rtol"].eq(1e-3).all()
    assert frame.loc[frame["metric"] == "asym", "rtol"].isna().all()


def test_order_of_records_does_not_matter(records):
    pd.testing.assert_frame_equal(tidy(records), tidy(records[::-1]))


def test_standard_error_is_that_of_the_mean_over_seeds():
    values = pd.Series([1.0, 2.0, 4.0, 5.0])
    mean, stderr = over_seeds(values)
    assert mean == 3.0
    assert stderr == pytest.approx(np.std(values, ddof=1) / 2)
    assert over_seeds(values[:1]) == (1.0, None)


def test_table_has_its_rows_in_order_and_says_what_is_missing(records, spec):
    text = markdown("Title", build(tidy(records), spec, {}))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines] == ["Method", "U-Net", "QC⁺", "C"]
    assert "3.30 ± 0.17" in lines[1] and "2.30 ± 0.17" in lines[2]
    assert "2.00e8" in lines[1]
    assert lines[3].count("—") == 3
    assert "- C: nll was not measured." in text
    assert "Likelihood: rtol 0.001." in text


def test_latex_has_no_character_that_it_cannot_set(records, spec):
    text = latex(build(tidy(records), spec, {}))
    assert text.isascii() and r"3.30 $\pm$ 0.17" in text and "QC$^+$" in text


def test_csv_has_the_unrounded_numbers(records, spec):
    frame = flat(build(tidy(records), spec, {})).set_index("method")
    assert frame.loc["u", "nll"] == pytest.approx(3.3, rel=1e-15)
    assert frame.loc["u", "nll_stderr"] == pytest.approx(0.3 / np.sqrt(3))
    assert np.isnan(frame.loc["c", "nll"]) and frame.loc["c", "seeds"] == 0


def test_table_of_samples_shows_the_names_of_the_extractor_that_was_used(spec):
    quality = {"fd": 3.0, "cs": 2.0, "precision": 0.5, "recall": 0.25}
    rows = [
        record("sample", "u", 0, {"nfe": 100.0}, sampler="pc"),
        record("quality", "u", 0, quality, sampler="pc", extractor="classifier"),
        record("quality", "u", 0, dict(quality, fd=9.0), sampler="ode", extractor="classifier"),
    ]
    block = build(tidy(rows), {**spec, "sampler": "pc"}, {})[0]
    assert block.metrics == ["nfe", "fd", "cs", "precision", "recall"]
    assert block.cells["u", "fd"] == (3.0, None)


@pytest.mark.parametrize(
    "mean, stderr, text",
    [
        (3.14159, 0.0217, "3.14 ± 0.02"),
        (3.14159, 0.0117, "3.142 ± 0.012"),
        (250.4, 31.0, "250 ± 31"),
        (250.4, 17.0, "250 ± 17"),
        (1.88e8, 3.2e6, "(1.88 ± 0.03)e8"),
        (8.41e-4, 1.2e-5, "(8.41 ± 0.12)e-4"),
        (1000.0, None, "1000"),
        (1000.0, 0.0, "1000"),
        (0.0, None, "0"),
        (0.0678, None, "0.0678"),
        (12.345, None, "12.3"),
        (2.05e7, None, "2.05e7"),
        (-0.5, 0.04, "-0.50 ± 0.04"),
        # What rounds to one digit more.
        (9.996e-4, None, "0.00100"),
        (-9.996e-5, None, "-1.00e-4"),
        (9.996e7, None, "1.00e8"),
        (9999.7, None, "1.00e4"),
        (99.96, None, "100"),
        (9.996e-5, 1.2e-7, "(9.996 ± 0.012)e-5"),
        (9.99996e-5, 1.2e-7, "(1.0000 ± 0.0012)e-4"),
        (0.5, 0.0996, "0.50 ± 0.10"),
        # An error that leaves no digit of the number.
        (-1e-5, 0.5, "0.0 ± 0.5"),
        (2e4, 1e6, "(0.0 ± 1.0)e6"),
    ],
)
def test_numbers_have_the_digits_that_their_error_supports(mean, stderr, text):
    assert format_value(mean, stderr) == text


def paper_lines(text):
    """The cells of every row below the headings of the grid that has the paper's numbers."""
    grid = text.split("beside the paper", 1)[1].split("##")[0].splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in grid if "NCSN" in line
    ]


def on(dataset, rows):
    return [{**row, "dataset": dataset} for row in rows]


def paper_spec(sampler, *methods):
    return {
        "sampler": sampler,
        "datasets": {"cifar10": "CIFAR-10", "digits": "Digits"},
        "methods": {dataset: list(methods) for dataset in ("cifar10", "digits")},
    }


def test_numbers_of_table_2_stand_beside_ours(records):
    spec = paper_spec(None, ["u", "U-NCSN++"], ["qc", "QC-NCSN++"], ["qcplus", "QC⁺"])
    text = markdown("T", build(tidy(on("cifar10", records) + on("digits", records)), spec, {}))
    assert paper_lines(text) == [
        ["U-NCSN++", "NLL (bits/dim) ↓", "3.46", "3.30 ± 0.17", "-0.16 ± 0.17"],
        ["U-NCSN++", "Asym ↓", "1.88e8", "2.00e8", "1.20e7"],
        ["U-NCSN++", "NAsym ↓", "1.90e-3", "0.00100", "-9.00e-4"],
        ["QC-NCSN++", "NLL (bits/dim) ↓", "3.38", "2.30 ± 0.17", "-1.08 ± 0.17"],
        ["QC-NCSN++", "Asym ↓", "3.49e7", "2.00e8", "1.65e8"],
        ["QC-NCSN++", "NAsym ↓", "8.41e-4", "0.00100", "1.59e-4"],
    ]
    assert text.count("beside the paper") == 1, "digits are no dataset of the paper"


def quality_rows(sampler, extractor, **metrics):
    quality = {**metrics, "precision": 0.5, "recall": 0.25}
    return on(
        "cifar10",
        [
            record("sample", "u", 0, {"nfe": 1000.0}, sampler=sampler),
            record("quality", "u", 0, quality, sampler=sampler, extractor=extractor),
        ],
    )


def test_numbers_of_table_3_stand_beside_the_same_sampler_and_network_only():
    frame = tidy(
        quality_rows("pc", "inception", fid=2.75, **{"is": 9.25})
        + quality_rows("ode", "inception", fid=3.0, **{"is": 9.25})
    )
    spec = paper_spec("pc", ["u", "U-NCSN++"])
    rows = paper_lines(markdown("T", build(frame, spec, {})))
    assert [row[1:] for row in rows] == [
        ["NFE ↓", "1000", "1000", "0"],
        ["FID ↓", "2.50", "2.75", "0.250"],
        ["IS ↑", "9.58", "9.25", "-0.330"],
        ["Prec. ↑", "0.67", "0.500", "-0.170"],
        ["Rec. ↑", "0.60", "0.250", "-0.350"],
    ]
    assert "beside the paper" not in markdown("T", build(frame, {**spec, "sampler": "ode"}, {}))
    frame = tidy(quality_rows("pc", "classifier", fd=2.75, cs=9.0))
    assert "beside the paper" not in markdown("T", build(frame, spec, {}))
