"""What is printed where the encoding of the terminal lacks characters."""

import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from qcsbm.runtime import terminal

CI = ROOT / "config/ci.yaml"
# Without the last two, Python would take the locale C for UTF-8.
C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ASCII = {"PYTHONIOENCODING": "ascii"}
UTF_8 = {"PYTHONIOENCODING": "utf-8"}


def qcsbm(*arguments, cwd, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "qcsbm", *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


@pytest.mark.parametrize("variables, dash", [(C, "-"), (ASCII, "-"), (UTF_8, "–")])
def test_status_of_a_training_that_has_not_begun(variables, dash, tmp_path):
    document = yaml.safe_load(CI.read_text())
    document["datasets"]["digits"]["label"] = "digits ± λ²"
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(document))
    status, printed, said = qcsbm("status", "--configfile", "x.yaml", cwd=tmp_path, **variables)
    assert (status, said) == (0, "")
    assert f" {dash}/60 " in printed
    # A superscript must not end as a digit: 10² is not 102.
    assert ("digits ± λ²" if variables is UTF_8 else "digits +- lambda^2") in printed


def test_sentences_are_plain_too(tmp_path):
    document = yaml.safe_load(CI.read_text())
    document["methods"]["u"]["init_from"] = {"method": "qc", "step": 1}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(document))
    status, _, said = qcsbm("status", "--configfile", "x.yaml", cwd=tmp_path, **C)
    assert status == 2
    assert "found the cycle qc -> u -> qc, expected" in said


def test_bytes_that_are_no_text_are_printed_as_escapes(tmp_path):
    for variables in (C, UTF_8):
        arguments = ["status", "--configfile", os.fsdecode(b"\xff.yaml")]
        status, _, said = qcsbm(*arguments, cwd=tmp_path, **variables)
        assert status == 2
        assert said == (
            "qcsbm status: \\udcff.yaml: found no such file, expected an experiment file\n"
        )


def test_plain_text_is_ascii():
    assert terminal.plain("κ² ≤ 4·‖A‖² ☃") == r"kappa^2 <= 4*||A||^2 \u2603"
