"""The tutorial does what it says: its blocks, in their order, in an empty folder."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
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


def python(capsys, script, *words):
    """The figures that a script prints, in this process."""
    capsys.readouterr()
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *words])
        runpy.run_path(script, run_name="__main__")
    return figures(capsys.readouterr().out)


def figures(printed):
    (found,) = PRINTED.findall(printed)
    return tuple(map(float, found))


@pytest.mark.slow
def test_every_block_of_the_tutorial_works_and_prints_the_figures_of_its_table(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    printed = {}
    for name, kind, text in BLOCK.findall(TUTORIAL):
        if kind == "diff":
            run(["git", "apply", "--unsafe-paths", "-"], tmp_path, input=text)
            shortened(Path(text.splitlines()[1].removeprefix("+++ b/")))
        elif kind == "python":
            Path(name).write_text(text)
        for line in text.strip().splitlines() if kind == "sh" else ():
            program, *words = line.split()
            if program == "python":
                printed[line] = python(capsys, *words)
            else:
                output = run([program, *words], tmp_path)
                printed |= {line: figures(output)} if program == "torchrun" else {}
    rows = [tuple(map(float, row)) for row in ROW.findall(TUTORIAL)]
    in_full = [found for line, found in printed.items() if "train.py" in line]
    assert len(rows) == len(in_full) == 3 and len(printed) == 6
    # Other machines round differently, and a training enlarges that. With other seeds
    # these figures stayed within a factor of two, and those with L_QC below those without.
    for found, stated in zip(in_full, rows, strict=True):
        ratios = [a / b for a, b in zip(found, stated, strict=True)]
        assert ratios[0] == pytest.approx(1, rel=0.05) and all(1 / 3 < r < 3 for r in ratios)
    (_, plain, plain_ratio), *regularised = in_full
    for dsm, asym, nasym in regularised:
        assert dsm < 0.6 and asym < plain and nasym < plain_ratio
    # After a few steps, a compiled network and its differences are where the plain one is.
    shortened(Path("train.py"))
    expected = python(capsys, "train.py", "--weight", "0.1")
    assert printed["python compiled.py --weight 0.1"] == pytest.approx(expected, rel=0.02)
    for line, (dsm, _, _) in printed.items():
        assert dsm == pytest.approx(expected[0], rel=0.1) or "train.py" in line


def shortened(script):
    """The variants show that they work: one of the trainings in full is enough."""
    text = script.read_text()
    assert "range(1000)" in text
    script.write_text(text.replace("range(1000)", "range(60)"))
