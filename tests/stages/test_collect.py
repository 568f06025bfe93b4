"""Folders that `collect` makes: what is in them follows from the records that are in them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, in_process

from qcsbm.experiment import layout
from qcsbm.experiment.config import read
from qcsbm.report import verification
from qcsbm.stages import collect

STUDY = ROOT / "docs/study"
DOCUMENT = """
tier: tiny
seeds: [3, 5, 6]
defaults:
  steps: 6
  sde: {type: ve, sigma_min: 0.02, sigma_max: 3.0}
  network: {type: ncsnpp, nf: 4, ch_mult: [1, 2], num_res_blocks: 1, attn_resolutions: []}
  training: {batch_size: 4}
  samplers: {pc: {type: pc, steps: 2, snr: 0.2, batch_size: 4}}
  quality: {samples: 8, extractor: classifier}
  likelihood: {samples: 4, rtol: 0.1, atol: 0.1, batch_size: 4}
  asymmetry: {estimator: exact, noise_levels: 2, samples: 4, batch_size: 4}
datasets:
  digits: {label: Digits, data: {source: digits, test: 50}, classifier: {epochs: 2}}
  patches:
    label: Patches
    data: {source: patches, size: 8, train: 64, test: 16}
    quality: {extractor: efficientnet_lite0}
methods:
  u: {label: U, parameterisation: score, checkpoints: [4]}
  qc:
    label: QC
    parameterisation: score
    init_from: {method: u, step: 4}
    regulariser: {weight: 0.01, estimator: antisymmetric}
tables:
  table2: {methods: [qc, u]}
  table3: {methods: [u], sampler: pc}
comparisons: {all: {pairs: [[qc, u]], metrics: [nll, fd], samplers: [pc]}}
"""
METRICS = {"likelihood": ["nll"], "asymmetry": ["asym", "nasym"], "quality": ["fd", "recall"]}


def record_of(spec, stage, draws):
    """A record as a stage writes it, with numbers of no meaning."""
    facts = spec.document()
    cost = {"wall_s": 1.0, "cpu_s": 10 * (1 + draws.uniform()), "peak_memory_mb": 50.0}
    protocol = spec.columns()
    if stage == "train":
        cost["started_at_step"] = 0 if protocol["stop"] == 4 else 4
    metrics = [
        {"name": name, "value": draws.uniform(), "stderr": 0.1, "n": 4, "unit": "1"}
        for name in METRICS.get(stage, [])
    ]
    return {
        "stage": stage,
        **{key: facts[key] for key in ("dataset", "method", "seed") if key in facts},
        **{"specification": facts, "metrics": metrics, "protocol": protocol},
        **{"inputs": {}, "outputs": {}},
        "cost": cost | {"network_calls": 2, "evaluations": 8},
        "provenance": {
            "python": "3.11.7",
            "checkout": {"commit": "abc", "dirty": False},
            "code": {stage: ["0123456789ab"]},
            "packages": {"torch": "2.14.1"},
            **{"device": "Processor X", "processor": "Processor X", "command": ["long"]},
        },
    }


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A working directory with an experiment file and all records of its digits, and no more."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(DOCUMENT)
    experiment = read("tiny.yaml").only("digits")
    draws = np.random.default_rng(0)
    for expected in verification.records(experiment):
        stage = expected.path.stem if "step" not in expected.path.stem else "train"
        record = record_of(expected.specification, stage, draws)
        expected.path.parent.mkdir(parents=True, exist_ok=True)
        expected.path.write_text(json.dumps(record))
    picture = Path(experiment.root) / "figures/digits/asymmetry.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"picture")
    # Whether files have the checksums of records is the business of `verify`.
    whole = verification.Report(
        records={e.path: json.loads(e.path.read_text()) for e in verification.records(experiment)}
    )
    monkeypatch.setattr(verification, "verify", lambda experiment: whole)
    return experiment


def problems(folder):
    """Files of the piece in ``folder`` that do not follow from its records."""
    dataset = json.loads((folder / "piece.json").read_text())["dataset"]
    expected = collect.texts(dataset, folder)
    return [name for name, text in expected.items() if (folder / name).read_text() != text]


def test_a_piece_has_the_numbers_claims_and_tables_of_its_dataset_alone(results):
    assert in_process("collect", "digits", "--configfile", "tiny.yaml", "--out", "pieces") == 0
    folder = Path("pieces/digits")
    assert {path.name for path in folder.iterdir()} == {
        *("experiment.yaml", "records.jsonl", "piece.json", "metrics.csv", "asymmetry.png"),
        *("claims.md", "claims.json", "cost.md", "cost.csv"),
        *(f"table{i}.{suffix}" for i in (2, 3) for suffix in ("md", "csv", "tex")),
    }
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert len(records) == 1 + 3 * 2 * 4 + 3 * 3
    assert not any("command" in entry["record"]["provenance"] for entry in records)
    run = layout.run(results, "digits", "qc", 5)
    value = json.loads(Path(run, "likelihood.json").read_text())["metrics"][0]["value"]
    metrics = pd.read_csv(folder / "metrics.csv")
    rows = metrics.query("method == 'qc' and seed == 5 and metric == 'nll'")
    assert rows["value"].tolist() == pytest.approx([value]) and len(metrics) == 6 * 5
    (nll, fd) = json.loads((folder / "claims.json").read_text())["claims"]
    assert (nll["n"], nll["family"], nll["topic"]) == (3, "all", "Digits")
    assert all(20 < s < 40 for s in nll["seconds"])
    assert (folder / "table2.md").read_text().count("| QC ") == 1
    assert "QC" not in (folder / "table3.csv").read_text()
    assert len(pd.read_csv(folder / "cost.csv")) == 2
    facts = json.loads((folder / "piece.json").read_text())
    assert facts["seeds"] == [3, 5, 6] and facts["records"] == len(records)
    assert facts["processors"] == ["Processor X"] and facts["packages"] == {"torch": ["2.14.1"]}
    assert facts["checkouts"] == [{"commit": "abc", "dirty": False}]


def test_what_does_not_follow_from_the_records_is_found(results, capsys):
    in_process("collect", "digits", "--configfile", "tiny.yaml", "--out", "pieces")
    folder = Path("pieces/digits")
    assert problems(folder) == []
    text = (folder / "records.jsonl").read_text()
    first = json.loads(text.splitlines()[-1])
    assert first["record"]["stage"] == "train"
    altered = text.replace('"name": "nll", "value": 0.', '"name": "nll", "value": 0.9', 1)
    assert altered != text
    (folder / "records.jsonl").write_text(altered)
    assert set(problems(folder)) == {
        *("metrics.csv", "claims.md", "claims.json", "table2.md", "table2.csv", "table2.tex"),
    }
    assert in_process("collect", "digits", "--out", "pieces", "--again") == 0
    assert problems(folder) == []


def test_nothing_is_collected_of_results_that_are_not_whole(results, capsys):
    verification.verify(results).missing.append("results/tiny/runs/digits/u/seed3/step6.json")
    assert in_process("collect", "digits", "--configfile", "tiny.yaml", "--out", "pieces") == 1
    assert "1 files are wrong or missing" in capsys.readouterr().out
    assert not Path("pieces").exists()
    assert in_process("collect", "sounds", "--configfile", "tiny.yaml") == 2
    assert "found 'sounds', expected one of digits, patches" in capsys.readouterr().err


def test_numbers_and_claims_of_all_folders_stand_beside_them(results):
    in_process("collect", "digits", "--configfile", "tiny.yaml", "--out", "pieces")
    first, second = Path("pieces/digits"), Path("pieces/other")
    shutil.copytree(first, second)
    rows = pd.read_csv(first / "metrics.csv").assign(dataset="other", of_others=1.5)
    rows.to_csv(second / "metrics.csv", index=False)
    assert in_process("collect", "digits", "--out", "pieces", "--again") == 0
    metrics = pd.read_csv("pieces/metrics.csv")
    assert metrics["dataset"].value_counts().to_dict() == {"digits": len(rows), "other": len(rows)}
    pd.testing.assert_frame_equal(
        metrics[metrics["dataset"] == "digits"].drop(columns="of_others"),
        pd.read_csv(first / "metrics.csv"),
    )
    claims = json.loads(Path("pieces/claims.json").read_text())["claims"]
    assert claims == 2 * json.loads((first / "claims.json").read_text())["claims"] != []


def test_committed_pieces_follow_from_their_records():
    pieces = sorted(STUDY.glob("*/piece.json"))
    for piece in pieces:
        assert problems(piece.parent) == []
    for name, text in (collect.together(STUDY) if pieces else {}).items():
        assert (STUDY / name).read_text() == text


def test_a_run_is_set_beside_a_piece(results, capsys):
    for name in ("study", "mine"):
        in_process("collect", "digits", "--configfile", "tiny.yaml", "--out", name)
    capsys.readouterr()
    assert in_process("compare", "study/digits", "mine/digits") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "10 of 10 numbers, each a mean over 3 seeds" in text
    assert "to all digits: 10." in text


@pytest.mark.slow
def test_results_of_the_workflow_are_verified_and_collected(ci, tmp_path, monkeypatch):
    shutil.copy(ROOT / "config/ci.yaml", tmp_path / "ci.yaml")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/ci").symlink_to(ci)
    monkeypatch.chdir(tmp_path)
    assert in_process("collect", "digits", "--configfile", "ci.yaml") == 0
    folder = tmp_path / "docs/study/digits"
    assert problems(folder) == []
    # The same numbers as in the table of all datasets.
    for name in ("table2.csv", "table3.csv"):
        whole, part = (pd.read_csv(where / name) for where in (ci, folder))
        digits = whole[whole["dataset"] == "digits"].reset_index(drop=True)
        pd.testing.assert_frame_equal(digits[part.columns], part)
    assert yaml.safe_load((folder / "experiment.yaml").read_text())["tier"] == "ci"
    assert (folder / "figure3_pc.png").stat().st_size > 1000
