"""Whether the records that one table is made of belong together.

A result folder may hold records of an earlier configuration, of other data or of other code:
Snakemake's own notes on what made a file are lost when results are copied or archived. Records say
what they are, so that whatever puts them together can refuse a mixture.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qcsbm.runtime.errors import BadInput
from qcsbm.schema.specifications import Together

# Facts that all records of a dataset share which have them, by what else they depend on.
SHARED = {
    "extractor_sha256": ("extractor",),
    "reference_sha256": ("reference",),
    "statistics_sha256": ("statistics",),
}
SHARED_INPUTS = ("train.npy", "test.npy")

Record = dict[str, Any]
Key = tuple[Any, ...]


def digest(spec: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the specification ``spec``, which are the same for all seeds."""
    facts = {key: value for key, value in spec.items() if key != "seed"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def require(records: Mapping[Path, Record], expected: Together) -> None:
    """Refuse ``records``, by path, that are not those ``expected``, or that contradict each other.

    Their specifications have to be among the digests in ``expected.records``.

    Raises:
        BadInput: one is of another specification or seed, one stands there twice, or two were
            computed from different data.
    """
    seen: dict[Key, tuple[Path, str]] = {}
    for path, record in records.items():
        _require_expected(path, record, records, expected)
        facts: list[tuple[Key, str]] = [
            ((*_name(record), digest(record["specification"])), str(path))
        ]
        facts += _shared(record)
        for key, value in facts:
            other = seen.setdefault(key, (path, value))
            if other[1] != value:
                raise BadInput(_contradiction(path, key, value, *other))


def _require_expected(
    path: Path, record: Record, records: Mapping[Path, Record], expected: Together
) -> None:
    dataset, method, seed = _name(record)
    known = expected.records.get(f"{dataset}/{method}", [])
    if digest(record["specification"]) not in known:
        peers = [
            other["specification"]
            for other in records.values()
            if _name(other)[:2] == (dataset, method)
            and _kind(other) == _kind(record)
            and digest(other["specification"]) in known
        ]
        if peers:
            key, found, wanted = next(differences(record["specification"], peers[0]))
            raise BadInput(
                f"{path}: found {key} = {found}, expected {wanted}, as the experiment file has it"
            )
        raise BadInput(
            f"{path}: found a record of another specification than the experiment file's, expected "
            "one of it; `qcsbm verify` says what differs"
        )
    if seed not in expected.seeds.get(dataset, []):
        raise BadInput(
            f"{path}: found seed {seed}, expected one of {expected.seeds.get(dataset, [])}"
        )


def differences(
    found: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(key, found, expected) of all values that differ between two specifications, seeds apart."""
    for name in sorted((found.keys() | expected.keys()) - {"seed"}):
        ours, theirs = found.get(name, "nothing"), expected.get(name, "nothing")
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from differences(ours, theirs, f"{prefix}{name}.")
        elif ours != theirs:
            yield f"{prefix}{name}", ours, theirs


def code_notes(records: Mapping[Path, Record]) -> list[str]:
    """A sentence for every stage whose code was not the same for all of ``records``."""
    users: dict[str, dict[str, list[Path]]] = {}
    for path, record in records.items():
        for stage, digests in record.get("provenance", {}).get("code", {}).items():
            for number in digests:
                users.setdefault(stage, {}).setdefault(number, []).append(path)
    notes = []
    for stage, by_digest in sorted(users.items()):
        if len(by_digest) > 1:
            rare, *rest = sorted(by_digest.items(), key=lambda item: (len(item[1]), item[0]))
            others = ", ".join(number for number, _ in rest)
            notes.append(
                f"The code of the stage {stage} was not the same for all of these numbers: "
                f"{rare[0]} for {', '.join(map(str, rare[1][:3]))}"
                f"{' and others' if len(rare[1]) > 3 else ''}, {others} for the rest."
            )
    return notes


def machine_notes(records: Mapping[Path, Record]) -> list[str]:
    """A sentence where processors or versions of PyTorch differ between ``records``."""
    origins = [record["provenance"] for record in records.values() if "provenance" in record]
    devices = sorted({origin["device"] for origin in origins})
    versions = sorted({origin["packages"].get("torch", "none") for origin in origins})
    notes = []
    if len(devices) > 1:
        notes.append(f"Computed on different devices: {', '.join(devices)}.")
    if len(versions) > 1:
        notes.append(f"Computed with different versions of PyTorch: {', '.join(versions)}.")
    return notes


def _name(record: Record) -> Key:
    return tuple(record.get(key) for key in ("dataset", "method", "seed"))


def _kind(record: Record) -> Key:
    """What tells records of one dataset, method and seed apart."""
    protocol = record["specification"]["protocol"]
    return record["stage"], protocol.get("sampler"), protocol.get("stop")


def _shared(record: Record) -> Iterator[tuple[Key, str]]:
    """Facts of ``record`` that are those of all records with the same key."""
    dataset, protocol = record.get("dataset"), record["protocol"]
    for name in SHARED_INPUTS:
        if name in record.get("inputs", {}):
            yield (dataset, name), record["inputs"][name]
    for name, keys in SHARED.items():
        if name in protocol:
            yield (dataset, name, *(protocol.get(key) for key in keys)), protocol[name]


def _contradiction(path: Path, key: Key, value: str, other: Path, expected: str) -> str:
    if value == str(path):
        return f"{path}: found the same measurement as in {other}, expected it once"
    name = key[1]
    return (
        f"{path}: found {name} {value[:12]}…, expected {expected[:12]}… as in {other}: the two "
        "were not computed from the same files"
    )
