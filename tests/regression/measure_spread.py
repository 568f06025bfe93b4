"""Measure the spread of the ci tier over seeds and write it to `ci_spread.csv` beside this file.

Run it after a change that is meant to move the numbers, and commit the file with that change:

    python tests/regression/measure_spread.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import yaml

SEEDS = list(range(10))
ROOT = Path(__file__).parents[2]


def main() -> None:
    config = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    config["seeds"] = SEEDS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seeds.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
        command += ["--cores", "all", "--configfile", path, "results/ci/metrics.csv"]
        subprocess.run([str(word) for word in command], cwd=folder, check=True)
        metrics = pd.read_csv(Path(folder) / "results/ci/metrics.csv")
    values = metrics.groupby(["dataset", "method", "metric"])["value"]
    spread = values.agg(mean="mean", sd="std", seeds="count")
    spread.to_csv(ROOT / "tests/regression/ci_spread.csv", float_format="%.8g")


if __name__ == "__main__":
    main()
