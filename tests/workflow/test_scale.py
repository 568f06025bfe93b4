"""Thousands of jobs: what is submitted to a cluster, and what one more job costs Snakemake."""

import pstats
import re
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from conftest import ROOT, snakemake
from test_workflow import jobs

CI = ("--configfile", ROOT / "config/ci.yaml")
MODELS = [(data, method) for data in ("digits", "patches") for method in ("c", "u", "qc", "qcplus")]


def submissions(output):
    """Of a dry run: the groups, and the number of jobs of no group by rule."""
    groups = re.findall(r"^Group job (\S+)", output, re.MULTILINE)
    single = Counter(re.findall(r"^rule (\w+):", output, re.MULTILINE))
    return groups, single


@pytest.mark.parametrize("shards", [1, 3])
def test_slurm_profile_submits_every_job_by_itself(shards, tmp_path):
    options = ("--set-scatter", f"shards={shards}", "--workflow-profile", ROOT / "profiles/slurm")
    output = snakemake("-n", *CI, *options, cwd=tmp_path).stdout
    groups, single = submissions(output)
    assert groups == []
    assert single == Counter({**jobs(output), "total": 0}) + Counter()
    assert single["train"] == 10
    for stage in ("sample", "sample_features", "likelihood", "asymmetry"):
        assert single[stage] == shards * len(MODELS)


def test_shard_names_no_more_files_than_it_reads(tmp_path):
    """Looking up what makes every input of every job is most of what a DAG takes."""
    output = snakemake("-n", *CI, cwd=tmp_path).stdout
    inputs = re.findall(r"^rule (\w+):\n    input: (.*)", output, re.MULTILINE)
    limits = {"sample": 2, "likelihood": 3, "asymmetry": 3, "sample_features": 3}
    for rule, files in inputs:
        assert rule not in limits or len(files.split(", ")) <= limits[rule], rule
    assert limits.keys() <= dict(inputs).keys()


# What is imported before does not stand in the profile, and is the same for any number of jobs.
PROFILED = """
import cProfile, sys
from snakemake import cli, report
sys.argv[0] = "snakemake"
profile = cProfile.Profile()
try:
    profile.runcall(cli.main)
finally:
    profile.dump_stats("profile")
"""


def calls_of_ours(folder, seeds):
    """Number of jobs of a dry run, and of calls of this repository's functions that it made."""
    command = [sys.executable, "-c", PROFILED, "-n", "--snakefile", ROOT / "Snakefile"]
    command += ["--configfile", "digits.yaml", "--config", f"seeds={seeds}"]
    run = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    ours = (str(ROOT / "qcsbm"), str(ROOT / "workflow"))
    statistics = pstats.Stats(str(folder / "profile")).stats
    calls = sum(row[1] for (file, *_), row in statistics.items() if file.startswith(ours))
    return jobs(run.stdout)["total"], calls


def test_calls_per_job_are_few_and_do_not_grow(tmp_path):
    document = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    del document["datasets"]["patches"]
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(document))
    sizes = [calls_of_ours(tmp_path, seeds) for seeds in ([0], [0, 1], [0, 1, 2, 3])]
    (few, a), (more, b), (most, c) = sizes
    first, second = (b - a) / (more - few), (c - b) / (most - more)
    assert second <= 25, sizes
    # Whatever a job looks through all models for would take more calls, the more models there are.
    assert second < 1.05 * first, sizes
