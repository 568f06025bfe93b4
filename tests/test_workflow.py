"""The workflow: what a target needs, what a bad configuration says, and the ci tier as a whole."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from scipy import stats

ROOT = Path(__file__).parents[1]
SPREAD = ROOT / "tests/regression/ci_spread.csv"


def snakemake(*arguments, cwd, timeout=600):
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", *arguments]
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


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
    experiments = 3 * 4 + 1 * 4
    assert counts["sample"] == counts["quality"] == experiments
    assert counts["likelihood"] == counts["asymmetry"] == experiments
    # Every U is trained once, in two segments, for itself and for both models that start from it.
    assert counts["train"] == experiments + 4
    assert counts["table"] == 2 and counts["metrics"] == 1


def test_table_2_needs_no_samples(project):
    counts = jobs(snakemake("-n", "results/table2.md", cwd=project).stdout)
    assert set(counts) == {"prepare", "train", "likelihood", "asymmetry", "table", "total"}


def test_one_run_needs_only_itself(project):
    target = "results/runs/digits/qc/seed1/likelihood.json"
    counts = jobs(snakemake("-n", target, cwd=project).stdout)
    assert counts == {"prepare": 1, "train": 2, "likelihood": 1, "total": 4}


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
        ("datasets.digits.data.source", "mnist", "datasets.digits.data: found {'source': 'mnist'"),
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


@pytest.fixture(scope="module")
def ci(tmp_path_factory):
    """The results of the ci tier, run as a DAG from an empty folder."""
    folder = tmp_path_factory.mktemp("ci")
    result = snakemake("--cores", "2", "--configfile", ROOT / "config/ci.yaml", "all", cwd=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder / "results/ci"


@pytest.mark.slow
def test_ci_tier_is_complete(ci):
    metrics = pd.read_csv(ci / "metrics.csv")
    assert set(metrics["metric"]) >= {"nll", "asym", "nasym", "nfe", "fd", "cs", "precision"}
    assert len(metrics.groupby(["dataset", "method", "seed"])) == 8
    assert metrics["value"].notna().all()
    for table in ("table2", "table3"):
        assert "—" not in (ci / f"{table}.md").read_text()
        assert (ci / f"{table}.tex").exists() and (ci / f"{table}.csv").exists()
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
    result = snakemake("-n", "--configfile", ROOT / "config/ci.yaml", "all", cwd=ci.parent.parent)
    assert "Nothing to be done" in result.stdout + result.stderr
    record = json.loads((ci / "runs/digits/qc/seed0/step60.json").read_text())
    assert set(record["inputs"]) == {"train.npy", "step40.safetensors"}
    assert record["cost"]["started_at_step"] == 40
