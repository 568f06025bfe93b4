"""Claims on constructed numbers whose verdicts are known."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from qcsbm.experiment import specification
from qcsbm.experiment.config import load, read
from qcsbm.quality.metrics import OF_SAMPLES
from qcsbm.report import claims
from qcsbm.report.claims import FAILS, HOLDS, UNDECIDED, judge
from qcsbm.report.intervals import t_test
from qcsbm.schema.base import ConfigError
from qcsbm.schema.specifications import ClaimsSpec, Compared, ComparedDataset, Family
from qcsbm.stages.claims import training_seconds

ROOT = Path(__file__).parents[2]
COMPARISONS = [
    Compared(kind="conservative", method="c", control="u", subject="C against U"),
    Compared(kind="regularised", method="qc", control="u", subject="QC against U"),
]
DIGITS = ComparedDataset(dataset="digits", label="Digits", comparisons=COMPARISONS)
SPEC = ClaimsSpec(version=1, datasets=[DIGITS], samplers=["pc"], alone=[])

# What U has, and what C and QC have added to it, or multiplied it by, on each of three seeds.
U = {"nll": 3.0, "asym": 1e5, "nasym": 1e-2, "fd": 50.0, "cs": 7.0, "precision": 0.5, "recall": 0.9}
C = {"nll": [0.10, 0.11, 0.12], "fd": [0.9, 1.4, 1.02]}
QC = {
    "nll": [0.020, 0.021, 0.022],
    "asym": [0.70, 0.71, 0.69],
    "nasym": [0.9, 1.2, 1.0],
    "fd": [0.96, 0.95, 0.94],
    "cs": [0.10, 0.11, 0.12],
    "precision": [-0.01, -0.011, -0.012],
    "recall": [0.0, 0.0, 0.0],
}


@pytest.fixture
def metrics():
    rows = []
    for metric, base in U.items():
        sampler = "pc" if metric in OF_SAMPLES else None
        for seed in range(3):
            # Seeds differ by much more than methods do; pairing takes that out.
            value = base * (1 + seed)
            for method, differences in (("u", {}), ("c", C), ("qc", QC)):
                ratio = metric in ("asym", "nasym", "fd")
                effect = differences.get(metric, [float(ratio)] * 3)[seed]
                changed = value * effect if ratio else value + effect
                rows.append(("digits", method, seed, metric, changed, sampler))
    columns = ["dataset", "method", "seed", "metric", "value", "sampler"]
    # The order of rows means nothing.
    return pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=0)


def verdicts(judgements):
    return {(j.subject, j.measure): j.verdict for j in judgements}


def test_verdicts_are_those_that_the_numbers_were_made_for(metrics):
    assert verdicts(claims.about_models(metrics, SPEC)) == {
        ("C against U", "NLL (bits/dim)"): HOLDS,
        ("C against U", "FD, PC"): UNDECIDED,
        ("QC against U", "Asym"): HOLDS,
        ("QC against U", "NAsym"): UNDECIDED,
        ("QC against U", "NLL (bits/dim)"): FAILS,
        ("QC against U", "FD, PC"): HOLDS,
        ("QC against U", "CS, PC"): HOLDS,
        ("QC against U", "Prec., PC"): FAILS,
        ("QC against U", "Rec., PC"): UNDECIDED,
    }


def judgement(metrics, subject, measure):
    (found,) = [
        j
        for j in claims.about_models(metrics, SPEC)
        if (j.subject, j.measure) == (subject, measure)
    ]
    return found


def test_effect_and_interval_are_those_of_paired_differences(metrics):
    nll = judgement(metrics, "QC against U", "NLL (bits/dim)")
    assert nll.effect == pytest.approx(0.021) and (nll.n, nll.scale) == (3, "difference")
    # Standard deviation 1e-3; Student's quantile at 0.975 with two degrees of freedom is 4.3027.
    half_width = 4.302653 * 1e-3 / 3**0.5
    assert nll.low == pytest.approx(0.021 - half_width, rel=1e-6)
    assert nll.high == pytest.approx(0.021 + half_width, rel=1e-6)


def test_effects_on_asymmetry_and_distance_are_ratios_with_the_interval_of_their_logarithms(
    metrics,
):
    for measure, ratios in (("Asym", QC["asym"]), ("NAsym", QC["nasym"]), ("FD, PC", QC["fd"])):
        found = judgement(metrics, "QC against U", measure)
        logarithms = np.log(ratios)
        mean, half_width = logarithms.mean(), 4.302653 * logarithms.std(ddof=1) / 3**0.5
        expected = np.exp([mean, mean - half_width, mean + half_width])
        assert (found.effect, found.low, found.high) == pytest.approx(expected, rel=1e-6)
        assert (found.n, found.scale) == (3, "ratio")
    assert judgement(metrics, "QC against U", "NAsym").why == "the interval contains 1"


def test_a_value_that_is_not_positive_leaves_its_ratio_undecided(metrics):
    zero = (metrics["metric"] == "fd") & (metrics["method"] == "u") & (metrics["seed"] == 1)
    found = judgement(
        metrics.assign(value=metrics["value"].mask(zero, 0.0)), "C against U", "FD, PC"
    )
    assert (found.effect, found.low, found.n, found.verdict) == (None, None, 3, UNDECIDED)
    assert found.why == "a value that is not positive has no ratio"


def test_an_interval_beyond_all_floats_can_be_written():
    found = judge("", "", "", "", [0.0, 500.0], +1, "ratio")
    assert found.low == 0 and np.isfinite(found.high)


@pytest.mark.parametrize("n", [3, 4, 5])
@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_intervals_of_ratios_cover_the_truth_where_those_of_differences_do_not(n, spread):
    # Values vary over seeds by a factor that both models share; the ratio varies by a fifth.
    rng = np.random.default_rng(0)
    repeats, truth = 4000, 0.7
    control = rng.lognormal(0.0, spread, (repeats, n))
    ratio = truth * rng.lognormal(0.0, 0.2, (repeats, n))
    by_ratio = [judge("", "", "", "", row, -1, "ratio") for row in np.log(ratio)]
    by_difference = [judge("", "", "", "", row, -1) for row in control * (ratio - 1)]
    difference = np.exp(spread**2 / 2) * (truth * np.exp(0.2**2 / 2) - 1)
    covered, missing = (
        np.mean([j.low < expected < j.high for j in judged])
        for judged, expected in ((by_ratio, truth), (by_difference, difference))
    )
    # Four standard errors of a share of 0.95.
    tolerance = 4 * (0.95 * 0.05 / repeats) ** 0.5
    assert covered == pytest.approx(0.95, abs=tolerance) and missing < 0.95 - tolerance
    power = [np.mean([j.verdict == HOLDS for j in judged]) for judged in (by_ratio, by_difference)]
    assert power[0] > power[1]


@pytest.mark.parametrize("columns", [["sampler"], []])
def test_where_nothing_was_measured_every_claim_says_so(metrics, columns):
    # Without any record of samples the file of numbers has no column for their sampler.
    nothing = metrics.iloc[:0].drop(columns=[] if columns else ["sampler"])
    judgements = claims.about_models(nothing, SPEC)
    assert {(j.verdict, j.why, j.n) for j in judgements} == {(UNDECIDED, "not measured", 0)}
    expected = {"NLL (bits/dim)", "Asym", "NAsym", "FID or FD, PC", "IS or CS, PC"}
    assert {j.measure for j in judgements} == expected | {"Prec., PC", "Rec., PC"}
    rest = metrics[~metrics["metric"].isin(OF_SAMPLES)]
    rest = rest if columns else rest.drop(columns="sampler")
    why = {j.measure: j.why for j in claims.about_models(rest, SPEC)}
    assert why["FID or FD, PC"] == "not measured" and why["Asym"] == ""


def test_one_seed_is_undecided_however_large_the_effect(metrics):
    judgements = claims.about_models(metrics[metrics["seed"] == 2], SPEC)
    assert {j.verdict for j in judgements} == {UNDECIDED}
    assert {j.why for j in judgements} == {"one seed"}
    assert all(j.low is None and j.high is None and j.n == 1 for j in judgements)
    effects = {(j.subject, j.measure): j.effect for j in judgements}
    assert effects["C against U", "NLL (bits/dim)"] == pytest.approx(0.12)


def test_only_seeds_of_both_are_paired_and_what_is_missing_is_said(metrics):
    rest = metrics[~((metrics["method"] == "qc") & (metrics["seed"] == 0))]
    counts = {(j.subject, j.measure): j.n for j in claims.about_models(rest, SPEC)}
    assert counts["QC against U", "Asym"] == 2 and counts["C against U", "NLL (bits/dim)"] == 3
    rest = metrics[metrics["metric"] != "asym"]
    (missing,) = [j for j in claims.about_models(rest, SPEC) if j.measure == "Asym"]
    assert (missing.effect, missing.n, missing.verdict) == (None, 0, UNDECIDED)
    assert missing.why == "not measured"


def test_numbers_of_another_sampler_or_dataset_do_not_enter(metrics):
    other = metrics.assign(value=-(metrics["value"] ** 2))
    quality = metrics["metric"].isin(OF_SAMPLES)
    more = pd.concat(
        [metrics, other.assign(dataset="patches"), other[quality].assign(sampler="ode")]
    )
    assert claims.about_models(more, SPEC) == claims.about_models(metrics, SPEC)


def test_a_sampler_goes_by_its_name(metrics):
    renamed = metrics.assign(sampler=metrics["sampler"].replace("pc", "heun35"))
    found = claims.about_models(renamed, SPEC.model_copy(update={"samplers": ["heun35"]}))
    measures = {judgement.measure for judgement in found}
    assert {"FD, heun35", "CS, heun35", "Prec., heun35", "Rec., heun35", "Asym"} < measures
    expected = [
        replace(judgement, measure=judgement.measure.replace("PC", "heun35"))
        for judgement in claims.about_models(metrics, SPEC)
    ]
    assert found == expected


@pytest.mark.parametrize(
    "differences, sign, verdict",
    [
        ([1.0, 1.0], +1, HOLDS),
        ([1.0, 1.0], -1, FAILS),
        ([0.0, 0.0], +1, UNDECIDED),
        # A mean of 1 with a standard error of 0.079: |t| = 12.706 is the quantile for n = 2.
        ([1 - 0.078, 1 + 0.078], +1, HOLDS),
        ([1 - 0.079, 1 + 0.079], +1, UNDECIDED),
        ([1e9], +1, UNDECIDED),
        ([], +1, UNDECIDED),
    ],
)
def test_verdict_follows_the_whole_interval(differences, sign, verdict):
    assert judge("", "", "", "", differences, sign).verdict == verdict


def test_sampling_steps_hold_and_fail_by_step_size():
    rows = []
    for epsilon, h, conservative, rotational in (
        (1e-3, 0.0125, 3, 7),
        (2e-3, 0.0125, 20, 238),
        (2e-3, 0.005, 59, 6),
        (1e-3, 0.005, 8, 5),
    ):
        for seed in range(3):
            rows.append(("conservative", epsilon, h, seed, conservative + seed % 2))
            rows.append(("non-conservative", epsilon, h, seed, rotational))
    starts = pd.DataFrame(rows, columns=["field", "epsilon", "h", "seed", "steps"])
    judged = {j.subject: (j.verdict, j.n) for j in claims.about_steps(starts, 0.0125)}
    assert judged == {
        "ε = 0.001, h = 0.0125, the paper's": (HOLDS, 3),
        "ε = 0.002, h = 0.0125, the paper's": (HOLDS, 3),
        "ε = 0.002, h = 0.005": (FAILS, 3),
    }


def test_tying_is_judged_by_the_seeds_that_converged_and_by_the_counterexample():
    outcomes = pd.DataFrame(
        {
            "tied": [False] * 4 + [True],
            "untying": [1.0, 1.2, 1.1, 0.0, 0.0],
            "route": ["parallel", "merged", "parallel", "none", "parallel"],
        }
    )
    untied, refuted = claims.about_tying(outcomes, 2.08)
    assert (untied.verdict, untied.n) == (HOLDS, 3)
    assert untied.effect == pytest.approx(1.1)
    assert untied.subject == "the 3 of 4 seeds that became conservative"
    assert refuted.verdict == FAILS and refuted.effect == 2.08


def test_nothing_converged_leaves_the_claim_on_tying_undecided():
    outcomes = pd.DataFrame({"tied": [False], "untying": [1.0], "route": ["none"]})
    assert claims.about_tying(outcomes, 2.08)[0].verdict == UNDECIDED


def test_the_papers_own_tables_are_undecided_with_their_effects():
    cifar10 = ComparedDataset(dataset="cifar10", label="CIFAR-10", comparisons=[])
    spec = SPEC.model_copy(update={"datasets": [cifar10, DIGITS]})
    judgements = claims.of_the_paper(spec)
    assert {j.verdict for j in judgements} == {UNDECIDED}
    assert {j.topic for j in judgements} == {"CIFAR-10: the paper's own numbers"}
    effects = {(j.subject, j.measure): j.effect for j in judgements}
    assert effects["C-NCSN++ against U-NCSN++", "NLL (bits/dim)"] == pytest.approx(5.91 - 3.46)
    assert effects["QC-NCSN++ against U-NCSN++", "FID, PC"] == pytest.approx(2.48 / 2.50)
    assert effects["QC-NCSN++ against U-NCSN++", "NAsym"] == pytest.approx(8.41e-4 / 1.90e-3)


def test_every_regularised_or_conservative_model_is_compared_with_one_trained_alike():
    spec = specification.claims(read(ROOT / "config/paper.yaml"))
    pairs = {(c.method, c.control) for c in spec.datasets[0].comparisons}
    assert pairs == {("c", "u"), ("qc_k16", "u_b8"), ("qc", "u"), ("qcplus", "u")}
    assert spec.alone == [] and spec.samplers == ["ode", "pc"]


# In the second family C is compared with QC, of which the paper says nothing.
BETWEEN = Compared(kind="other", method="c", control="qc", subject="C against QC")
FAMILIES = [
    Family(name="first", comparisons=COMPARISONS, metrics=["nll", "fd"], samplers=["pc"]),
    Family(name="second", comparisons=[BETWEEN], metrics=["nll", "recall"], samplers=["pc"]),
]
FAMILY_SPEC = SPEC.model_copy(
    update={
        "datasets": [DIGITS.model_copy(update={"comparisons": [], "families": FAMILIES})],
    }
)


def test_in_a_family_verdicts_are_by_holms_p_and_by_nothing_else(metrics):
    judgements = claims.about_models(metrics, FAMILY_SPEC)
    alone = {(j.subject, j.measure): j for j in claims.about_models(metrics, SPEC)}
    first = [j for j in judgements if j.family == "first"]
    assert [(j.subject, j.measure) for j in first] == [
        (subject, measure)
        for measure in ("NLL (bits/dim)", "FD, PC")
        for subject in ("C against U", "QC against U")
    ]
    # p is 0.0027, 0.00075, 0.65 and 0.014.
    p = [j.p for j in first]
    assert [j.adjusted_p for j in first] == pytest.approx([3 * p[0], 4 * p[1], p[2], 2 * p[3]])
    for judgement in first:
        same = alone[judgement.subject, judgement.measure]
        for key in ("claim", "effect", "low", "high", "n", "p", "verdict"):
            assert getattr(judgement, key) == getattr(same, key)
        assert judgement.detectable > same.detectable
    second = [j for j in judgements if j.family == "second"]
    assert [(j.claim, j.verdict, j.n) for j in second] == [
        (claims.BETTER, FAILS, 3),  # C has the larger NLL
        (claims.BETTER, UNDECIDED, 3),
    ]


def test_what_is_decided_alone_may_be_undecided_in_a_family(metrics):
    family = FAMILIES[0].model_copy(update={"metrics": ["fd", *["cs", "precision", "recall"] * 3]})
    dataset = DIGITS.model_copy(update={"comparisons": [], "families": [family]})
    spec = SPEC.model_copy(update={"datasets": [dataset]})
    found = judgement_of(claims.about_models(metrics, spec), "QC against U", "FD, PC")
    # Of 20 tests the six on CS and precision have smaller p, and those without effect larger ones.
    assert found.p == pytest.approx(0.0137, rel=0.01) and found.low < found.high < 1
    assert found.adjusted_p == pytest.approx(14 * found.p)
    assert (found.verdict, found.why) == (UNDECIDED, "after Holm's correction")
    _, *sections = claims.sections([found], spec)
    row = dict(zip(sections[0].columns, sections[0].rows[0], strict=True))
    assert row["Verdict"] == "undecided (after Holm's correction)"
    assert row["p"] == "0.014" and row["p (Holm)"] == "0.19"
    assert row["Detectable"] == f"× {found.detectable:.2f}" and found.detectable > 1.05


def judgement_of(judgements, subject, measure):
    return next(j for j in judgements if (j.subject, j.measure) == (subject, measure))


def test_comparisons_that_were_not_measured_count_in_holms_correction(metrics):
    rest = metrics[metrics["metric"] != "fd"]
    judgements = claims.about_models(rest, FAMILY_SPEC)
    nll = judgement_of(judgements, "QC against U", "NLL (bits/dim)")
    assert nll.adjusted_p == pytest.approx(4 * nll.p)
    missing = judgement_of(judgements, "QC against U", "FID or FD, PC")
    assert (missing.adjusted_p, missing.verdict) == (None, UNDECIDED)


def test_the_error_of_a_family_is_what_it_says_where_only_one_of_ten_effects_is_there():
    rng = np.random.default_rng(0)
    repeats, m, n = 1000, 10, 5
    # Methods of one seed have their control in common.
    values = rng.normal(size=(repeats, m, n)) + rng.normal(size=(repeats, 1, n))
    values[:, 0] += 20.0
    wrong, found = 0, 0
    for study in values:
        judged = claims.corrected([judge("", "", "", "", row, +1, m=m) for row in study], "family")
        wrong += any(j.verdict != UNDECIDED for j in judged[1:])
        found += judged[0].verdict == HOLDS
    # Four standard errors of a share of 0.05.
    assert wrong / repeats < 0.05 + 4 * (0.05 * 0.95 / repeats) ** 0.5
    assert found > 0.99 * repeats
    alone = np.mean([min(map(t_test, study[1:])) < 0.05 for study in values])
    assert alone > 0.15


def test_time_of_training_stands_beside_comparisons(metrics, tmp_path):
    paths = []
    for seed, faster in ((0, 1.0), (1, 3.0)):
        for method, stop, cpu_s in (("u", 80, 8.0), ("u", 120, 4.0), ("qc", 120, 12.0)):
            record = {
                **{"stage": "train", "dataset": "digits", "method": method, "seed": seed},
                **{"specification": {}, "metrics": [], "protocol": {"stop": stop}},
                "cost": {"cpu_s": cpu_s / faster, "started_at_step": 0 if stop == 80 else 80},
            }
            paths.append(tmp_path / f"{method}{stop}.{seed}.json")
            paths[-1].write_text(json.dumps(record))
    failed = {"stage": "failure", "specification": {}, "metrics": [], "protocol": {}}
    paths.append(tmp_path / "failed.json")
    paths[-1].write_text(json.dumps(failed))
    chains = {"u": [("u", 0, 80), ("u", 80, 120)], "qc": [("u", 0, 80), ("qc", 80, 120)], "c": []}
    dataset = FAMILY_SPEC.datasets[0].model_copy(update={"chains": chains})
    spec = FAMILY_SPEC.model_copy(update={"datasets": [dataset]})
    seconds = training_seconds(spec, paths)
    judgements = claims.about_models(metrics, spec, seconds)
    # 20 and 12 seconds of one seed, and a third of the other.
    nll = judgement_of(judgements, "QC against U", "NLL (bits/dim)")
    assert nll.seconds == pytest.approx((20 * 2 / 3, 12 * 2 / 3))
    assert judgement_of(judgements, "C against U", "NLL (bits/dim)").seconds is None
    rows = [row for section in claims.sections(judgements, spec)[1:] for row in section.rows]
    assert [row[-2] for row in rows if row[0] == "QC against U"] == ["13 / 8"] * 2


def test_families_are_those_that_the_experiment_file_declares():
    document = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    pairs = [["qcplus", "qc"], ["qc", "u"], ["c", "u"]]
    document["comparisons"] = {
        "likelihood": {"pairs": pairs, "metrics": ["nll"]},
        "samples": {"pairs": pairs[:1], "metrics": ["fd", "nfe"], "samplers": ["ode"]},
    }
    experiment = load(document, "x.yaml")
    spec = specification.claims(experiment)
    for dataset in spec.datasets:
        assert dataset.comparisons == [] and spec.alone == []
        likelihood, samples = dataset.families
        kinds = [(c.method, c.control, c.kind) for c in likelihood.comparisons]
        assert kinds == [
            ("qcplus", "qc", "other"),
            ("qc", "u", "regularised"),
            ("c", "u", "conservative"),
        ]
        assert (samples.metrics, samples.samplers) == (["fd", "nfe"], ["ode"])
        assert dataset.chains.keys() == {"qcplus", "qc", "u", "c"}
        assert dataset.chains["u"] == experiment.chain(dataset.dataset, "u")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"pairs": [["qc", "v"]]}, "found ['qc', 'v'], expected two of the methods c, u,"),
        ({"pairs": [["u", "u"]]}, "found ['u', 'u'], expected two of the methods c, u,"),
        ({"pairs": [["c", "u"], ["c", "u"]]}, "pairs: found [['c', 'u'], ['c', 'u']], expected"),
        ({"metrics": ["fid"]}, "metrics: found 'fid', expected some of nll, asym, nasym"),
        ({"metrics": ["fd", "fd"]}, "metrics: found ['fd', 'fd'], expected each once"),
        ({"samplers": ["heun"]}, "samplers: found 'heun', expected some of the tables' samplers"),
        ({"samplers": []}, "samplers: found [] with the metrics fd, expected some where"),
        ({"metrics": ["nll"]}, "samplers: found ['pc'] with the metrics nll, expected some where"),
    ],
)
def test_comparisons_that_nobody_can_make_are_refused(change, sentence):
    document = yaml.safe_load((ROOT / "config/quick.yaml").read_text())
    family = {"pairs": [["c", "u"]], "metrics": ["fd"], "samplers": ["pc"]}
    document["comparisons"] = {"all": family | change}
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load(document, "x.yaml")


def test_page_and_document_say_the_same(metrics):
    spec = SPEC.model_copy(update={"alone": ["C on Patches"]})
    judgements = claims.about_models(metrics, spec)
    summary, *tables_of_claims = claims.sections(judgements, spec)
    counts = {row[0]: row[1:] for row in summary.rows}
    assert counts[claims.GAINS_QUALITY] == ["2", "1", "1"]
    assert counts[claims.LOWERS] == ["1", "0", "1"]
    assert "C on Patches: no model was trained alike to compare with." in summary.notes
    by_heading = {section.heading: section.rows for section in tables_of_claims}
    assert len(by_heading) == 4
    asym, _ = by_heading[f"Digits: {claims.LOWERS}"]
    assert asym == [
        "QC against U",
        "Asym",
        "× 0.700",
        "× 0.676 to × 0.725",
        "3",
        "0.00053",
        "—",
        HOLDS,
    ]
    document = json.loads(json.dumps(claims.document(judgements, spec)))
    assert [row["verdict"] for row in document["claims"]] == [j.verdict for j in judgements]
