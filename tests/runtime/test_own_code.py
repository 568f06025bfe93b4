"""Classes from files in the working directory: which files count, and what is imported of them."""

import hashlib
import os
import sys
from pathlib import Path

import pytest

from qcsbm.runtime import own_code
from qcsbm.runtime.errors import BadInput, MissingFile


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory that is not on Python's path."""
    monkeypatch.chdir(tmp_path)
    before = dict(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def put(**modules):
    """Write modules; two underscores in a name stand for a slash."""
    for name, text in modules.items():
        path = Path(name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def digest_of(*paths):
    """As the tool ``sha256sum`` has it for one file, and for what it prints of several."""
    digests = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    if len(paths) == 1:
        return digests[0]
    lines = [f"{digest}  {path}\n" for digest, path in zip(digests, paths, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_module_is_one_file_and_nothing_beside_it_counts_or_can_be_imported(here):
    put(mine="class A:\n    x = 1\n", beside="class B:\n    pass\n")
    assert [str(path) for path in own_code.files("mine:A")] == ["mine.py"]
    assert own_code.sha256("mine:A") == digest_of("mine.py")
    path, finders = list(sys.path), list(sys.meta_path)
    assert own_code.load("mine:A").x == 1
    assert (sys.path, sys.meta_path) == (path, finders)
    put(mine="import beside\n\nclass A:\n    pass\n")
    with pytest.raises(BadInput) as refusal:
        own_code.load("mine:A")
    sentence = "mine:A: found ModuleNotFoundError: No module named 'beside' (mine.py, line 1), "
    assert str(refusal.value) == sentence + "expected a module that can be imported"


@pytest.mark.parametrize("init", ["", None])
def test_of_a_package_all_modules_count_and_can_be_imported(init, here):
    put(
        pack__net="from .parts.layers import X\nfrom pack.more import Y\n\n"
        "class A(X, Y):\n    z = 3\n",
        pack__parts__layers="class X:\n    x = 1\n",
        pack__more="class Y:\n    y = 2\n",
    )
    if init is not None:
        Path("pack/__init__.py").write_text(init)
    Path("pack/notes.txt").write_text("no module")
    (here / "pack/.hidden").mkdir()
    Path("pack/.hidden/copy.py").write_text("1 +")
    expected = ["pack/more.py", "pack/net.py", "pack/parts/layers.py"]
    expected = [*(["pack/__init__.py"] if init is not None else []), *expected]
    assert [path.as_posix() for path in own_code.files("pack.net:A")] == expected
    first = own_code.sha256("pack.net:A")
    assert first == digest_of(*expected)
    found = own_code.load("pack.net:A")
    assert (found.x, found.y, found.z) == (1, 2, 3)
    put(pack__parts__layers="class X:\n    x = 4\n")
    assert own_code.sha256("pack.net:A") != first
    assert own_code.load("pack.net:A").x == 4


def test_a_package_may_have_the_class_itself(here):
    put(pack__net="class A:\n    x = 1\n")
    Path("pack/__init__.py").write_text("from .net import A\n")
    assert [path.as_posix() for path in own_code.files("pack:A")] == [
        "pack/__init__.py",
        "pack/net.py",
    ]
    assert own_code.load("pack:A").x == 1


def test_an_edit_acts_though_size_and_time_stay_the_same(here, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for value in (1, 2):
        put(mine=f"class A:\n    x = {value}\n")
        os.utime("mine.py", (1, 1))
        assert own_code.load("mine:A").x == value
    assert not (here / "__pycache__").exists()


def test_a_module_of_the_same_name_elsewhere_is_another(here, monkeypatch):
    for value in (1, 2):
        (here / str(value)).mkdir()
        monkeypatch.chdir(here / str(value))
        put(mine="class A:\n    where = __file__\n")
        assert own_code.load("mine:A").where == str(here / str(value) / "mine.py")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gone:A", "gone:A: found no gone.py in "),
        ("pack.gone:A", "pack.gone:A: found no pack/gone.py in "),
        ("mine.net:A", "mine.net:A: found no mine/net.py in "),
        ("mine:B", "mine:B: found nothing under that name in mine.py, expected a class"),
        (
            "mine:C",
            "mine:C: found an object of type int under that name in mine.py, expected a class",
        ),
        (
            "wrong:A",
            "wrong:A: found SyntaxError: expected ':' (wrong.py, line 2), expected a module",
        ),
        ("failing:A", "failing:A: found ZeroDivisionError: division by zero (failing.py, line 3),"),
        ("json:A", "json:A: found the module "),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_sentence(name, sentence, here):
    put(
        mine="class A:\n    pass\n\nC = 3\n",
        pack__net="class A:\n    pass\n",
        wrong="x = 1\nclass A\n",
        failing="def f():\n\n    return 1 / 0\n\nf()\n",
        json="class A:\n    pass\n",
    )
    with pytest.raises(BadInput) as refusal:
        own_code.load(name)
    assert str(refusal.value).startswith(sentence)
    if "found no " in sentence:
        assert isinstance(refusal.value, MissingFile)
        assert own_code.files(name) == [] and own_code.sha256(name) is None


@pytest.mark.parametrize("name", ["json:A", "torch:A", "torch.nn:A", "sys:A", "yaml:A"])
def test_names_of_installed_modules_are_taken(name, here):
    put(json="", mine="")
    assert own_code.is_taken(name)
    assert not own_code.is_taken("mine:A")


def test_a_job_refuses_other_code_than_it_was_planned_with(here):
    put(mine="class A:\n    x = 1\n")
    planned = own_code.sha256("mine:A")
    own_code.require("mine:A", planned)
    put(mine="class A:\n    x = 2\n")
    with pytest.raises(BadInput, match=f"mine:A: found code with SHA-256 .*, expected {planned} "):
        own_code.require("mine:A", planned)
