"""What of an experiment is done, running, failed, interrupted, stale and missing.

Records and logs say all of it, wherever the jobs run. Snakemake would not: ``--summary`` tells no
failed, running or killed job from a missing one, and a marker of an incomplete file looks the same
whether its job runs or was killed. Of each job, what holds first decides:

- failed: a reason stands in place of its record, see `qcsbm.runtime.failure`;
- stale: its record is of another specification than the experiment file's, or its data were
  prepared from other files than there are now, or the record is damaged;
- done: its record exists. Stages write it last;
- failed: one of its logs ends in an error;
- running: the newest of its logs was modified within the last `SILENCE_S` seconds, and does not say
  that the job was interrupted. A job that was killed without a word seems to run for that long;
- interrupted: it has a log. A batch that takes longer than `SILENCE_S` looks like that, too;
- missing: it has none.

A log counts until Snakemake writes the job's benchmark, which it does when the job ends well: a
measurement is not interrupted while the rest of its shards wait for their turn. No torch is
imported, as it takes seconds.
"""

import json
import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from glob import glob
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from qcsbm.experiment import layout, specification
from qcsbm.experiment.experiment import Experiment
from qcsbm.runtime import failure
from qcsbm.schema.specifications import Specification

STATES = ("done", "running", "failed", "interrupted", "stale", "missing")
ENDED = ("done", "stale")
SILENCE_S = 300.0
# More than any traceback takes.
TAIL_BYTES = 1 << 16

# The logs of a measurement, by the name of its record.
LOGS = {
    "likelihood": ("likelihood.*", "gather_likelihood"),
    "asymmetry": ("asymmetry.*", "gather_asymmetry"),
    "circulation": ("circulation",),
    "sample": ("sample.*", "gather_samples"),
    "quality": ("features.*", "quality"),
}
# A progress bar shares its line with what is written before it is closed, and is drawn once more
# behind it: neither expression is bound to the start of a line or the end of a file.
BAR = re.compile(
    r"(?P<step>\d+)/\d+ \[[^],]*, *(?:(?P<rate>[\d.]+)it/s|(?P<period>[\d.]+)s/it|\?it/s)"
    r"(?:, dsm (?P<dsm>[\d.]+))?\]"
)
END = re.compile(
    r"qcsbm [\w-]+: (?P<sentence>.+)"
    r"|Traceback \(most recent call last\):\n(?:[ \t].*\n)+(?P<error>\S.*)"
    r"|SIG[A-Z]+: saved step"
)
SHARD = re.compile(r"\.\d+-of-(\d+)\.")


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work with all of its shards: patterns of its ``record`` and of its ``logs``.

    ``specification`` is what the record has to be of, None where no record says so.
    """

    stage: str
    run: str
    record: str
    logs: list[str]
    specification: Specification | None = None


class Status(NamedTuple):
    """One of `STATES`, and the sentence that says why a job failed."""

    state: str
    reason: str | None = None


def jobs(experiment: Experiment, dataset: str) -> list[Job]:
    """Everything that must be computed for ``dataset`` before tables and figures can be made."""
    data, logs = layout.data(experiment, dataset), f"{experiment.root}/logs"
    log, prepared = f"{logs}/{dataset}/prepare.log", specification.prepare(experiment, dataset)
    found = [Job("prepare", dataset, f"{data}/data.json", [log], prepared)]
    qualities = [experiment.cells[dataset, method].quality for method in experiment.methods]
    if any(quality.extractor == "classifier" for quality in qualities):
        log, told = (
            f"{logs}/{dataset}/classifier.log",
            specification.classifier(experiment, dataset),
        )
        found.append(Job("classifier", dataset, f"{data}/classifier.json", [log], told))
    for name in dict.fromkeys(f"{quality.extractor}.{quality.reference}" for quality in qualities):
        files, log = f"{data}/features/{name}.*.npz", f"{logs}/{dataset}/features.{name}.*.log"
        found.append(Job("reference features", dataset, files, [log]))
    for method in experiment.methods:
        for seed in experiment.seeds[dataset]:
            run = f"{dataset}/{method}/seed{seed}"
            folder = layout.run(experiment, dataset, method, seed)
            specs = specification.of_run(experiment, dataset, method, seed)
            for file, spec in specs.items():
                stage, names = _stage(file)
                patterns = [f"{logs}/{run}/{name}.log" for name in names]
                found.append(Job(stage, run, f"{folder}/{file}", patterns, spec))
    return found


def _stage(file: str) -> tuple[str, list[str]]:
    """The stage that writes the record ``file`` of a run, and its logs."""
    sampler, _, name = file.removesuffix(".json").rpartition("/")
    if name.startswith("step"):
        return "train", [name.replace("step", "train")]
    if sampler:
        return f"{name} {sampler}", [f"{sampler}/{log}" for log in LOGS[name]]
    return name, list(LOGS[name])


def status(job: Job, now: float) -> Status:
    """What has become of ``job`` at the time ``now``, in seconds since the epoch."""
    records = _paths(job.record)
    with suppress(OSError, ValueError):
        if reason := failure.first(records):
            return Status("failed", reason)
    if records and len(records) == (_shards(records[-1]) or 1):
        return Status("stale" if _stale(job) else "done")
    logs = [p for p in _paths(*job.logs) if _modified(p) > _modified(p.with_suffix(".tsv"))]
    if not logs:
        return Status("missing")
    ends = [_end(log) for log in logs]
    if failures := [end for end in ends if end and end.reason]:
        return failures[-1]
    alive = now - _modified(logs[-1]) < SILENCE_S
    return ends[-1] or Status("running" if alive else "interrupted")


def _stale(job: Job) -> bool:
    """Whether the record of ``job`` is of another specification than it has to be of."""
    if job.specification is None:
        return False
    try:
        record = json.loads(Path(job.record).read_text(encoding="utf-8"))
        return bool(record["specification"] != job.specification.document())
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _end(log: Path) -> Status | None:
    """How a job ended, if its ``log`` tells; of several ends the last."""
    ends = list(END.finditer(_tail(log)))
    if not ends:
        return None
    match = ends[-1]
    reason = match["sentence"] or match["error"]
    if reason is None or reason.startswith("KeyboardInterrupt"):
        return Status("interrupted")
    return Status("failed", reason)


def progress(job: Job) -> dict[str, float]:
    """What the last bar in a training's log shows: ``step``, ``rate`` (steps/s) and ``dsm``.

    A key is absent as long as the bar does not show it.
    """
    bars = [bar for log in _paths(*job.logs) for bar in BAR.finditer(_tail(log))]
    found = {k: float(v) for k, v in bars[-1].groupdict().items() if v} if bars else {}
    if "period" in found:
        found["rate"] = 1 / found.pop("period")
    return found


def report(experiment: Experiment, now: float) -> tuple[str, bool]:
    """All of ``experiment`` as text, and whether everything is done or has failed."""
    parts = [f"{experiment.root} at {time.strftime('%H:%M:%S', time.localtime(now))}"]
    total: Counter[str] = Counter()
    failures: dict[tuple[str, str], list[str]] = {}
    for dataset, facts in experiment.datasets.items():
        found = {job: status(job, now) for job in jobs(experiment, dataset)}
        parts += [facts.label, _trainings_table(experiment, found), _counts_table(found)]
        total.update(item.state for item in found.values())
        for job, item in found.items():
            if item.reason:
                failures.setdefault((job.run, item.reason), []).append(job.stage)
    if failures:
        lines = [f"{run} {', '.join(s)}: {reason}" for (run, reason), s in failures.items()]
        parts.append("\n".join(["failed", *lines]))
    counts = ", ".join(f"{total[state]} {state}" for state in STATES)
    parts.append(f"total {total.total()}: {counts}")
    return "\n\n".join(parts), not total.keys() - {"done", "failed"}


def _trainings_table(experiment: Experiment, found: dict[Job, Status]) -> str:
    rows = []
    trainings = [job for job in found if job.stage == "train"]
    for run, segments in groupby(trainings, lambda job: job.run):
        dataset, method, seed = run.split("/")
        states = {job: found[job].state for job in segments}
        steps = experiment.trainings[dataset, method].steps
        rows.append([method, seed.removeprefix("seed"), *_training_row(states, steps)])
    headers = ["method", "seed", "step", "steps/s", "ETA", "DSM", "state"]
    return _table(rows, headers, ["left", *["right"] * 5, "left"])


def _training_row(states: dict[Job, str], steps: int) -> list[str]:
    """Step, rate, ETA, DSM loss and state of a training from the states of its segments."""
    known: dict[str, float] = {}
    state = ""
    for job, state in states.items():
        if state != "missing":
            known |= progress(job)
        if state not in ENDED:
            break
        known["step"] = int(Path(job.record).stem.removeprefix("step"))
    step, rate, dsm = (known.get(name) for name in ("step", "rate", "dsm"))
    eta = ""
    if state == "running" and step is not None and rate:
        eta = str(timedelta(seconds=round((steps - step) / rate)))
    return [
        f"{'–' if step is None else int(step)}/{steps}",
        f"{rate:.3g}" if rate else "",
        eta,
        "" if dsm is None else f"{dsm:.2f}",
        state,
    ]


def _counts_table(found: dict[Job, Status]) -> str:
    stages = dict.fromkeys(job.stage for job in found)
    counts = Counter((job.stage, item.state) for job, item in found.items())
    rows = [[stage, *(str(counts[stage, state] or "") for state in STATES)] for stage in stages]
    return _table(rows, ["stage", *STATES], ["left", *["right"] * len(STATES)])


def _table(rows: list[list[str]], headers: list[str], align: list[str]) -> str:
    if not rows:
        return ""
    # A head that tabulate knows as such makes every column two characters wider, which is too much
    # for a line of 80 where names of methods are long.
    return tabulate([headers, *rows], tablefmt="plain", colalign=align, disable_numparse=True)


def _paths(*patterns: str) -> list[Path]:
    """The files that match, the newest last; of shards, those of the newest way to split."""
    matches = [Path(name) for pattern in patterns for name in glob(pattern)]
    paths = sorted(matches, key=_modified)
    split = next((n for path in paths[::-1] if (n := _shards(path))), None)
    return [path for path in paths if _shards(path) in (None, split)]


def _shards(path: Path) -> int | None:
    """The number of shards that the file is one of, if it is."""
    found = SHARD.search(path.name)
    return int(found[1]) if found else None


def _modified(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _tail(path: Path) -> str:
    """The end of a file as text."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")
    return ""
