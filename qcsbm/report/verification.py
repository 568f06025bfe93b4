"""Whether the files of a result folder are what the experiment file says.

Each record is compared with the specification that the experiment file makes, and its checksums
with the files that the stage read and wrote. Nothing is computed anew but the tables of numbers
that follow from records.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qcsbm.data import raw
from qcsbm.experiment import layout, specification
from qcsbm.experiment.agreement import differences
from qcsbm.experiment.experiment import Experiment
from qcsbm.quality import extractor_weights
from qcsbm.runtime import failure, source_code
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import sha256
from qcsbm.runtime.provenance import read_record
from qcsbm.schema.specifications import Run, Specification, TrainSpec


@dataclass(frozen=True)
class Expected:
    """A record that must be there: its ``path``, its specification, and the files it was made from.

    ``inputs`` are paths by the names that the record has for them.
    """

    path: Path
    specification: Specification
    inputs: dict[str, Path]


@dataclass
class Report:
    """What was found: ``problems`` contradict the experiment file, ``notes`` do not.

    ``records`` has all records that could be read, and ``checksums`` those of files, by path.
    """

    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: dict[Path, dict[str, Any]] = field(default_factory=dict)
    checksums: dict[Path, str] = field(default_factory=dict)


def verify(experiment: Experiment) -> Report:
    """Compare everything that the workflow's `all` has made with ``experiment``."""
    report = Report()
    for dataset in experiment.datasets:
        _verify_data(report, experiment, dataset)
    for expected in records(experiment):
        _verify_record(report, expected)
    known = {expected.path.parent for expected in records(experiment)}
    for folder in sorted(Path(experiment.root).glob("runs/*/*/seed*")):
        if folder not in known:
            report.notes.append(f"{folder}: no run of this experiment, and in none of its tables")
    return report


def records(experiment: Experiment) -> Iterator[Expected]:
    """Every record of training, measuring and the classifiers that ``experiment`` asks for."""
    for dataset in experiment.datasets:
        data = Path(layout.data(experiment, dataset))
        arrays = {name: data / name for name in ("train.npy", "test.npy")}
        cells = [experiment.cells[dataset, method] for method in experiment.methods]
        if any(cell.quality.extractor == "classifier" for cell in cells):
            told = specification.classifier(experiment, dataset)
            yield Expected(data / "classifier.json", told, arrays)
        for method in experiment.methods:
            for seed in experiment.seeds[dataset]:
                run = dataset, method, seed
                folder = Path(layout.run(experiment, *run))
                for file, spec in specification.of_run(experiment, *run).items():
                    origin = _origin(experiment, run, spec)
                    inputs = arrays | ({origin.name: origin} if origin else {})
                    yield Expected(folder / file, spec, inputs)


def chosen(report: Report, methods: Iterable[str], files: Iterable[str]) -> list[dict[str, Any]]:
    """Those records of ``methods`` whose files in the folder of a run match one of ``files``."""
    found = []
    for path, record in report.records.items():
        folder = next((p for p in path.parents if p.name == f"seed{record.get('seed')}"), None)
        if folder and record["method"] in methods:
            name = path.relative_to(folder).as_posix()
            found += [record for pattern in files if fnmatchcase(name, pattern)]
    return found


def _origin(experiment: Experiment, run: tuple[str, str, int], spec: Run) -> Path | None:
    """The checkpoint that the stage with this specification started from, if any."""
    dataset, method, seed = run
    if (dataset, method) not in experiment.trainings:
        return None
    if not isinstance(spec, TrainSpec):
        step = experiment.trainings[dataset, method].steps
        return Path(layout.checkpoint(experiment, *run, step))
    earlier = experiment.predecessor(dataset, method, spec.protocol.stop)
    if earlier is None:
        return None
    return Path(layout.checkpoint(experiment, dataset, earlier[0], seed, earlier[1]))


def _verify_data(report: Report, experiment: Experiment, dataset: str) -> None:
    path = Path(layout.data(experiment, dataset)) / "data.json"
    if not path.is_file():
        report.missing.append(str(path))
        return
    data = experiment.datasets[dataset].data
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        found, outputs = description["specification"], description["outputs"]
        code = description["provenance"]["code"]
    except (ValueError, KeyError, TypeError):
        report.problems.append(f"{path}: found no description of a prepared dataset")
        return
    if raw.fingerprint(data) is None:
        report.notes.append(f"{dataset}: the files that it was prepared from are gone")
    _verify_specification(report, path, found, specification.prepare(experiment, dataset))
    _verify_checksums(report, path, {name: path.parent / name for name in outputs}, outputs)
    _note_code(report, path, code)


def _verify_record(report: Report, expected: Expected) -> None:
    path = expected.path
    if not path.is_file():
        report.missing.append(str(path))
        return
    try:
        record = read_record(path)
    except BadInput as error:
        report.problems.append(str(error))
        return
    report.records[path] = record
    _verify_specification(report, path, record["specification"], expected.specification)
    if failure.KEY in record:
        return
    outputs = {name: path.parent / name for name in record["outputs"]}
    _verify_checksums(report, path, expected.inputs, record["inputs"])
    _verify_checksums(report, path, outputs, record["outputs"])
    if record["stage"] == "quality":
        _verify_images(report, expected, record["protocol"])
    _note_code(report, path, record["provenance"]["code"])


def _verify_specification(
    report: Report, path: Path, found: dict[str, Any], specification: Specification
) -> None:
    expected = specification.document()
    for key, value, wanted in differences(found, expected):
        report.problems.append(f"{path}: {key}: found {value}, expected {wanted}")
    if found.get("seed") != expected.get("seed"):
        report.problems.append(
            f"{path}: seed: found {found.get('seed')}, expected {expected.get('seed')}"
        )


def _verify_checksums(
    report: Report, path: Path, places: dict[str, Path], checksums: dict[str, str]
) -> None:
    for name, checksum in checksums.items():
        file = places.get(name)
        if file is None:
            report.problems.append(f"{path}: found the input {name}, expected {', '.join(places)}")
        elif not file.is_file():
            report.problems.append(f"{path}: {file}: found no such file, expected that of {name}")
        elif (found := _sha256(report, file)) != checksum:
            report.problems.append(
                f"{path}: {file}: found SHA-256 {found[:12]}…, expected {checksum[:12]}…"
            )


def _verify_images(report: Report, expected: Expected, protocol: dict[str, Any]) -> None:
    """Compare what a record of quality says of images and extractor with their files."""
    data = expected.inputs["train.npy"].parent
    extractor = protocol["extractor"]
    weights = extractor_weights.path(extractor) or data / "classifier.safetensors"
    places = {
        "samples_sha256": expected.path.parent / "samples.npy",
        "reference_sha256": data / f"{protocol['reference']}.npy",
        "extractor_sha256": weights,
    }
    found = {name: protocol.get(name, "") for name in places}
    _verify_checksums(report, expected.path, places, found)


def _note_code(report: Report, path: Path, code: dict[str, list[str]]) -> None:
    for stage, digests in code.items():
        now = source_code.stage_digest(stage)
        if digests != [now]:
            report.notes.append(
                f"{path}: the stage {stage} ran other code ({', '.join(digests)}) than there is "
                f"now ({now})"
            )


def _sha256(report: Report, path: Path) -> str:
    if path not in report.checksums:
        report.checksums[path] = sha256(path)
    return report.checksums[path]
