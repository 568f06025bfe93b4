"""The tutorial and the examples do what they say."""

import doctest
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT

import qcsbm

TUTORIAL = (ROOT / "docs/audit.md").read_text()
# The line before a block that is a file names it.
BLOCK = re.compile(r"(?:^`([\w./]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# This checkout's, installed or not.
QCSBM = 'qcsbm() { python -m qcsbm "$@"; }'


def run(command, folder):
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{QCSBM}\n{command}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr[-3000:]}"
    return result.stdout


@pytest.mark.slow
def test_every_block_of_the_tutorial_works_in_an_empty_folder(tmp_path):
    pytest.importorskip("diffusers")
    printed = ""
    for name, kind, text in BLOCK.findall(TUTORIAL):
        if kind == "sh":
            printed += run(text, tmp_path)
        elif kind == "python":
            (tmp_path / name).write_text(text)
    assert printed.count("Audit of first: epsilon field on samples of 1 x 8 x 8") == 2
    assert "B against A: 11 same." in printed
    report = qcsbm.Report.from_json(tmp_path / "audits/first/audit.json")
    assert [round(level.sigma, 1) for level in report.levels] == [0.1, 1.0, 10.0]
    assert set(report.levels[0].nasym_by_kind) == {"score", "x0"}
    names = {f"audit.{suffix}" for suffix in ("json", "png", "svg", "pdf")}
    assert {path.name for path in (tmp_path / "audits/first").iterdir()} == names
    assert (tmp_path / "audit.png").is_file()


def test_the_examples_of_guidance_work():
    result = doctest.testfile(str(ROOT / "docs/guidance.md"), module_relative=False)
    assert result.attempted > 0 and result.failed == 0


def test_every_public_function_has_an_example_that_works():
    modules = {getattr(qcsbm, name).__module__ for name in ("audit", "audit_guidance", "compare")}
    for name in sorted(modules):
        result = doctest.testmod(import_module(name))
        assert result.attempted > 0 and result.failed == 0
