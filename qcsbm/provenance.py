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

import torch

from qcsbm import __version__
from qcsbm.files import sha256, write_text

VARYING = ("cost", "provenance")
PACKAGES = ("torch", "numpy", "scipy", "torchode", "pandas")


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
    path: str | Path, stage: str, spec: dict, inputs: Iterable[str | Path]
) -> Iterator[Record]:
    """A record that is written to ``path`` when the block succeeds, with its cost and origin.

    ``spec`` is the stage's specification, see `qcsbm.specification`. ``inputs`` are files whose
    checksums the record keeps.
    """
    entry = Record(stage, dict(spec["protocol"]))
    wall, cpu = time.perf_counter(), time.process_time()
    yield entry
    document = {
        "stage": stage,
        **{key: value for key, value in spec.items() if key != "protocol"},
        "metrics": entry.metrics,
        "protocol": entry.protocol,
        "inputs": {Path(file).name: sha256(file) for file in inputs},
        "cost": {
            "wall_s": round(time.perf_counter() - wall, 3),
            "cpu_s": round(time.process_time() - cpu, 3),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            **_gpu_cost(wall),
            **entry.cost,
        },
        "provenance": {
            "python": platform.python_version(),
            "qcsbm": __version__,
            "packages": {name: version(name) for name in PACKAGES},
            "device": device_name(),
            "command": sys.argv[1:],
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    }
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def _gpu_cost(start: float) -> dict:
    """Time and memory of the GPU, if there is one, since the clock showed ``start``."""
    if not torch.cuda.is_available():
        return {}
    return {
        "gpu_s": round(time.perf_counter() - start, 3),
        "gpu_peak_memory_mb": round(torch.cuda.max_memory_allocated() / 1024**2, 1),
    }


def read_record(path: str | Path) -> dict:
    """A record as it was written.

    Raises:
        ValueError: the file is no record.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        record["stage"], record["metrics"], record["protocol"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{path}: found no record of a stage, expected its JSON") from None
    return record


def device() -> torch.device:
    """Where tensors are computed on this machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """The GPU's name, or the processor's architecture."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
