"""The JSON record that every stage leaves: what was measured, how, from what, and at what cost.

``metrics``, ``protocol`` and ``inputs`` are the same bytes whenever specification and seed are;
``cost`` and ``provenance`` differ from run to run and are left out of comparisons by name.
"""

import json
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel, FiniteFloat, ValidationError

from qcsbm import __version__
from qcsbm.files import sha256, write_text

VARYING = ("cost", "provenance")
PACKAGES = ("torch", "numpy", "scipy", "pandas")


@dataclass
class Record:
    """One measurement, filled while the stage runs."""

    stage: str
    protocol: dict
    metrics: list[dict] = field(default_factory=list)
    cost: dict = field(default_factory=dict)

    def metric(self, name: str, value: float, stderr: float | None, n: int, unit: str) -> None:
        """Add a number, its standard error within this run (None if it has none) and sample size.

        Raises:
            ArithmeticError: the number is not finite.
        """
        for what, number in [(name, value), (f"the standard error of {name}", stderr)]:
            if number is not None and not abs(number) < float("inf"):
                raise ArithmeticError(f"{self.stage}: {what} is {number}, expected a finite number")
        self.metrics.append({"name": name, "value": value, "stderr": stderr, "n": n, "unit": unit})


@contextmanager
def recorded(
    path: str | Path, stage: str, spec: dict, inputs: Iterable[str | Path], processes: int = 1
) -> Iterator[Record]:
    """A record that is written to ``path`` when the block succeeds, with its cost and origin.

    ``spec`` is the stage's specification, see `qcsbm.specification`. ``inputs`` are files whose
    checksums the record keeps. CPU time includes that of processes which this one started and
    waited for; each of ``processes`` holds a GPU where one is used.
    """
    entry = Record(stage, dict(spec["protocol"]))
    wall, cpu = time.perf_counter(), _cpu_s()
    yield entry
    identity = {key: value for key, value in spec.items() if key != "protocol"}
    checksums = {Path(file).name: sha256(file) for file in inputs}
    cost = {
        "wall_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(_cpu_s() - cpu, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        **_gpu_cost(wall, processes),
        **entry.cost,
    }
    _write(path, entry, identity, checksums, cost, provenance())


@contextmanager
def gathered(path: str | Path, shards: list[dict]) -> Iterator[Record]:
    """The record, written to ``path``, of the whole that the records ``shards`` are parts of.

    Costs are sums over the shards, peaks of memory their maxima.

    Raises:
        ValueError: the shards are not parts of one whole: they differ in more than cost and origin.
    """
    facts = [{k: v for k, v in shard.items() if k not in VARYING} for shard in shards]
    for number, found in enumerate(facts):
        if found != facts[0]:
            different = next(key for key in found if found[key] != facts[0].get(key))
            raise ValueError(
                f"shard {number + 1} of {path}: found {different} {found[different]}, expected "
                f"{facts[0].get(different)} as in shard 1"
            )
    first = facts[0]
    entry = Record(first["stage"], first["protocol"])
    yield entry
    costs = [shard["cost"] for shard in shards]
    combine = {key: max if "memory" in key else sum for key in costs[0]}
    cost = {key: how(c[key] for c in costs) for key, how in combine.items()}
    identity = {
        k: v for k, v in first.items() if k not in ("stage", "metrics", "protocol", "inputs")
    }
    origin = {**shards[0]["provenance"], "shards": len(shards)}
    _write(path, entry, identity, first["inputs"], cost, origin)


def _write(
    path: str | Path, entry: Record, identity: dict, inputs: dict, cost: dict, origin: dict
) -> None:
    document = {
        "stage": entry.stage,
        **identity,
        "metrics": entry.metrics,
        "protocol": entry.protocol,
        "inputs": inputs,
        "cost": cost,
        "provenance": origin,
    }
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def provenance() -> dict:
    """Where and when this process computes, with what."""
    return {
        "python": platform.python_version(),
        "qcsbm": __version__,
        "packages": {name: version(name) for name in PACKAGES},
        "device": device_name(),
        "command": sys.argv[1:],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu_s() -> float:
    times = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in times)


def _gpu_cost(start: float, processes: int) -> dict:
    """Time of all GPUs and memory of this process's, if any is used, since ``start``."""
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
    metrics: list[_Metric]
    protocol: dict


def read_record(path: str | Path) -> dict:
    """A record as it was written, or what stands in its place, see `qcsbm.failure`.

    Raises:
        ValueError: the file is no record.
    """
    text = Path(path).read_bytes()
    try:
        _Facts.model_validate_json(text, strict=True)
    except ValidationError:
        raise ValueError(f"{path}: found no record of a stage, expected its JSON") from None
    return json.loads(text)


def device_name() -> str:
    """The GPU's name where one is used, else the processor's architecture."""
    torch = _torch_with_gpu()
    return torch.cuda.get_device_name() if torch else platform.machine()


def _torch_with_gpu() -> ModuleType | None:
    # Importing torch takes seconds, and a stage that has not done so uses no GPU.
    torch = sys.modules.get("torch")
    return torch if torch and torch.cuda.is_initialized() else None
