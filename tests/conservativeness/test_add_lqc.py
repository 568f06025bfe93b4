"""The tutorial does what it says: its blocks, in their order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

TUTORIAL = (ROOT / "docs/add-lqc.md").read_text()
# The line before a block that is a file names it.
BLOCK = re.compile(r"(?:^`([\w./]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"DSM (\S+)   σ² Asym (\S+)   NAsym (\S+)")
ROW = re.compile(r"^\| [\d.]+ \| (\S+) \| (\S+) \| (\S+) \|$", re.MULTILINE)


def run(command, folder, **options):
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, **options
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr[-3000:]}"
    return result.stdout


@pytest.mark.slow
def test_every_block_of_the_tutorial_works_and_prints_the_figures_of_its_table(tmp_path):
    printed = []
    for name, kind, text in BLOCK.findall(TUTORIAL):
        if kind == "sh":
            output = run(["bash", "-euo", "pipefail", "-c", text], tmp_path)
            printed += [tuple(map(float, found)) for found in PRINTED.findall(output)]
        elif kind == "diff":
            run(["git", "apply", "--unsafe-paths", "-"], tmp_path, input=text)
        else:
            (tmp_path / name).write_text(text)
    rows = [tuple(map(float, row)) for row in ROW.findall(TUTORIAL)]
    assert len(rows) == 3 and len(printed) == 6
    # Other machines round differently, and a training enlarges that. With other seeds
    # these figures stayed within a factor of two, and those with L_QC below those without.
    for found, stated in zip(printed, rows, strict=False):
        ratios = [a / b for a, b in zip(found, stated, strict=True)]
        assert ratios[0] == pytest.approx(1, rel=0.05) and all(1 / 3 < r < 3 for r in ratios)
    (_, plain, plain_ratio), *regularised = printed
    for dsm, asym, nasym in regularised:
        assert dsm < 0.6 and asym < plain and nasym < plain_ratio
