"""The tutorial does what it says: its blocks, in their order, in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

TUTORIAL = (ROOT / "docs/extending.md").read_text()
# The line before a block that is a file names it.
BLOCK = re.compile(r"(?:^`([\w./]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run(command, folder, **options):
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]),
        "PYTHONPATH": str(folder),
    }
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, **options
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr[-3000:]}"
    return result.stdout


@pytest.mark.slow
def test_every_block_of_the_tutorial_works_in_an_empty_folder(tmp_path):
    for name in ("qcsbm", "workflow"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    shutil.copy(ROOT / "environment.yml", tmp_path)
    kinds = []
    for name, kind, text in BLOCK.findall(TUTORIAL):
        kinds.append(kind)
        if kind == "sh":
            run(["bash", "-euo", "pipefail", "-c", text], tmp_path)
        elif kind == "diff":
            run(["git", "apply", "--unsafe-paths", "-"], tmp_path, input=text)
        else:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    assert kinds.count("sh") >= 6

    tables = {name: (tmp_path / f"results/mine/{name}.md").read_text() for name in TABLES}
    for name, expected in TABLES.items():
        assert all(text in tables[name] for text in expected), tables[name]


TABLES = {
    "table2": ["| U ", "| QC "],
    "table3": ["Coverage ↑", "KD ↓"],
}


def test_the_tutorial_has_a_section_for_everything_that_can_be_added():
    sections = re.findall("^## (.*)$", TUTORIAL, re.MULTILINE)
    assert sections == ["A dataset", "A method", "A network", "An SDE", "A sampler", "A metric"]
