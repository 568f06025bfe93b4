"""Every number of a tiny experiment, from its files once more by the plain code of `plain`.

Nothing in it is where a mistake could hide: seeds are not 0, averaged weights not the raw ones, the
score is far from zero from the first step on, last batches are not full, and methods differ in
their reference, weights and estimators.
"""

import json

import numpy as np
import pandas as pd
import plain
import pytest
import yaml
from conftest import snakemake

from qcsbm.experiment import config

pytestmark = pytest.mark.slow

DOCUMENT = """
tier: tiny
seeds: [3, 5]
defaults:
  steps: 90
  sde: {type: ve, sigma_min: 0.02, sigma_max: 3.0}
  network:
    type: ncsnpp
    nf: 8
    ch_mult: [1, 2]
    num_res_blocks: 1
    attn_resolutions: [4]
    fourier_scale: 1.0
    init_scale: 1.0
  training: {batch_size: 32, lr: 1e-2, warmup: 4, ema: 0.9, dequantise: true}
  quality: {samples: 20, extractor: classifier}
  likelihood: {samples: 5, rtol: 0.02, atol: 0.01, batch_size: 2}
  asymmetry: {estimator: antisymmetric, probes: 3, noise_levels: 3, samples: 5, batch_size: 2}
datasets:
  digits:
    label: Digits
    data: {source: digits, test: 50}
    classifier: {epochs: 2}
methods:
  u:
    label: U
    parameterisation: score
    checkpoints: [70]
    samplers: {pc6: &pc6 {type: pc, steps: 6, snr: 0.2, corrector_steps: 2, batch_size: 8}}
  qc:
    label: QC
    samplers: {pc6: *pc6}
    parameterisation: score
    init_from: {method: u, step: 70}
    regulariser: {weight: 0.01, estimator: trace, batch_size: 8}
    quality: {reference: test, neighbours: 2}
    likelihood: {weights: raw}
    asymmetry: {estimator: exact, probes: null}
  u_vp:
    label: U under VP
    parameterisation: score
    sde: {type: vp, beta_min: 0.4, beta_max: 5.0}
    samplers: {heun4: {type: heun, steps: 4, batch_size: 8}}
tables:
  table2: {methods: [u, qc, u_vp]}
  table3: {methods: [qc, u], sampler: pc6}
  table4: {methods: [u_vp], sampler: heun4}
"""
SAMPLERS = {"u": "pc6", "qc": "pc6", "u_vp": "heun4"}
METHODS = tuple(SAMPLERS)
# The second seed is there for one table of samples alone.
RUNS = [*((method, 3) for method in METHODS), ("u_vp", 5)]
# Those of the Fréchet distance, of recall and of coverage are simulated elsewhere.
ERRORS_LEFT_OUT = ("fd", "recall", "coverage")
# The stages compute in float32.
ROUNDING = 1e-3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(DOCUMENT)
    # A third more jobs each, other samplers are left to test_stages.py and test_inputs.py.
    files = ["table2.md", "table3.md", "metrics.csv", "tables/cost.md"]
    for names, more in ((files, ["--config", "seeds=[3]"]), (["table4.md"], [])):
        targets = [f"results/tiny/{name}" for name in names]
        options = ["--cores", "2", "--configfile", "tiny.yaml", *more]
        result = snakemake(*targets, *options, cwd=folder)
        assert result.returncode == 0, result.stderr[-4000:]
    return folder / "results/tiny"


@pytest.fixture(scope="module")
def cells():
    experiment = config.load(yaml.safe_load(DOCUMENT), "tiny.yaml")
    return {method: experiment.cells["digits", method] for method in METHODS}


@pytest.fixture(scope="module")
def data(results):
    names = ["train", "test", "train_labels", "test_labels"]
    return {name: np.load(results / f"data/digits/{name}.npy") for name in names}


@pytest.fixture(scope="module")
def expected(results, cells, data):
    """(value, standard error, n) by method, seed, sampler or None, and metric."""
    classifier = plain.tensors(results / "data/digits/classifier.safetensors")
    found = {}
    for method, seed in RUNS:
        cell = cells[method]
        real, _ = plain.classify(classifier, data[cell.quality.reference])
        run = results / f"runs/digits/{method}/seed{seed}"
        scores = {
            weights: plain.Score(cell, plain.tensors(run / "step90.safetensors", prefix))
            for weights, prefix in (("ema", "ema.network."), ("raw", "model.network."))
        }
        if seed == 3:
            asym = plain.asymmetry(scores[cell.asymmetry.weights], data["test"], cell, seed)
            asym, nasym = asym.mean(0)
            score = scores[cell.likelihood.weights]
            nll, nll_nfe = plain.likelihood(score, data["test"], cell, seed)
            found[method, seed, None] = {
                "asym": plain.mean(asym),
                "nasym": plain.mean(nasym),
                "nll": plain.mean(nll),
                "nll_nfe": plain.mean(nll_nfe),
            }
        for sampler in cell.samplers:
            n = cell.quality.samples
            images, nfe = plain.samples(scores[cell.quality.weights], cell, sampler, seed)
            files = np.load(run / sampler / "samples.npy")
            plain.assert_same_images(files, images[:n])
            fake, logits = plain.classify(classifier, files)
            distance = plain.frechet_distance(fake, real.mean(0), np.cov(real.T))
            found[method, seed, sampler] = {
                "nfe": plain.mean(nfe[:n]),
                "fd": (distance, None, n),
                "kd": plain.kernel_distance(fake, real),
                "cs": plain.class_score(logits),
                **plain.prdc(real, fake, cell.quality.neighbours),
            }
    return found


def metrics(path):
    """(value, standard error, n) by name in the record ``path``."""
    record = json.loads(path.read_text())
    return {m["name"]: (m["value"], m["stderr"], m["n"]) for m in record["metrics"]}


def assert_agree(found, expected):
    """Other metrics may stand beside those of ``expected``."""
    for name, (value, error, n) in expected.items():
        assert found[name][0] == pytest.approx(value, rel=ROUNDING), name
        assert found[name][2] == n, name
        if name not in ERRORS_LEFT_OUT:
            assert found[name][1] == (error and pytest.approx(error, rel=ROUNDING)), name


def test_nothing_is_degenerate(expected):
    for of_run in expected.values():
        values = {name: value for name, (value, _, _) in of_run.items()}
        assert len(set(values.values())) == len(values)
        if "precision" in values:
            assert all(0 < values[name] < 1 for name in ("precision", "recall", "coverage"))


def test_records_hold_the_recomputed_numbers(results, expected):
    for (method, seed, sampler), numbers in expected.items():
        run = results / f"runs/digits/{method}/seed{seed}"
        stages = ["sample", "quality"] if sampler else ["likelihood", "asymmetry"]
        found = {}
        for stage in stages:
            found |= metrics(run / (sampler or "") / f"{stage}.json")
        assert_agree(found, numbers)


def test_metrics_csv_has_a_row_for_each_number_under_its_labels(results, expected):
    frame = pd.read_csv(results / "metrics.csv")
    frame["sampler"] = frame["sampler"].astype(object).where(frame["sampler"].notna(), None)
    assert not frame.duplicated(["dataset", "method", "seed", "sampler", "metric"]).any()
    assert set(frame["dataset"]) == {"digits"}
    for name, kind in (("pc6", "pc"), ("heun4", "heun")):
        assert frame["sampler_type"].eq(kind).equals(frame["sampler"].eq(name))
    rows = {}
    for row in frame.itertuples():
        error = None if np.isnan(row.stderr) else row.stderr
        of_run = rows.setdefault((row.method, row.seed, row.sampler), {})
        of_run[row.metric] = row.value, error, row.n
    assert rows.keys() == {run for run in expected if run[1] == 3}
    for run, found in rows.items():
        assert_agree(found, expected[run])


def test_tables_are_means_over_seeds_with_their_errors(results, expected):
    title = (results / "table3.md").read_text().partition("\n")[0]
    assert title == "# Sample quality, pc6 sampler"
    for table, sampler in (("table2", None), ("table3", "pc6"), ("table4", "heun4")):
        frame = pd.read_csv(results / f"{table}.csv").set_index("method")
        shown = [method for method in METHODS if sampler in (None, SAMPLERS[method])]
        seeds = (3, 5) if table == "table4" else (3,)
        assert sorted(frame.index) == sorted(shown) and (frame["seeds"] == len(seeds)).all()
        for method in shown:
            for metric in expected[method, 3, sampler].keys() - {"nll_nfe"}:
                values = [expected[method, seed, sampler][metric][0] for seed in seeds]
                mean = np.mean(values)
                assert frame.loc[method, metric] == pytest.approx(mean, rel=ROUNDING), metric
                if len(seeds) == 1:
                    assert np.isnan(frame.loc[method, f"{metric}_stderr"])
                    continue
                _, error, _ = plain.mean(values)
                # The difference of two seeds is as exact as they are.
                rounding = ROUNDING * abs(mean)
                assert frame.loc[method, f"{metric}_stderr"] == pytest.approx(error, abs=rounding)


def test_classifier_has_learnt_from_the_training_split(results, data):
    weights = plain.train_classifier(data["train"], data["train_labels"], epochs=2)
    found = plain.tensors(results / "data/digits/classifier.safetensors")
    for name, tensor in weights.items():
        np.testing.assert_allclose(found[name], tensor, atol=1e-3)
    right = plain.classify(found, data["test"])[1].argmax(1) == data["test_labels"]
    share = right.mean()
    error = (share * (1 - share) / len(right)) ** 0.5
    record = metrics(results / "data/digits/classifier.json")
    assert_agree(record, {"accuracy": (share, error, len(right))})


def test_costs_are_those_of_the_work_that_was_done(results, expected):
    frame = pd.read_csv(results / "tables/cost.csv").set_index("method")
    assert sorted(frame.index) == sorted(METHODS)
    for method in METHODS:
        row = frame.loc[method]
        calls = expected[method, 3, None]["nll_nfe"][0]
        sampler, other = SAMPLERS[method], {"pc6", "heun4"} - {SAMPLERS[method]}
        assert row[f"{sampler}_calls"] == {"pc6": 6 * (1 + 2), "heun4": 7}[sampler]
        assert np.isnan(row[f"{other.pop()}_calls"])
        assert row["likelihood_calls"] == pytest.approx(calls)
        stops = {"u": (70, 90)}.get(method, (90,))
        run = results / f"runs/digits/{method}/seed3"
        records = [json.loads((run / f"step{stop}.json").read_text()) for stop in stops]
        seconds = sum(record["cost"]["wall_s"] for record in records)
        steps = {"qc": 20}.get(method, 90)
        assert row["steps_per_s"] == pytest.approx(steps / seconds)
        hours = [column for column in frame if column.endswith("_hours")]
        assert set(hours) == {"train_hours", "pc6_hours", "heun4_hours", "likelihood_hours"}
        had = ["train_hours", f"{sampler}_hours", "likelihood_hours", "memory_gb"]
        assert all(row[column] > 0 for column in had)
