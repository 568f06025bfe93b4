"""The documentation as a site, and the pages whose examples are run here."""

import doctest
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT, snakemake

import qcsbm
from qcsbm.experiment import config


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    files = tmp_path.rglob("*.html")
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in files}
    for page in (ROOT / "docs").glob("*.md"):
        assert f"{page.stem}.html" in pages
    for name, text in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"(.*?)\"", text)
        loaded += re.findall(r"<link[^>]* rel=\"stylesheet\"[^>]* href=\"(.*?)\"", text)
        assert loaded and not [url for url in loaded if "//" in url], name
    # Formulas of pages and of docstrings are laid out, entries of references are listed.
    assert "<mfrac>" in pages["conservative.html"] and "$$" not in pages["conservative.html"]
    room = pages["reference/conservativeness.html"]
    assert "<msubsup>" in room and "<li><p>A Stochastic Estimator" in room
    for name in qcsbm.__all__:
        assert f'id="qcsbm.{name}"' in pages["api.html"]
    for option in ("--products", "--configfile", "--watch"):
        assert option in pages["commands.html"]


def test_the_first_page_does_what_it_says():
    result = doctest.testfile(str(ROOT / "docs/start.md"), module_relative=False)
    assert result.attempted > 5 and result.failed == 0


def test_pictures_are_what_their_script_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(tmp_path), "--steps", "2"])
    with torch.random.fork_rng():
        runpy.run_path(str(ROOT / "docs/pictures.py"), run_name="__main__")
    # Other machines train to other digits; this one is not trained.
    assert (tmp_path / "parts.svg").read_bytes() == (ROOT / "docs/parts.svg").read_bytes()
    for folder in (tmp_path, ROOT / "docs"):
        front, probes = ((folder / f"{name}.svg").read_text() for name in ("front", "probes"))
        for text in ("rotates: 238 steps", "does not: 16 steps", "without L_QC", "with L_QC"):
            assert text in front
        assert "negative in 0%" in probes and "trace, as published" in probes


def blocks(page, kind):
    text = (ROOT / f"docs/{page}.md").read_text()
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# One file of each tier: whether a command is understood, not what all of it would take.
RECORDS = {
    "config/paper.yaml": "results/paper/runs/cifar10/u/seed0/likelihood.json",
    "config/standard.yaml": "results/standard/runs/fashion_mnist/u/seed0/likelihood.json",
    "": "results/runs/digits/u/seed0/likelihood.json",
}


@pytest.mark.parametrize("page", ["cluster", "paper-tier"])
def test_commands_of_the_page_plan_a_workflow(page, tmp_path):
    for name in ("config", "profiles", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    lines = "".join(blocks(page, "sh")).splitlines()
    commands = [line.partition("#")[0].partition("snakemake ")[2] for line in lines]
    commands = [shlex.split(command) for command in commands if command]
    assert len(commands) >= 2
    for words in commands:
        words = [word for word in words if word not in ("-n", "cifar10")]
        record = RECORDS[next((word for word in words if word in RECORDS), "")]
        result = snakemake("-n", *words, "--", record, cwd=tmp_path)
        assert result.returncode == 0, f"{words}\n{result.stdout}{result.stderr}"
        assert "gather_likelihood" in result.stdout


def merged(document, changes):
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(document.get(key), dict)
        document[key] = merged(document[key], value) if both else value
    return document


def test_settings_of_the_page_on_clusters_are_those_of_an_experiment():
    settings = [yaml.safe_load(block) for block in blocks("cluster", "yaml")]
    settings = [block for block in settings if "training" in block]
    assert len(settings) == 3
    for block in settings:
        document = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
        merged(document["defaults"], block)
        cell = config.load(document, "page").cells["digits", "u"]
        for key, value in block["training"].items():
            assert getattr(cell.training, key) == value


def test_methods_of_the_page_on_the_paper_tier_are_an_experiment():
    evaluated, tuned = (yaml.safe_load(block) for block in blocks("paper-tier", "yaml"))
    document = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    document["datasets"] = {"cifar10": document["datasets"]["cifar10"]}
    document["datasets"]["cifar10"].pop("methods", None)
    control = {key: value for key, value in tuned["qc"].items() if key != "regulariser"}
    document["methods"] = evaluated["methods"] | tuned | {"control": control | {"label": "U"}}
    document["tables"] = {"table2": {"methods": ["u", "qc", "control"]}}
    experiment = config.load(document, "page")
    cell = experiment.cells["cifar10", "u"]
    assert cell.steps == cell.init_from.step == 600_000
    assert experiment.cells["cifar10", "qc"].regulariser.estimator == "trace"
