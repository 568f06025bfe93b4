"""Measure the spread of the ci tier over seeds and write it to `ci_spread.csv` beside this file.

Run it after a change that is meant to move the numbers, and commit the file with that change:

    python tests/regression/measure_spread.py

The jobs are those of the workflow, but one process runs all jobs of a seed: most of a small job's
time goes into starting Python.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import yaml

from qcsbm import cli

SEEDS = range(10)
ROOT = Path(__file__).parents[2]


def measure(seed: int) -> pd.DataFrame:
    """The numbers of the ci tier for one seed."""
    config = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    config["seeds"] = [seed]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("ci.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        command += ["results/ci/metrics.csv", "--dry-run", "--printshellcmds"]
        plan = subprocess.run(
            [*command, "--configfile", "ci.yaml"], capture_output=True, text=True, check=True
        )
        # A dry run prints every job once, after the jobs that it depends on.
        for job in re.findall(r"python -P -m qcsbm (.*) 2> ", plan.stdout):
            if cli.main(shlex.split(job)):
                raise RuntimeError(f"seed {seed}: this job failed: qcsbm {job}")
        metrics = pd.read_csv("results/ci/metrics.csv")
        os.chdir(ROOT)
    return metrics


def main() -> None:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        metrics = pd.concat(pool.map(measure, SEEDS))
    values = metrics.groupby(["dataset", "method", "metric"])["value"]
    spread = values.agg(mean="mean", sd="std", seeds="count")
    spread.to_csv(ROOT / "tests/regression/ci_spread.csv", float_format="%.8g")


if __name__ == "__main__":
    main()
