"""The mistakes that are made on purpose, and a project whose tests see some of them."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FOLDER = Path(__file__).parent / "mutation"

SOURCE = '''
"""A docstring: 1 + 1."""
LIMIT = 3


def add(a: int = 1, b: float = 0.5) -> float:
    """Another: a < b."""
    if a < b or not a:
        raise ValueError(f"{a} is less than {b + 1}")
    logging.info("adding %d", a + 1)
    store[a] = total(a, b, start=LIMIT).round()
    return x[1:b] / 2
'''
EXPECTED = """\
: 3 -> 4
add: 1 -> 2
add: 0.5 -> 1.0
add: a < b or not a -> (a < b and (not a))
add: a < b or not a -> False
add: a < b or not a -> True
add: a < b -> (a <= b)
add: a < b -> (a >= b)
add: not a -> (a)
add: raise ValueError(f"{a} is less than {b + 1}") -> pass
add: store[a] = total(a, b, start=LIMIT).round() -> pass
add: total(a, b, start=LIMIT).round() -> (total(a, b, start=LIMIT))
add: total(a, b, start=LIMIT) -> (total(b, a, start=LIMIT))
add: start=LIMIT -> nothing
add: x[1:b] / 2 -> (x[1:b] * 2)
add: x[1:b] / 2 -> None
add: 1 -> 2
add: 1 -> nothing
add: b -> nothing
add: 2 -> 3"""

RULES = """
def split(name):
    return name + "test"


rule measure:
    input:
        data=f"{DATA}/test.npy",
        # A comment.
        model=lambda wildcards: final(wildcards, 0),
    output:
        "{seed}.json",
    shell:
        "measure 1 2"
"""
EXPECTED_OF_RULES = """\
measure.input: data=f"{DATA}/test.npy", -> nothing
measure.input: f"{DATA}/test.npy" -> f'{DATA}/train.npy'
measure.input: model=lambda wildcards: final(wildcards, 0), -> nothing
measure.input: final(wildcards, 0) -> (final(0, wildcards))
measure.input: 0 -> 1
measure.output: "{seed}.json" -> '{seed}.json_'
split: name + "test" -> (name - 'test')
split: name + "test" -> None
split: "test" -> 'train'"""

PACKAGE = """
def mean(x, y):
    assert x < 5
    return (x + y) / 2
"""
TESTS = """
import subprocess, sys
from qcsbm.sums import mean

def test_mean():
    assert mean(2, 2) == 2
    code = "from qcsbm.sums import mean; print(mean(1, 1))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1.0\\n"
"""


@pytest.fixture
def mutants(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from mutants import mutants

    return mutants


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [("a.py", SOURCE, EXPECTED), ("a.smk", RULES, EXPECTED_OF_RULES)],
)
def test_mistakes_are_made_where_behaviour_is(name, source, expected, mutants, tmp_path):
    (tmp_path / name).write_text(source)
    found = mutants(tmp_path, name)
    said = [str(mutant).removeprefix(f"{name} ") for mutant in found]
    assert sorted(said) == sorted(expected.splitlines())
    for mutant in found:
        changed = mutant.apply(source.encode()).decode()
        assert changed != source
        if name == "a.py":
            ast.parse(changed)


@pytest.mark.slow
def test_a_mistake_is_seen_by_the_tests_of_its_line(tmp_path):
    for name in ("mutants.py", "run.py", "equivalent.txt"):
        (tmp_path / "tests/mutation").mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / name, tmp_path / "tests/mutation")
    (tmp_path / "qcsbm").mkdir()
    (tmp_path / "qcsbm/__init__.py").write_text("")
    (tmp_path / "qcsbm/sums.py").write_text(PACKAGE)
    (tmp_path / "qcsbm/unused.py").write_text("def never():\n    return 1\n")
    (tmp_path / "tests/test_sums.py").write_text(TESTS)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    command = [sys.executable, "tests/mutation/run.py", "--per-file", "99", "--jobs", "2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    missed = {line for line in lines if line.startswith(("survived", "no test"))}
    of_sums = "qcsbm/sums.py mean"
    assert missed == {
        f"survived: line 3 of {of_sums}: x < 5 -> (x <= 5)",
        f"survived: line 3 of {of_sums}: 5 -> 6",
        "no test: line 2 of qcsbm/unused.py never: 1 -> 2",
        "no test: line 2 of qcsbm/unused.py never: 1 -> None",
    }
    assert "| `qcsbm/sums.py` | 7 | 7 | 5 | 2 |" in lines
    # Everything was drawn: the share has no error of sampling.
    assert "seen: 55.6% ± 0.0%" in lines


@pytest.mark.parametrize("path", sorted((ROOT / "workflow/rules").iterdir()), ids=lambda p: p.name)
def test_mistakes_are_made_in_every_file_of_rules(path, mutants):
    assert mutants(ROOT, path.relative_to(ROOT).as_posix())
