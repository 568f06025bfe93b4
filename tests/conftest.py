"""The workflow as tests run it, and its ci tier, which is run once for all of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qcsbm import cli

# As in every job: results do not depend on the number of cores, and cores are not fought for.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


def snakemake(*arguments, cwd, timeout=1800):
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", *arguments]
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


def in_process(*arguments):
    """Exit status of `qcsbm` with ``arguments``, run here with this process's arithmetic."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_fix_arithmetic", lambda: None)
        try:
            return cli.main([str(word) for word in arguments])
        except SystemExit as end:
            return end.code


@pytest.fixture(scope="session")
def ci(tmp_path_factory):
    """The results of the ci tier, run as a DAG from an empty folder."""
    folder = tmp_path_factory.mktemp("ci")
    result = snakemake("all", "--cores", "2", "--configfile", ROOT / "config/ci.yaml", cwd=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder / "results/ci"
