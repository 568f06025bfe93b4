"""Computations that fail: the reason goes where the result would have gone."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, in_process, snakemake

from qcsbm.experiment import config, specification
from qcsbm.report import tables
from qcsbm.runtime import failure, provenance
from qcsbm.schema.specifications import TableSpec

SPEC = specification.likelihood(config.read(ROOT / "config/ci.yaml"), "digits", "c", 3)


def test_a_reason_is_read_back_and_other_files_have_none(tmp_path):
    paths = [tmp_path / "step9.safetensors", tmp_path / "record.json"]
    failure.write(paths, "it »diverged«", SPEC)
    assert [failure.read(path) for path in paths] == ["it »diverged«"] * 2
    assert provenance.read_record(paths[1])["metrics"] == []
    np.save(tmp_path / "array.npy", np.zeros(3))
    assert failure.read(tmp_path / "array.npy") is None
    assert failure.first([tmp_path, tmp_path / "array.npy", *paths]) == "it »diverged«"
    paths[0].write_bytes(paths[0].read_bytes()[:-5])
    with pytest.raises(ValueError, match="step9.safetensors: found half of a reason"):
        failure.read(paths[0])


def test_a_stage_passes_on_the_reason_that_it_is_given(tmp_path):
    checkpoint, out, record = (tmp_path / n for n in ("step9.safetensors", "out.npz", "out.json"))
    failure.write([checkpoint], "it diverged", SPEC)
    arguments = ["--data", tmp_path, "--checkpoint", checkpoint, "--shard", "1-of-1"]
    arguments += ["--out", out, "--record", record]
    assert in_process("likelihood", "--spec", SPEC.text(), *arguments) == 0
    assert failure.read(out) == failure.read(record) == "it diverged"


def test_a_table_shows_the_numbers_that_there_are_and_why_others_are_not(tmp_path):
    failure.write([tmp_path / "c.json"], "training diverged: dsm is inf at step 7", SPEC)
    nll = {"name": "nll", "value": 2.5, "stderr": None, "n": 1, "unit": "bits/dim"}
    records = [
        provenance.read_record(tmp_path / "c.json"),
        {
            **{"dataset": "digits", "method": "u", "seed": 3},
            **{"stage": "likelihood", "metrics": [nll], "protocol": {}},
        },
    ]
    spec = TableSpec(
        version=1,
        **{"strict": False, "seeds": {}, "records": {}},
        sampler=None,
        datasets={"digits": "Digits"},
        methods={"digits": [("c", "C"), ("u", "U")]},
        names={"digits": {"c": "C", "u": "U"}},
        paper={"digits": {}},
    )
    (block,) = tables.build(tables.tidy(records), spec, tables.failures(records))
    assert block.cells["u", "nll"] == (2.5, None) and block.cells["c", "nll"] is None
    assert "C, seed 3: training diverged: dsm is inf at step 7." in block.notes
    # Nothing at all was measured: still a table.
    (empty,) = tables.build(tables.tidy(records[:1]), spec, tables.failures(records[:1]))
    assert empty.metrics == [] and any("diverged" in note for note in empty.notes)


PLANTED = """
import sys

import numpy as np

from qcsbm import cli
from qcsbm.runtime import errors, shards

def read(*_):
    raise {error}

shards.read = read
sys.exit(cli.main())
"""
MISTAKES = [
    "ZeroDivisionError('planted')",
    "np.linalg.LinAlgError('planted')",
    "KeyError('planted')",
    "ValueError('planted')",
]


@pytest.fixture
def planted(tmp_path):
    """Runs a stage whose computation raises ``error``; what came of it, and its outputs."""

    def run(error):
        (tmp_path / "planted.py").write_text(PLANTED.format(error=error))
        command = ["planted.py", "gather_likelihood", "--spec", SPEC.text()]
        command += ["--shards", "planted.py", "--records", "planted.py"]
        command += ["--out", "bits.npy", "--record", "record.json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        return result, [tmp_path / "bits.npy", tmp_path / "record.json"]

    return run


@pytest.mark.parametrize("error", MISTAKES)
def test_a_mistake_of_the_package_looks_like_one_and_is_no_result(error, planted):
    result, outputs = planted(error)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "planted" in result.stderr.splitlines()[-1]
    assert not any(path.exists() for path in outputs)


def test_a_divergence_is_a_result(planted):
    result, outputs = planted("errors.Diverged('it diverged')")
    assert result.returncode == 0
    assert result.stderr == "qcsbm gather_likelihood: it diverged\n"
    assert [failure.read(path) for path in outputs] == ["it diverged"] * 2


def test_bad_input_is_a_sentence_and_no_result(planted):
    result, outputs = planted("errors.BadInput('found this, expected that')")
    assert result.returncode == 2
    assert result.stderr == "qcsbm gather_likelihood: found this, expected that\n"
    assert not any(path.exists() for path in outputs)


@pytest.mark.slow
def test_a_model_that_explodes_costs_the_tables_its_row_and_no_more(ci, tmp_path):
    document = yaml.safe_load((ROOT / "config/ci.yaml").read_text())
    del document["datasets"]["patches"], document["methods"]["u"]["checkpoints"]
    for method in ("qc", "qcplus"):
        del document["methods"][method]
        for table in document["tables"].values():
            table["methods"].remove(method)
    document["methods"]["c"]["training"] = {"lr": 1e9}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    root = tmp_path / "results/ci"
    # The claims are about the motivational examples, too, in which there is no model.
    examples = shutil.ignore_patterns("cost.*", "digits", "patches", "toy")
    for folder in ("tables", "figures"):
        shutil.copytree(ci / folder, root / folder, ignore=examples)
    targets = ["table2.md", "table3.md", "metrics.csv", "tables/cost.md", "claims.md"]
    pictures = ["asymmetry", "learning_curves", "metrics_by_seed", "figure3_pc"]
    targets += [f"figures/digits/{picture}.png" for picture in pictures]
    options = ["--cores", "2", "--configfile", "config.yaml"]
    result = snakemake(*(f"results/ci/{t}" for t in targets), *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert set(pd.read_csv(root / "metrics.csv")["method"]) == {"u"}
    for table in ("table2.md", "table3.md"):
        assert "C-NCSN++, seed 0: training diverged: " in (root / table).read_text()
