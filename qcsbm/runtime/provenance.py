"""The JSON record that every stage leaves: what was measured, how, from what, and at what cost.

``specification`` is what the stage was told, word for word. ``protocol`` is what a reader of its
numbers has to know: the protocol of the specification, and facts found on the way. ``inputs`` and
``outputs`` are the SHA-256 of files by name. The same specification and seed give the same bytes of
all these and of ``metrics``; ``cost`` and ``provenance`` differ from run to run and are left out of
comparisons.
"""

import json
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, FiniteFloat, ValidationError

from qcsbm.runtime import source_code
from qcsbm.runtime.errors import BadInput, Diverged
from qcsbm.runtime.failure import Told
from qcsbm.runtime.files import sha256, write_text

VARYING = ("cost", "provenance")
IDENTITY = ("dataset", "method", "seed")
PACKAGES = (
    "torch",
    "diffusers",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "pytorch-fid",
    "safetensors",
    "snakemake",
)


@dataclass
class Record:
    """One measurement, filled while the stage runs.

    ``code`` has, for each stage whose code the numbers depend on, the digests of its source, see
    `qcsbm.runtime.source_code`: one, unless a part was computed by other code than the rest.
    """

    stage: str
    protocol: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    code: dict[str, list[str]] = field(default_factory=dict)

    def metric(self, name: str, value: float, stderr: float | None, n: int, unit: str) -> None:
        """Add a number, its standard error within this run (None if it has none) and sample size.

        Raises:
            Diverged: the number is not finite.
        """
        for what, number in [(name, value), (f"the standard error of {name}", stderr)]:
            if number is not None and not abs(number) < float("inf"):
                raise Diverged(f"{self.stage}: {what} is {number}, expected a finite number")
        self.metrics.append({"name": name, "value": value, "stderr": stderr, "n": n, "unit": unit})

    def computed_by(self, code: dict[str, list[str]]) -> None:
        """Say that the numbers also depend on what this ``code`` computed."""
        for stage, digests in code.items():
            self.code[stage] = sorted({*self.code.get(stage, []), *digests})


@contextmanager
def recorded(
    path: str | Path,
    stage: str,
    spec: Told,
    inputs: Iterable[str | Path],
    outputs: Iterable[str | Path] = (),
    processes: int = 1,
) -> Iterator[Record]:
    """A record that is written to ``path`` when the block succeeds, with its cost and origin.

    ``spec`` is the stage's specification, see `qcsbm.experiment.specification`. Of the files
    ``inputs`` and ``outputs`` the record keeps checksums. CPU time includes that of processes which
    this one started and waited for. Where a GPU is used, each of ``processes`` holds one.
    """
    entry = Record(stage, spec.columns())
    # What runs is what was imported: the files may have changed when the block ends.
    entry.computed_by({stage: [source_code.stage_digest(stage)]})
    wall, cpu = time.perf_counter(), _cpu_s()
    yield entry
    cost = {
        "wall_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(_cpu_s() - cpu, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        **_gpu_cost(wall, processes),
        **entry.cost,
    }
    _write(path, entry, spec.document(), checksums(inputs), checksums(outputs), cost)


@contextmanager
def gathered(
    path: str | Path, stage: str, shards: list[dict[str, Any]], outputs: Iterable[str | Path]
) -> Iterator[Record]:
    """The record, written to ``path``, of the whole that the records ``shards`` are parts of.

    ``stage`` puts them together. Costs are sums over the shards, peaks of memory their maxima.

    Raises:
        BadInput: the shards are not parts of one whole: they differ in more than cost and origin.
    """
    facts = [{k: v for k, v in shard.items() if k not in VARYING} for shard in shards]
    for number, found in enumerate(facts):
        if found != facts[0]:
            different = next(key for key in found if found[key] != facts[0].get(key))
            raise BadInput(
                f"shard {number + 1} of {path}: found {different} {found[different]}, expected "
                f"{facts[0].get(different)} as in shard 1"
            )
    first = facts[0]
    entry = Record(first["stage"], first["protocol"])
    entry.computed_by({stage: [source_code.stage_digest(stage)]})
    for shard in shards:
        entry.computed_by(shard["provenance"]["code"])
    yield entry
    costs = [shard["cost"] for shard in shards]
    combine = {key: max if "memory" in key else sum for key in costs[0]}
    cost = {key: how(c[key] for c in costs) for key, how in combine.items()}
    origin = {**shards[0]["provenance"], "code": entry.code, "shards": len(shards)}
    spec, inputs = first["specification"], first["inputs"]
    _write(path, entry, spec, inputs, checksums(outputs), cost, origin)


def checksums(files: Iterable[str | Path]) -> dict[str, str]:
    """The SHA-256 of ``files`` by their names, without the folders."""
    return {Path(file).name: sha256(file) for file in files}


def _write(
    path: str | Path,
    entry: Record,
    spec: dict[str, Any],
    inputs: dict[str, str],
    outputs: dict[str, str],
    cost: dict[str, float],
    origin: dict[str, Any] | None = None,
) -> None:
    document = {
        "stage": entry.stage,
        **{key: spec[key] for key in IDENTITY if key in spec},
        "specification": spec,
        "metrics": entry.metrics,
        "protocol": entry.protocol,
        "inputs": inputs,
        "outputs": outputs,
        "cost": cost,
        "provenance": origin or provenance(entry.code),
    }
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def provenance(code: dict[str, list[str]]) -> dict[str, Any]:
    """Where and when this process computes, with what, and by which ``code``."""
    return {
        "python": platform.python_version(),
        **dict(_versions(["qcsbm"])),
        "checkout": source_code.commit(),
        "code": code,
        "packages": dict(_versions(PACKAGES)),
        "device": device_name(),
        "processor": processor_name(),
        "command": sys.argv[1:],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _versions(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in packages:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _cpu_s() -> float:
    times = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in times)


def _gpu_cost(start: float, processes: int) -> dict[str, float]:
    """Since ``start``, the time of all GPUs together, and the most memory of this process's GPU."""
    torch = _torch_with_gpu()
    if torch is None:
        return {}
    return {
        "gpu_s": round(processes * (time.perf_counter() - start), 3),
        "gpu_peak_memory_mb": round(torch.cuda.max_memory_allocated() / 1024**2, 1),
    }


class _Metric(BaseModel):
    name: str
    value: FiniteFloat
    stderr: FiniteFloat | None
    n: int
    unit: str


class _Facts(BaseModel):
    """What stands in every record; stages add to it."""

    stage: str
    dataset: str | None = None
    method: str | None = None
    seed: int | None = None
    specification: dict[str, Any]
    metrics: list[_Metric]
    protocol: dict[str, Any]


def read_record(path: str | Path) -> dict[str, Any]:
    """A record as it was written, or what stands in its place, see `qcsbm.runtime.failure`.

    Raises:
        BadInput: the file is no record.
    """
    text = Path(path).read_bytes()
    try:
        _Facts.model_validate_json(text, strict=True)
    except ValidationError:
        raise BadInput(f"{path}: found no record of a stage, expected its JSON") from None
    return json.loads(text)


def device_name() -> str:
    """The GPU's name where one is used, else the processor's."""
    torch = _torch_with_gpu()
    return torch.cuda.get_device_name() if torch else processor_name()


def processor_name() -> str:
    """The model of the processor, as far as the system tells it: results differ between models."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _torch_with_gpu() -> ModuleType | None:
    # Importing torch takes seconds, and a stage that has not done so uses no GPU.
    torch = sys.modules.get("torch")
    return torch if torch and torch.cuda.is_initialized() else None
