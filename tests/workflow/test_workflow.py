"""The workflow: what a target needs, what a bad configuration says, and the ci tier as a whole."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import score_model, snakemake
from scipy import stats

from qcsbm.score.models import build
from qcsbm.training import checkpoint

ROOT = Path(__file__).parents[2]
SPREAD = ROOT / "tests/regression/ci_spread.csv"


def jobs(output):
    """The job counts of a dry run, by rule."""
    table = re.search(r"^Job stats:\n(.*?)\n\n", output, re.MULTILINE | re.DOTALL)[1]
    return {name: int(n) for name, n in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


@pytest.fixture
def project(tmp_path):
    """An empty folder with the configurations, as a fresh clone has them."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    return tmp_path


def test_quick_tier_is_the_default_and_complete(project):
    counts = jobs(snakemake("-n", cwd=project).stdout)
    experiments = 2 * 3 * 4
    assert counts["sample"] == counts["quality"] == experiments
    assert counts["likelihood"] == counts["asymmetry"] == experiments
    # Every U is trained once, in two segments, for itself and for both models that start from it.
    assert counts["train"] == experiments + 6
    assert counts["table"] == counts["figures"] == 2
    assert counts["gather_records"] == counts["cost"] == 1


def test_table_2_needs_no_samples(project):
    counts = jobs(snakemake("-n", "results/table2.md", cwd=project).stdout)
    gathered = {"gather_likelihood", "gather_asymmetry"}
    assert (
        set(counts) == {"prepare", "train", "likelihood", "asymmetry", "table", "total"} | gathered
    )


def test_a_picture_is_drawn_with_all_others_of_its_dataset(project):
    target = "results/figures/patches/asymmetry.png"
    counts = jobs(snakemake("-n", target, cwd=project).stdout)
    assert counts["figures"] == counts["prepare"] == 1
    assert counts["quality"] == counts["likelihood"] == counts["asymmetry"] == 12


def test_shards_are_split_and_gathered(project):
    counts = jobs(snakemake("-n", "--set-scatter", "shards=3", cwd=project).stdout)
    experiments = 2 * 3 * 4
    for stage in ("sample", "likelihood", "asymmetry", "sample_features"):
        assert counts[stage] == 3 * experiments
    for stage in ("gather_samples", "gather_likelihood", "gather_asymmetry", "quality"):
        assert counts[stage] == experiments


def test_one_run_needs_only_itself(project):
    target = "results/runs/digits/qc/seed1/likelihood.json"
    counts = jobs(snakemake("-n", target, cwd=project).stdout)
    expected = {"prepare": 1, "train": 2, "likelihood": 1, "gather_likelihood": 1}
    assert counts == {**expected, "total": 5}


@pytest.mark.parametrize(
    "path, value, sentence",
    [
        ("methods.qc.regulariser.weight", -1, "methods.qc.regulariser.weight: found -1, expected"),
        ("seeds", [], "seeds: found [], expected"),
        (
            "methods.qc.init_from.step",
            7,
            "methods.qc.init_from.step (dataset digits): found 7, expected one of the checkpoints",
        ),
        ("datasets.digits.data.source", "mnist", "datasets.digits.data.source: found 'mnist'"),
    ],
)
def test_bad_configuration_stops_before_any_job(project, path, value, sentence):
    config = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place[key]
    place[last] = value
    (project / "bad.yaml").write_text(yaml.safe_dump(config))
    result = snakemake("--cores", "1", "--configfile", "bad.yaml", cwd=project)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert f"bad.yaml: {sentence}" in output and "Traceback" not in output
    assert not (project / "results").exists()


def test_a_dataset_is_fetched_only_when_that_is_said(project):
    fetches = {f"fetch_{source}": 1 for source in ("cifar10", "cifar100", "svhn")}
    counts = jobs(snakemake("-n", *fetches, cwd=project).stdout)
    assert counts == {**fetches, "total": 3}
    options = ("--configfile", ROOT / "config/paper.yaml")
    counts = jobs(snakemake("-n", *options, cwd=project).stdout)
    assert counts["prepare"] == 4 and not any(name.startswith("fetch") for name in counts)


@pytest.fixture
def imported(project):
    """A project whose U comes from a file, which is at step 60 as all its trainings end there."""
    config = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    config["methods"]["u"] = {
        "label": "U",
        "parameterisation": "score",
        "init_from": {"checkpoint": "u/checkpoint.safetensors", "step": 60},
    }
    config["methods"]["qc"] |= {"init_from": {"method": "u", "step": 60}, "steps": 70}
    config["methods"]["qcplus"]["init_from"] = {
        "checkpoint": "u/checkpoint.safetensors",
        "step": 50,
    }
    (project / "imported.yaml").write_text(yaml.safe_dump(config))
    return project


def write_checkpoint(folder, step):
    digits = yaml.safe_load((ROOT / "config/ci.yaml").read_text())["datasets"]["digits"]
    model = build((1, 8, 8), score_model("score", False, digits["network"], digits["sde"]), seed=5)
    weights = model.state_dict()
    copy = {name: tensor.clone() for name, tensor in weights.items()}
    path = folder / "u/checkpoint.safetensors"
    checkpoint.save(path, checkpoint.TrainingState(step, weights, copy, {}, {}))


def test_missing_imported_checkpoint_is_named(imported):
    target = "results/ci/runs/digits/u/seed0/likelihood.json"
    result = snakemake("-n", target, "--configfile", "imported.yaml", cwd=imported)
    assert result.returncode != 0
    assert "MissingInputException in rule likelihood" in result.stdout
    assert "u/checkpoint.safetensors" in result.stdout


def test_imported_checkpoint_is_evaluated_and_trained_on_from(imported):
    write_checkpoint(imported, 60)
    methods = ("u", "qc", "qcplus")
    targets = [f"results/ci/runs/digits/{method}/seed0/likelihood.json" for method in methods]
    output = snakemake("-n", *targets, "--configfile", "imported.yaml", cwd=imported).stdout
    assert jobs(output)["likelihood"] == 3
    trained = re.findall(r"^rule train:\n.*\n    output: \S+/digits/(\w+)/", output, re.MULTILINE)
    assert sorted(trained) == ["qc", "qcplus"]


@pytest.mark.slow
def test_step_of_an_imported_checkpoint_is_checked_when_it_is_used(imported):
    write_checkpoint(imported, 60)
    run = "results/ci/runs/digits"
    targets = [f"{run}/u/seed0/likelihood.json", f"{run}/qc/seed0/step70.safetensors"]
    options = ["--cores", "1", "--configfile", "imported.yaml"]
    assert snakemake(*targets, *options, cwd=imported).returncode == 0
    record = json.loads((imported / run / "qc/seed0/step70.json").read_text())
    assert record["cost"]["started_at_step"] == 60
    assert set(record["inputs"]) == {"train.npy", "checkpoint.safetensors"}
    assert snakemake(f"{run}/qcplus/seed0/step60.safetensors", *options, cwd=imported).returncode
    log = (imported / "results/ci/logs/digits/qcplus/seed0/train60.log").read_text()
    assert log.strip().splitlines()[-1] == (
        "qcsbm train: u/checkpoint.safetensors: found a checkpoint at step 60, expected step 50"
    )


@pytest.mark.slow
def test_ci_tier_is_complete(ci):
    metrics = pd.read_csv(ci / "metrics.csv")
    assert set(metrics["metric"]) >= {"nll", "asym", "nasym", "nfe", "fd", "cs", "precision"}
    assert len(metrics.groupby(["dataset", "method", "seed"])) == 8
    assert metrics["value"].notna().all()
    for table in ("table2", "table3"):
        assert "—" not in (ci / f"{table}.md").read_text()
        assert (ci / f"{table}.tex").exists() and (ci / f"{table}.csv").exists()
    costs = pd.read_csv(ci / "tables/cost.csv").set_index(["dataset", "method"])
    assert len(costs) == 8 and costs.notna().all(axis=None) and (costs > 0).all(axis=None)
    assert (costs["pc_calls"] == 20).all()
    for log in ci.rglob("logs/**/*.log"):
        assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_ci_tier_agrees_with_its_committed_spread(ci):
    """Every value lies in the prediction interval of one more seed, at 0.1 % over all of them."""
    spread = pd.read_csv(SPREAD)
    metrics = pd.read_csv(ci / "metrics.csv")
    both = metrics.merge(spread, on=["dataset", "method", "metric"], how="right")
    assert both["value"].notna().all()
    level = 1 - 0.001 / len(both) / 2
    width = stats.t.ppf(level, both["seeds"] - 1) * both["sd"] * (1 + 1 / both["seeds"]) ** 0.5
    # Values that are the same for all seeds may still differ by rounding.
    outside = both[(both["value"] - both["mean"]).abs() > width + 1e-6 * both["mean"].abs()]
    assert outside.empty, outside[["dataset", "method", "metric", "value", "mean", "sd"]]


@pytest.mark.slow
def test_energy_model_is_conservative_and_the_others_are_not(ci):
    nasym = pd.read_csv(ci / "metrics.csv").query("metric == 'nasym'").set_index("method")["value"]
    assert nasym["c"].max() < 1e-9 < 1e-4 < nasym.drop("c").min()


@pytest.mark.slow
def test_second_run_has_nothing_to_do_and_records_name_their_inputs(ci):
    result = snakemake("all", "-n", "--configfile", ROOT / "config/ci.yaml", cwd=ci.parent.parent)
    assert "Nothing to be done" in result.stdout + result.stderr
    record = json.loads((ci / "runs/digits/qc/seed0/step60.json").read_text())
    assert set(record["inputs"]) == {"train.npy", "step40.safetensors"}
    assert record["cost"]["started_at_step"] == 40
