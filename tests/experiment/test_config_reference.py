"""config/README.md and the JSON Schema of experiment files: current, and true."""

import copy
import runpy

import pytest
import yaml
from conftest import ROOT
from jsonschema import Draft202012Validator

REFERENCE = runpy.run_path(str(ROOT / "docs/config_reference.py"))
EXPERIMENTS = sorted((ROOT / "config").glob("*.yaml"))
VALIDATOR = Draft202012Validator(REFERENCE["schema"]())


def test_both_files_are_what_the_models_make_of_them():
    for path, text in REFERENCE["files"]().items():
        assert path.read_text() == text, "run docs/config_reference.py"


def test_every_key_says_what_it_means():
    listed = [model for section in REFERENCE["SECTIONS"].values() for model in section.values()]
    assert REFERENCE["definitions"]().keys() == {model.__name__ for model in listed}
    for name, model in REFERENCE["definitions"]().items():
        for key, described in model["properties"].items():
            assert described.get("description") or "const" in described, f"{name}.{key}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_schema_accepts_every_experiment_that_there_is(path):
    Draft202012Validator.check_schema(VALIDATOR.schema)
    found = [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(path.read_text()))]
    assert not found


@pytest.mark.parametrize(
    "place, value",
    [
        ("tiers", "x"),
        ("seeds", [-1]),
        ("defaults.steps", 0),
        ("defaults.training.rate", 0.1),
        ("defaults.training.lr", "fast"),
        ("defaults.samplers.pc.type", "pcs"),
        ("datasets.digits.data.source", "mnist"),
        ("datasets.digits.data.test", 5),
        ("datasets.digits.network.depth", 3),
        ("datasets.digits.methods", {"u": {"step": 3}}),
        ("methods.qc.regulariser.estimator", "probes"),
        ("tables.table2.method", "u"),
    ],
)
def test_the_schema_refuses_what_the_workflow_refuses(place, value):
    document = yaml.safe_load((ROOT / "config/quick.yaml").read_text())
    parent = document
    *parents, last = place.split(".")
    for key in parents:
        parent = parent[key]
    assert VALIDATOR.is_valid(copy.deepcopy(document))
    parent[last] = value
    assert not VALIDATOR.is_valid(document)
