r"""What the workflow adds to the work that it does: starts of processes, Snakemake, small jobs.

    python benchmarks/workflow.py [--tier ci] [--cores 2] [--repetitions 5] [--shards 20]

* start: CPU seconds of a process that imports what the stage imports, and sets PyTorch up as jobs
  do; medians, stages in turn.
* deterministic kernels: the same for PyTorch alone, by the call that jobs make and by the usual
  one, which imports the compiler.
* dry run: seconds of ``snakemake -n`` on the paper tier, with so many shards.
* the tier, run into a temporary folder: jobs per minute, and where the core-time goes, by kind of
  stage. A job holds one core for the seconds in its Snakemake benchmark (computation has one thread
  per job). "starts" are the CPU seconds of a kind that were starts: its jobs times the medians.
  What remains of wall time × cores is Snakemake's own work and idle cores; of Snakemake itself, all
  of its jobs left out, the CPU time is known.

The columns of CPU time in Snakemake's benchmarks are not used: they are samples, and lack up to
half a minute of a job. The last line is a JSON object.
"""

import argparse
import csv
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from qcsbm.cli import STAGES

ROOT = Path(__file__).parents[1]
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
KINDS = {
    "train": "train",
    "sample": "sample",
    **dict.fromkeys(("features", "quality", "likelihood", "asymmetry"), "evaluate"),
}
REST = "everything else"
START = """
import sys, qcsbm.cli, qcsbm.stages.{stage}
if "torch" in sys.modules:
    from qcsbm.runtime.device import fix_arithmetic
    fix_arithmetic()
"""
DETERMINISTIC = {
    "set_deterministic_debug_mode": "import torch; torch.set_deterministic_debug_mode('error')",
    "use_deterministic_algorithms": "import torch; torch.use_deterministic_algorithms(True)",
}


def ended_cpu_s() -> float:
    """CPU seconds of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def medians(codes: dict[str, str], repetitions: int) -> dict[str, float]:
    """Median CPU seconds of processes that run each of ``codes``, in turn."""
    times = {name: [] for name in codes}
    for _ in range(repetitions):
        for name, values in times.items():
            before = ended_cpu_s()
            subprocess.run([sys.executable, "-c", codes[name]], cwd=ROOT, check=True)
            values.append(ended_cpu_s() - before)
    return {name: statistics.median(values) for name, values in times.items()}


def dry_run(tier: str, shards: int) -> dict[str, float]:
    """The jobs of ``tier`` from nothing, and wall and CPU seconds until they are listed."""
    options = ["-n", "--configfile", str(ROOT / f"config/{tier}.yaml")]
    options += ["--set-scatter", f"shards={shards}", "--", "all"]
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), ended_cpu_s()
        result = subprocess.run(
            [*SNAKEMAKE, *options], cwd=folder, capture_output=True, text=True, check=True
        )
        seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": ended_cpu_s() - cpu}
    return {"jobs": int(re.search(r"^total\s+(\d+)$", result.stdout, re.MULTILINE)[1]), **seconds}


@dataclass(frozen=True)
class Tier:
    """A run: seconds of wall time, CPU seconds of Snakemake and of all jobs, and (stage, s)."""

    wall_s: float
    snakemake_s: float
    jobs_s: float
    jobs: list[tuple[str, float]]


def run(tier: str, cores: int, targets: tuple[str, ...] = ("all",)) -> Tier:
    """Run ``targets`` of a tier into a temporary folder.

    Raises:
        OSError: Snakemake failed; its last words follow.
    """
    options = ["--cores", str(cores), "--configfile", str(ROOT / f"config/{tier}.yaml")]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "output", "w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*SNAKEMAKE, *options, "--", *targets], cwd=folder, stdout=output, stderr=output
        )
        # A process that has ended, and is not waited for, still tells its times.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall_s = time.perf_counter() - start
        cpu = psutil.Process(process.pid).cpu_times()
        if process.wait():
            output.seek(0)
            raise OSError(f"tier {tier}: Snakemake failed\n{output.read()[-2000:]}")
        return Tier(
            wall_s,
            cpu.user + cpu.system,
            cpu.children_user + cpu.children_system,
            jobs(Path(folder) / "results"),
        )


def jobs(results: Path) -> list[tuple[str, float]]:
    """Stage and seconds of every job that left its Snakemake benchmark under ``results``."""
    found = []
    for path in sorted(results.glob("**/logs/**/*.tsv")):
        with path.open() as file:
            (row,) = csv.DictReader(file, delimiter="\t")
        name = path.name.split(".")[0]
        stage = name if name in STAGES else name.rstrip("0123456789")
        found.append((stage, float(row["s"])))
    return found


def shares(found: list[tuple[str, float]], start: dict[str, float]) -> dict[str, dict[str, float]]:
    """For each kind of stage: jobs, their seconds, the share of all jobs' seconds, and starts."""
    total = sum(seconds for _, seconds in found)
    kinds = {}
    for kind in (*dict.fromkeys(KINDS.values()), REST):
        of_kind = [(stage, s) for stage, s in found if KINDS.get(stage, REST) == kind]
        seconds = sum(s for _, s in of_kind)
        kinds[kind] = {
            "jobs": len(of_kind),
            "s": seconds,
            "share": seconds / total,
            "starts_s": sum(start[stage] for stage, _ in of_kind),
        }
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tier", default="ci", help="name of the configuration to run")
    parser.add_argument("--cores", type=int, default=2, help="cores to run it on")
    parser.add_argument("--repetitions", type=int, default=5, help="starts of every stage")
    parser.add_argument("--shards", type=int, default=20, help="shards of the dry run")
    arguments = parser.parse_args()

    codes = {stage: START.format(stage=stage.replace("-", "_")) for stage in STAGES}
    start = medians(codes, arguments.repetitions)
    deterministic = medians(DETERMINISTIC, arguments.repetitions)
    print(f"{'stage':>17} {'start (CPU s)':>14}")
    for stage, seconds in start.items():
        print(f"{stage:>17} {seconds:14.2f}")
    print("\ndeterministic kernels:")
    for call, seconds in deterministic.items():
        print(f"{call:>29} {seconds:5.2f} s of CPU")
    dry = dry_run("paper", arguments.shards)
    seconds = f"{dry['wall_s']:.1f} s, {dry['cpu_s']:.1f} s of CPU"
    print(f"\ndry run of the paper tier: {dry['jobs']} jobs, {seconds}\n")

    tier = run(arguments.tier, arguments.cores)
    kinds = shares(tier.jobs, start)
    core_s = tier.wall_s * arguments.cores
    rest_s = core_s - sum(kind["s"] for kind in kinds.values())
    print(f"{'core-time of':>20} {'jobs':>5} {'s':>8} {'starts':>8} {'of jobs':>8} {'of all':>7}")
    for name, kind in kinds.items():
        counts = f"{kind['jobs']:5} {kind['s']:8.1f} {kind['starts_s']:8.1f}"
        print(f"{name:>20} {counts} {kind['share']:8.1%} {kind['s'] / core_s:7.1%}")
    print(f"{'Snakemake, idle':>20} {'':5} {rest_s:8.1f} {'':17} {rest_s / core_s:7.1%}")
    result = {
        "start_cpu_s": start,
        "deterministic_cpu_s": deterministic,
        "dry_run": dry,
        "tier": arguments.tier,
        "load": os.getloadavg()[0],
        "cores": arguments.cores,
        "wall_s": tier.wall_s,
        "jobs_per_minute": 60 * len(tier.jobs) / tier.wall_s,
        "jobs_cpu_s": tier.jobs_s,
        "snakemake_cpu_s": tier.snakemake_s,
        "kinds": kinds,
        "share_of_work": 1 - kinds[REST]["share"],
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
