"""The tutorial and the examples do what they say."""

import doctest
import re
import runpy
import shlex
import sys
from importlib import import_module

import pytest
import torch
from conftest import ROOT, in_process

import qcsbm

TUTORIAL = (ROOT / "docs/audit.md").read_text()
# The line before a block that is a file names it.
BLOCK = re.compile(r"(?:^`([\w./]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run(text, capsys):
    """The lines of a block for the shell, without a process for each, and what they print."""
    for line in text.strip().splitlines():
        command, _, expected = line.partition(" || test $? -eq ")
        program, *words = shlex.split(command)
        if program == "qcsbm":
            status = in_process(*words)
            assert status == 0 or str(status) == expected, line
        else:
            assert program == "python" and not expected
            with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", words)
                runpy.run_path(words[0], run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.slow
def test_every_block_of_the_tutorial_works_in_an_empty_folder(tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    printed = ""
    for name, kind, text in BLOCK.findall(TUTORIAL):
        if kind == "sh":
            printed += run(text, capsys)
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
