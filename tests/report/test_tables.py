"""From records to tables: of numbers whose means, medians and errors all differ."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, expecting, in_process, told

from qcsbm.experiment import config, paper_rows, specification
from qcsbm.report import pages
from qcsbm.report.tables import build, flat, format_value, latex, over_seeds, sections, tidy
from qcsbm.runtime import failure
from qcsbm.schema.specifications import TableSpec
from qcsbm.stages import table

# By method, metric and seed. No mean is a median, no asym a multiple of nasym, and no two columns
# or rows are alike.
VALUES = {
    "u": {"nll": [3.0, 3.3, 3.9], "asym": [1e8, 2e8, 6e8], "nasym": [4e-3, 1e-3, 1e-3]},
    "qc": {"nll": [2.0, 2.2, 2.6], "asym": [5e7, 1e7, 3e7], "nasym": [2e-4, 8e-4, 5e-4]},
}
SEEDS = (3, 1, 7)
STAGES = {"nll": "likelihood", "asym": "asymmetry", "nasym": "asymmetry"}
U = {
    "train_steps": 600,
    "parameterisation": "score",
    "residual": False,
    "started_from": "random weights",
    "training_batch_size": 64,
}
QC = {
    **{**U, "started_from": "u@400", "regulariser_weight": 0.01},
    **{"regulariser_estimator": "trace", "regulariser_probes": 1, "regulariser_every": 1},
    **{"regulariser_time_sampling": "uniform", "regulariser_batch_size": 64},
    **{"regulariser_derivatives": "autograd", "regulariser_difference_step": None},
}
PROTOCOLS = {"likelihood": {"rtol": 1e-3}, "asymmetry": {"noise_levels": 10, "weights": "raw"}}
LABELS = {"u": "U-Net", "qc": "QC⁺", "c": "C"}


def markdown(title, blocks):
    return pages.markdown(title, sections(blocks))


def record(stage, method, seed, metrics, **protocol):
    return {
        "stage": stage,
        "dataset": "digits",
        "method": method,
        "seed": seed,
        "metrics": [
            {"name": name, "value": value, "stderr": 0.125, "n": 8, "unit": "u"}
            for name, value in metrics.items()
        ],
        "protocol": protocol,
        "specification": {"stage": stage, "seed": seed, "protocol": protocol},
    }


@pytest.fixture
def records():
    rows = []
    for method, trained in (("u", U), ("qc", QC)):
        for i, seed in enumerate(SEEDS):
            for stage, protocol in PROTOCOLS.items():
                metrics = {m: v[i] for m, v in VALUES[method].items() if STAGES[m] == stage}
                rows.append(record(stage, method, seed, metrics, **trained, **protocol))
    return rows


def specified(spec):
    """What the stage is told, where records are not compared with it."""
    told = {"version": 1, "strict": False, "seeds": {}, "records": {}}
    return TableSpec.model_validate_json(json.dumps(told | spec))


@pytest.fixture
def spec():
    return {
        "sampler": None,
        "datasets": {"digits": "Digits"},
        "methods": {"digits": list(map(list, LABELS.items()))},
        "names": {"digits": LABELS},
        "paper": {"digits": {}},
    }


def test_every_metric_of_every_record_is_a_row_with_its_own_protocol(records):
    frame = tidy(records)
    assert len(frame) == 2 * 3 * 3
    for (method, metric), rows in frame.groupby(["method", "metric"]):
        by_seed = dict(zip(rows["seed"], rows["value"], strict=True))
        assert by_seed == dict(zip(SEEDS, VALUES[method][metric], strict=True))
        assert (rows["stage"] == STAGES[metric]).all()
    assert (frame[["stderr", "n", "unit"]] == [0.125, 8, "u"]).all(axis=None)
    likelihood = frame["stage"] == "likelihood"
    assert (
        frame.loc[likelihood, "rtol"].eq(1e-3).all() and frame.loc[~likelihood, "rtol"].isna().all()
    )
    assert frame.loc[~likelihood, "noise_levels"].eq(10).all()
    assert frame.loc[frame["method"] == "qc", "regulariser_weight"].eq(0.01).all()
    assert frame.loc[frame["method"] == "u", "regulariser_weight"].isna().all()


def test_order_of_records_does_not_matter(records):
    pd.testing.assert_frame_equal(tidy(records), tidy(records[::-1]))


def test_standard_error_is_that_of_the_mean_over_seeds():
    values = pd.Series([1.0, 2.0, 4.0, 9.0])
    mean, stderr = over_seeds(values)
    assert mean == 4.0
    # Deviations -3, -2, 0 and 5: a variance of 38/3, over four seeds.
    assert stderr == pytest.approx((38 / 3 / 4) ** 0.5)
    assert over_seeds(values[:1]) == (1.0, None)


MARKDOWN = """\
# Title

## Digits

| Method   |   NLL (bits/dim) ↓ |          Asym ↓ |            NAsym ↓ |
|:---------|-------------------:|----------------:|-------------------:|
| U-Net    |          3.4 ± 0.3 | (3.0 ± 1.5)e8   |    0.0020 ± 0.0010 |
| QC⁺      |        2.27 ± 0.18 | (3.0 ± 1.2)e7   | (5.0 ± 1.7)e-4     |
| C        |                  — |               — |                  — |

- Seeds per row: 0, 3.
- C: nll was not measured.
- C: asym was not measured.
- C: nasym was not measured.
- U-Net: no L_QC, started from random weights, trained as a score to step 600 with batches of 64.
- QC⁺: L_QC with λ = 0.01, trace, 1 probe, every step, started from U-Net at step 400, trained as \
a score to step 600 with batches of 64.
- Likelihood: rtol 0.001.
- Asymmetry: weights raw, noise levels 10.
"""
LATEX = r"""% Digits
\begin{tabular}{llll}
\hline
 Method & NLL (bits/dim) $\downarrow$ & Asym $\downarrow$ & NAsym $\downarrow$ \\
\hline
 U-Net & 3.4 $\pm$ 0.3 & (3.0 $\pm$ 1.5)e8 & 0.0020 $\pm$ 0.0010 \\
 QC$^+$ & 2.27 $\pm$ 0.18 & (3.0 $\pm$ 1.2)e7 & (5.0 $\pm$ 1.7)e-4 \\
 C & --- & --- & --- \\
\hline
\end{tabular}
"""


def words(text):
    """Lines without the blanks that align their columns."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_page_has_every_mean_and_error_in_its_place_and_says_what_it_is_of(records, spec):
    text = markdown("Title", build(tidy(records), specified(spec), {}))
    grid = [line for line in words(text) if not line.startswith("|:")]
    assert grid == [line for line in words(MARKDOWN) if not line.startswith("|:")]


def test_latex_is_the_same_table(records, spec):
    text = latex(build(tidy(records), specified(spec), {}))
    assert words(text) == words(LATEX) and text.isascii()


def test_latex_has_no_character_that_it_cannot_set(records, spec):
    label = r"a&b 50% c_d #1 $x$ {y} ~z ^w \v"
    spec["methods"]["digits"] = [["u", label]]
    row = latex(build(tidy(records), specified(spec), {})).splitlines()[5]
    assert row.split(" & 3.4")[0].strip() == (
        r"a\&b 50\% c\_d \#1 \$x\$ \{y\} \textasciitilde{}z \textasciicircum{}w"
        r" \textbackslash{}v"
    )


def test_csv_has_the_unrounded_numbers_in_their_columns(records, spec):
    frame = flat(build(tidy(records), specified(spec), {}))
    columns = ["nll", "nll_stderr", "asym", "asym_stderr", "nasym", "nasym_stderr"]
    assert list(frame) == ["dataset", "method", "label", "seeds", *columns]
    assert frame[["dataset", "method", "label", "seeds"]].to_numpy().tolist() == [
        ["digits", "u", "U-Net", 3],
        ["digits", "qc", "QC⁺", 3],
        ["digits", "c", "C", 0],
    ]
    for i, method in enumerate(("u", "qc")):
        for metric, values in VALUES[method].items():
            row = frame.loc[i]
            assert row[metric] == pytest.approx(sum(values) / 3, rel=1e-14)
            stderr = np.std(values, ddof=1) / np.sqrt(3)
            assert row[f"{metric}_stderr"] == pytest.approx(stderr, rel=1e-14)
    assert frame.loc[2, columns].isna().all()


def test_a_cell_over_fewer_seeds_than_its_row_says_so(records, spec):
    kept = [r for r in records if (r["stage"], r["method"], r["seed"]) != ("likelihood", "u", 7)]
    (block,) = build(tidy(kept), specified(spec), {})
    assert "U-Net: nll is over 2 of 3 seeds." in block.notes
    assert block.cells["u", "nll"][0] == pytest.approx(3.15) and block.seeds["u"] == 3


def test_records_of_other_methods_do_not_enter(records, spec):
    other = record("likelihood", "qc_k16", 3, {"nll": 1.0}, **QC, rtol=1.0, atol=1.0)
    expected = build(tidy(records), specified(spec), {})
    assert build(tidy([other, *records]), specified(spec), {}) == expected


def test_what_was_not_measured_alike_is_said_of_which_method(records, spec):
    for found in records:
        if found["method"] == "qc" and found["stage"] == "likelihood":
            found["protocol"]["rtol"] = 1e-4
    (block,) = build(tidy(records), specified(spec), {})
    assert "Likelihood: rtol 0.0001 (QC⁺) / 0.001 (U-Net)." in block.notes


def test_derivatives_are_said_of_which_method(records, spec):
    told = {
        "u": {"derivatives": "autograd", "difference_step": None},
        "qc": {"derivatives": "finite_differences", "difference_step": 0.003},
    }
    for found in records:
        if found["stage"] == "asymmetry":
            found["protocol"] |= told[found["method"]]
    (note,) = [n for n in build(tidy(records), specified(spec), {})[0].notes if "Asymm" in n]
    assert note == (
        "Asymmetry: weights raw, derivatives finite_differences (QC⁺) / autograd (U-Net), "
        "difference step 0.003, noise levels 10."
    )


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {
                "regulariser_probes": 16,
                "regulariser_every": 4,
                "regulariser_time_sampling": "importance",
            },
            "L_QC with λ = 0.01, trace, 16 probes, every 4 steps, t by importance sampling, ",
        ),
        (
            {
                "regulariser_derivatives": "finite_differences",
                "regulariser_difference_step": 0.003,
            },
            "1 probe, every step, by finite differences over 0.003 σ, started from",
        ),
        (
            {},
            "L_QC with λ = 0.01, trace, 1 probe, every step, started from",
        ),
        (
            {"regulariser_batch_size": 8, "regulariser_weight": 1e-4},
            "L_QC with λ = 0.0001, trace, 1 probe, every step, on 8 samples of each batch, started",
        ),
        (
            {"started_from": "a b/c@d.safetensors@200 → u@400", "residual": True},
            "started from U-Net at step 400, and that from a b/c@d.safetensors at step 200, trained"
            " as a score with h = x − f to step 600 with batches of 64.",
        ),
        ({"parameterisation": "energy"}, "trained as an energy to step 600"),
    ],
)
def test_notes_say_how_a_model_was_trained(records, spec, changes, sentence):
    for found in records:
        if found["method"] == "qc":
            found["protocol"] |= changes
    (note,) = [
        n for n in build(tidy(records), specified(spec), {})[0].notes if n.startswith("QC⁺: L_QC")
    ]
    assert sentence in note


def test_models_of_two_trainings_in_one_row_are_both_described(records, spec):
    records[-1]["protocol"]["regulariser_weight"] = 0.5
    training = [
        n for n in build(tidy(records), specified(spec), {})[0].notes if n.startswith("QC⁺: ")
    ]
    assert ["0.01," in note for note in training] == [True, False] and "0.5," in training[1]


@pytest.fixture
def edited():
    """The quick tier, with a QC of its own kind and one that goes on from it; and digits alone."""
    document = yaml.safe_load((ROOT / "config/quick.yaml").read_text())
    del document["datasets"]["patches"]
    regulariser = {"weight": 0.5, "probes": 3, "estimator": "antisymmetric", "batch_size": 4}
    document["methods"]["qc"] |= {
        "checkpoints": [500],
        "regulariser": {
            **regulariser,
            "every": 2,
            "time_sampling": "importance",
            "derivatives": "finite_differences",
        },
        "training": {"batch_size": 16},
    }
    document["methods"]["further"] = {
        "label": "",
        "parameterisation": "score",
        "init_from": {"method": "qc", "step": 500},
    }
    imported = {"checkpoint": "a/u.safetensors", "step": 600}
    document["methods"]["imported"] = {**document["methods"]["qcplus"], "init_from": imported}
    return config.load(document, "edited.yaml")


@pytest.mark.parametrize("stage", ["likelihood", "asymmetry", "sample", "quality"])
def test_every_measurement_says_how_its_model_was_trained(edited, stage):
    def trained(method):
        arguments = ["pc"] if stage in ("sample", "quality") else []
        spec = getattr(specification, stage)(edited, "digits", method, 0, *arguments)
        return {key: value for key, value in spec.columns().items() if key in {*QC, *U}}

    assert trained("u") == U
    assert trained("c") == {**U, "parameterisation": "energy"}
    differences = {
        "regulariser_derivatives": "finite_differences",
        "regulariser_difference_step": 0.003,
    }
    antisymmetric = {"regulariser_estimator": "antisymmetric"}
    assert trained("qcplus") == {**QC, **antisymmetric, **differences}
    assert trained("qc") == {
        **{**U, "started_from": "u@400", "training_batch_size": 16, "regulariser_weight": 0.5},
        **{"regulariser_estimator": "antisymmetric", "regulariser_probes": 3},
        **{
            "regulariser_every": 2,
            "regulariser_time_sampling": "importance",
            "regulariser_batch_size": 4,
            **differences,
        },
    }
    assert trained("further") == {**U, "started_from": "u@400 → qc@500"}
    # Its training is not known, whatever the row says.
    unknown = {key: U[key] for key in ("train_steps", "parameterisation", "residual")}
    assert trained("imported") == {**unknown, "started_from": "a/u.safetensors@600"}


def test_of_an_imported_model_the_file_is_all_that_is_known(spec):
    facts = {key: U[key] for key in ("train_steps", "parameterisation", "residual")}
    facts["started_from"] = "a/u.safetensors@600"
    (block,) = build(
        tidy([record("likelihood", "u", 0, {"nll": 1.5}, **facts)]), specified(spec), {}
    )
    assert (
        "U-Net: a score, imported from a/u.safetensors at step 600; how it was trained is not "
        "known here." in block.notes
    )


def test_table_of_samples_shows_the_names_of_the_extractor_that_was_used(spec):
    quality = {"fd": 3.0, "cs": 2.0, "precision": 0.5, "recall": 0.25}
    rows = [
        record("sample", "u", 0, {"nfe": 100.0}, sampler="pc", sampler_type="pc"),
        record("quality", "u", 0, quality, sampler="pc", extractor="classifier"),
        record("quality", "u", 0, dict(quality, fd=9.0), sampler="ode", extractor="classifier"),
    ]
    block = build(tidy(rows), specified({**spec, "sampler": "pc"}), {})[0]
    assert block.metrics == ["nfe", "fd", "cs", "precision", "recall"]
    assert {metric: block.cells["u", metric] for metric in block.metrics} == {
        metric: (value, None) for metric, value in {"nfe": 100.0, **quality}.items()
    }


PC = {"steps": 50, "snr": 0.16, "corrector_steps": 1, "batch_size": 128}
SAMPLERS = {
    "pc": ("pc", PC, "PC", "sampler pc, steps 50, snr 0.16, corrector steps 1"),
    "ode": (
        "ode",
        {"rtol": 1e-4, "atol": 1e-5, "batch_size": 128},
        "ODE",
        "sampler ode, rtol 0.0001, atol 1e-05",
    ),
    "heun": ("heun", {"steps": 18, "rho": 7.0}, "Heun", "sampler heun, steps 18, rho 7"),
    "heun35": (
        "heun",
        {"steps": 18, "rho": 7.0, "batch_size": 9},
        "heun35",
        "sampler heun35, sampler type heun, steps 18, rho 7",
    ),
    "slow": (
        "langevin",
        {"noise_levels": 10, "steps_per_level": 100, "step_size": 0.1},
        "slow",
        "sampler slow, sampler type langevin, noise levels 10, steps per level 100, step size 0.1",
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_table_of_samples_names_its_sampler_and_all_that_it_is_told(name, spec):
    kind, settings, title, told = SAMPLERS[name]
    facts = {"weights": "ema", "sampler": name, "sampler_type": kind, **settings}
    others = {"weights": "ema", "sampler": "other", "sampler_type": "pc", **PC}
    records = [
        record("sample", "u", 0, {"nfe": 35.0}, **facts),
        record("sample", "u", 0, {"nfe": 50.0}, **others),
    ]
    text = table.texts(specified({**spec, "sampler": name}), records, [])[".md"]
    assert text.startswith(f"# Sample quality, {title} sampler\n")
    assert f"\n- Sample: weights ema, {told}.\n" in text


def test_settings_of_one_sampler_may_differ_by_method(spec):
    pc = {"sampler": "mine", "sampler_type": "pc", **PC}
    heun = {"sampler": "mine", "sampler_type": "heun", "steps": 18, "rho": 7.0}
    records = [
        record("sample", method, 0, {"nfe": 1.0}, **facts)
        for method, facts in (("u", pc), ("qc", heun))
    ]
    (block,) = build(tidy(records), specified({**spec, "sampler": "mine"}), {})
    assert (
        "Sample: sampler mine, sampler type heun (QC⁺) / pc (U-Net), steps 18 (QC⁺) / 50 (U-Net), "
        "rho 7, snr 0.16, corrector steps 1." in block.notes
    )


def write(folder, records):
    paths = [folder / f"{i}.json" for i in range(len(records))]
    for path, content in zip(paths, records, strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_stages_write_what_the_functions_return(records, spec, tmp_path):
    paths = write(tmp_path, records)
    arguments = ["--records", *paths, "--out", tmp_path / "table2"]
    told = expecting(records)
    assert in_process("table", "--spec", json.dumps(spec | told), *arguments) == 0
    blocks = build(tidy(records), specified(spec), {})
    written = {
        suffix: (tmp_path / f"table2.{suffix}").read_text() for suffix in ("md", "csv", "tex")
    }
    assert written == {
        "md": markdown("Likelihood and asymmetry", blocks),
        "csv": flat(blocks).to_csv(index=False),
        "tex": latex(blocks),
    }
    arguments = ["--records", *paths, "--out", tmp_path / "metrics.csv"]
    assert in_process("gather_records", "--spec", json.dumps(told), *arguments) == 0
    frame = pd.read_csv(tmp_path / "metrics.csv")
    assert frame["value"].tolist() == tidy(records)["value"].tolist()
    assert set(QC) <= set(frame)


@pytest.mark.parametrize("sampler", [None, "pc"])
def test_tables_of_nothing_but_failures_say_why(spec, sampler, tmp_path):
    paths = []
    for method in LABELS:
        for seed in (0, 4):
            facts = {"dataset": "digits", "method": method, "seed": seed, "protocol": {"a": 1}}
            paths.append(tmp_path / f"{method}{seed}.json")
            failure.write(paths[-1:], f"{method} diverged", told(**facts))
    expected = expecting(json.loads(path.read_text()) for path in paths)
    spec |= {"sampler": sampler, **expected}
    reasons = [f"- {LABELS[m]}, seed {seed}: {m} diverged." for m in LABELS for seed in (0, 4)]
    arguments = ["--records", *paths, "--out", tmp_path / "table"]
    assert in_process("table", "--spec", json.dumps(spec), *arguments) == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line for line in lines if line in reasons] == reasons
    assert pd.read_csv(tmp_path / "table.csv")["seeds"].tolist() == [0, 0, 0]
    assert "QC$^+$" in (tmp_path / "table.tex").read_text()
    cost = expected | {key: spec[key] for key in ("datasets", "methods")}
    arguments = ["--records", *paths, "--table", tmp_path / "cost"]
    assert in_process("cost", "--spec", json.dumps(cost), *arguments) == 0
    lines = (tmp_path / "cost.md").read_text().splitlines()
    assert [line for line in lines if line in reasons] == reasons
    assert "- Nothing was measured." in lines and (tmp_path / "cost.html").exists()
    assert (tmp_path / "cost.csv").read_text() == "dataset,method\n"
    arguments = ["--records", *paths, "--out", tmp_path / "metrics.csv"]
    assert in_process("gather_records", "--spec", json.dumps(expected), *arguments) == 0
    assert pd.read_csv(tmp_path / "metrics.csv").empty


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


def paper(changes=()):
    """The paper tier, with other values at some key paths."""
    document = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    for path, value in changes:
        *parents, last = path.split(".")
        place = document
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return config.load(document, "paper.yaml")


def test_numbers_of_table_2_stand_beside_ours(records):
    spec = specification.table(paper(), "table2")
    rows = [{**row, "method": "qc_k16"} if row["method"] == "qc" else row for row in records]
    text = markdown("T", build(tidy(on("cifar10", rows)), spec, {}))
    name = "QC-NCSN++ (K = 16, batch 8)"
    assert paper_lines(text) == [
        ["U-NCSN++", "NLL (bits/dim) ↓", "3.46", "3.4 ± 0.3", "-0.1 ± 0.3"],
        ["U-NCSN++", "Asym ↓", "1.88e8", "(3.0 ± 1.5)e8", "(1.1 ± 1.5)e8"],
        ["U-NCSN++", "NAsym ↓", "1.90e-3", "0.0020 ± 0.0010", "(1 ± 10)e-4"],
        [name, "NLL (bits/dim) ↓", "3.38", "2.27 ± 0.18", "-1.11 ± 0.18"],
        [name, "Asym ↓", "3.49e7", "(3.0 ± 1.2)e7", "(-5 ± 12)e6"],
        [name, "NAsym ↓", "8.41e-4", "(5.0 ± 1.7)e-4", "(-3.4 ± 1.7)e-4"],
    ]
    assert text.count("beside the paper") == 1, "there is nothing to stand on other datasets"


def quality_rows(sampler, extractor, **metrics):
    quality = {**metrics, "precision": 0.5, "recall": 0.25}
    return on(
        "cifar10",
        [
            record("sample", "u", 0, {"nfe": 1000.0}, sampler=sampler, sampler_type=sampler),
            record("quality", "u", 0, quality, sampler=sampler, extractor=extractor),
        ],
    )


def test_numbers_of_table_3_stand_beside_the_same_sampler_only():
    frame = tidy(
        quality_rows("pc", "inception", fid=2.75, **{"is": 9.25})
        + quality_rows("ode", "inception", fid=3.0, **{"is": 9.25})
    )
    rows = paper_lines(markdown("T", build(frame, specification.table(paper(), "table3"), {})))
    assert [row[1:] for row in rows] == [
        ["NFE ↓", "1000", "1000", "0"],
        ["FID ↓", "2.50", "2.75", "0.250"],
        ["IS ↑", "9.58", "9.25", "-0.330"],
        ["Prec. ↑", "0.67", "0.500", "-0.170"],
        ["Rec. ↑", "0.60", "0.250", "-0.350"],
    ]
    text = markdown("T", build(frame, specification.table(paper(), "table4"), {}))
    assert "paper" not in text


def beside(experiment, table, dataset="cifar10"):
    """The methods of a table that the paper's numbers stand beside."""
    rows = specification.table(experiment, table).paper[dataset]
    return {method: row.kind for method, row in rows.items() if not row.differences}


@pytest.mark.parametrize("dataset", paper_rows.DATASETS)
def test_rows_of_the_paper_tier_are_those_of_the_paper(dataset):
    experiment = paper()
    assert beside(experiment, "table2", dataset) == {"c": "c", "u": "u", "qc_k16": "qc"}
    assert beside(experiment, "table3", dataset) == {"c": "c", "u": "u", "qc": "qc"}


EVERY2, EVERY3 = {"c", "u", "qc_k16"}, {"c", "u", "qc"}
ANTISYMMETRIC = {
    **{"estimator": "antisymmetric", "probes": 2, "noise_levels": 100, "samples": 10000},
    **{"batch_size": 250, "weights": "raw"},
}
# A change of the configuration, and the methods of Tables 2 and 3 that it makes others.
CHANGES = {
    "data of another source": ("datasets.cifar10.data.source", "cifar100", EVERY2, EVERY3),
    "a part of the data": ("datasets.cifar10.data.train", 1000, EVERY2, EVERY3),
    "the weight": ("methods.qc_k16.regulariser.weight", 1e-3, {"qc_k16"}, set()),
    "the weight in Table 3": ("methods.qc.regulariser.weight", 1e-3, set(), {"qc"}),
    "the number of probes": ("methods.qc_k16.regulariser.probes", 1, {"qc_k16"}, set()),
    "probes in Table 3": ("methods.qc.regulariser.probes", 16, set(), {"qc"}),
    "the estimator": ("methods.qc.regulariser.estimator", "antisymmetric", set(), {"qc"}),
    "the part of the batch": ("methods.qc.regulariser.batch_size", 64, set(), {"qc"}),
    "every second step": ("methods.qc.regulariser.every", 2, set(), {"qc"}),
    "the batch of QC": ("methods.qc_k16.training.batch_size", 128, {"qc_k16"}, set()),
    "the batch of all": ("defaults.training.batch_size", 64, EVERY2, EVERY3),
    "the precision of C": ("methods.c.training", {"precision": "bfloat16"}, {"c"}, {"c"}),
    "the training of U, and so the start": (
        "methods.u.training",
        {"lr": 1e-3},
        {"u", "qc_k16"},
        {"u", "qc"},
    ),
    "the width": ("defaults.network.nf", 64, EVERY2, EVERY3),
    "noise scales": ("defaults.sde.sigma_max", 40.0, EVERY2, EVERY3),
    "the SDE": (
        "defaults.sde",
        {"type": "vp", "beta_min": 0.1, "beta_max": 20.0},
        EVERY2,
        EVERY3,
    ),
    "the form of C": ("methods.c.residual", True, {"c"}, {"c"}),
    "steps": ("defaults.steps", 800000, EVERY2, EVERY3),
    "the start": (
        "datasets.cifar10.methods",
        {"u": {"checkpoints": [600000, 650000]}, "qc": {"init_from": {"step": 650000}}},
        set(),
        {"qc"},
    ),
    "the Inception network": ("defaults.quality.extractor", "efficientnet_lite0", set(), EVERY3),
    "the number of samples": ("defaults.quality.samples", 5000, set(), EVERY3),
    "steps of the sampler": ("defaults.samplers.pc.steps", 500, set(), EVERY3),
    "levels of Asym": ("defaults.asymmetry.noise_levels", 10, EVERY2, set()),
    "averaged weights for the NLL": ("defaults.likelihood.weights", "ema", EVERY2, set()),
    "processes": ("defaults.training.processes", 4, set(), set()),
    "micro-batches": ("defaults.training.micro_batch", 4, set(), set()),
    "the precision of sampling": (
        "defaults.samplers.pc.precision",
        "bfloat16",
        set(),
        EVERY3,
    ),
    "the precision of the NLL": ("defaults.likelihood.precision", "tf32", EVERY2, set()),
    "the precision of Asym": ("defaults.asymmetry.precision", "tf32", EVERY2, set()),
    "the estimator of Asym": ("defaults.asymmetry", ANTISYMMETRIC, set(), set()),
    "the derivatives of Asym": (
        "defaults.asymmetry",
        {**ANTISYMMETRIC, "derivatives": "finite_differences"},
        EVERY2,
        set(),
    ),
    "tolerance of the NLL": ("defaults.likelihood.rtol", 1e-4, set(), set()),
    "the label": ("methods.qc.label", "Other", set(), set()),
}


@pytest.mark.parametrize("path, value, table2, table3", CHANGES.values(), ids=CHANGES)
def test_a_method_that_is_another_does_not_stand_beside_the_paper(path, value, table2, table3):
    experiment = paper([(path, value)])
    assert set(beside(experiment, "table2")) == EVERY2 - table2
    assert set(beside(experiment, "table3")) == EVERY3 - table3


def test_a_model_of_another_sde_differs_by_its_type_alone():
    experiment = paper([("defaults.sde", {"type": "vp", "beta_min": 0.1, "beta_max": 20.0})])
    for method in EVERY3:
        row = paper_rows.counterpart(experiment, "cifar10", method, "pc")
        assert row.differences == ["sde.type is vp, not ve"]


def test_qc_with_the_batch_of_the_other_table_is_that_of_neither():
    swapped = [("tables.table2.methods", ["qc"]), ("tables.table3.methods", ["qc_k16"])]
    experiment = paper(swapped)
    assert beside(experiment, "table2") == beside(experiment, "table3") == {}


def test_dataset_is_known_by_its_source_and_methods_by_what_they_are():
    document = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    document["datasets"] = {"mine": document["datasets"]["cifar10"]}
    document["methods"] = {"qc": document["methods"]["u"], "u": document["methods"]["c"]}
    document["tables"] = {"table2": {"methods": ["u", "qc"]}}
    assert beside(config.load(document, "x"), "table2", "mine") == {"u": "c", "qc": "u"}


def test_an_imported_start_counts_as_the_papers():
    imported = {"checkpoint": "u.safetensors", "step": 600000}
    experiment = paper([("methods.qc.init_from", imported)])
    assert beside(experiment, "table3") == {"c": "c", "u": "u", "qc": "qc"}
    # An imported model is there as it is; but at another step it is another.
    for step, found in [(700000, []), (600000, ["steps is 600000, not 700000"])]:
        file = {"checkpoint": "u.safetensors", "step": step}
        row = {"steps": step, "checkpoints": [], "init_from": file, "training": {"lr": 1.0}}
        experiment = paper([("methods.other", {"label": "", "parameterisation": "score", **row})])
        assert paper_rows.counterpart(experiment, "cifar10", "other", "pc").differences == found


def test_another_network_is_one_difference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("class Net:\n    pass\n")
    row = {"label": "", "parameterisation": "score", "network": {"type": "mine:Net", "nf": 1}}
    experiment = paper([("methods.other", row)])
    found = paper_rows.counterpart(experiment, "cifar10", "other", "pc").differences
    assert found == ["network.type is mine:Net, not ncsnpp"]


def test_note_says_what_keeps_the_papers_numbers_away(records):
    experiment = paper(
        [("methods.u.training", {"batch_size": 64, "lr": 1e-3, "ema": 0.9, "eps": 1e-7})]
    )
    rows = [{**row, "method": "qc_k16"} if row["method"] == "qc" else row for row in records]
    (block, *_) = build(tidy(on("cifar10", rows)), specification.table(experiment, "table2"), {})
    assert block.paper == {}
    assert (
        "U-NCSN++: the numbers of the paper's U-NCSN++ are left out, as this row differs: "
        "training.batch_size is 64, not 128, training.lr is 0.001, not 0.0002, training.eps is "
        "1e-07, not 1e-08, and 1 more." in block.notes
    )
    (note,) = [n for n in block.notes if n.startswith("QC-NCSN++ (K = 16, batch 8): the numbers")]
    assert "this row differs: u at step 600000: training.batch_size is 64, not 128" in note


def test_notes_say_how_biased_distances_and_scores_are(spec):
    spec |= {"sampler": "pc", "methods": {"digits": [["u", "U-Net"], ["c", "C"]]}}
    records = [
        record(
            "quality",
            method,
            seed,
            {"fd": fd, "fd_infinity": infinity, "kd": 3, "cs": 7, "coverage": 0.5},
            sampler=name,
        )
        for name, shift in (("pc", 0.0), ("ode", 100.0))
        for method, seed, fd, infinity in (
            ("u", 0, 40.0 + shift, 34.0),
            ("u", 1, 50.0, 42.0 - shift),
            ("c", 0, 60.0, 51.5 - shift),
        )
    ]
    (block,) = build(tidy(records), specified(spec), {})
    assert block.metrics == ["fd", "kd", "cs", "coverage"]
    size = ", by an estimated 7 (U-Net), 8.50 (C)"
    rest = "; `fd_infinity` in `metrics.csv` is without this bias, and noisier."
    assert f"FD of 8 samples is too large on average{size}{rest}" in block.notes
    assert any(note.startswith("CS of 8 samples is too small on average") for note in block.notes)
    below = "Coverage of 8 samples is below 1 even where distributions are equal"
    assert any(note.startswith(below) for note in block.notes)
    assert not any("KD" in note for note in block.notes)
    likelihoods = build(tidy(records), specified({**spec, "sampler": None}), {})[0].notes
    assert not any("on average" in note for note in likelihoods)
