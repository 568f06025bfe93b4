"""What of an experiment is done, running, failed, interrupted and missing, by its files alone.

Nothing is asked of Snakemake, of a scheduler or of a process, so that it makes no difference where
the jobs run. Snakemake's markers of incomplete files are not read: they stay when a job is
interrupted, and so do not tell whether it runs. Of each job, what holds first decides:

- failed: its record holds the reason of a failure in place of metrics, see `qcsbm.runtime.failure`;
- stale: its record is of another specification than the experiment file's, or data were prepared
  from other files than there are now;
- done: its record exists. Stages write it last;
- failed: one of its logs holds an error;
- running: the newest of its logs and saved states was modified within the last `SILENCE_S` seconds,
  and does not say that the job was interrupted;
- interrupted: there is a log or a saved state. A batch that takes longer than `SILENCE_S` looks
  like that, too; and a job that was killed without a word seems to run for that long;
- missing: there is neither.

Logs with a benchmark that is not older are left out: Snakemake writes it when a job ends well, be
it that of a shard while others wait for their turn.

Progress of a training comes from the last progress bar of its log while it runs, else from the
state that it would go on from, else from the last checkpoint. A file that vanishes or is damaged
counts as one that is not there. No torch is imported, as it takes seconds.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from glob import glob
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tabulate import tabulate

from qcsbm.experiment import layout, specification
from qcsbm.experiment.experiment import Experiment
from qcsbm.runtime import failure
from qcsbm.runtime.provenance import read_record
from qcsbm.schema.specifications import Specification

STATES = ("done", "running", "failed", "interrupted", "stale", "missing")
ENDED = ("done", "stale")
SILENCE_S = 300.0
# More than any traceback takes.
TAIL_BYTES = 1 << 16

# Progress bars share their line with what is written before they are closed, and are drawn once
# more behind it: none of these expressions is bound to the start of a line or the end of a file.
BAR = re.compile(
    r"(\d+)/\d+ \[[^],]*, +(?:(\d+\.\d+)(it/s|s/it)|\?it/s)(?:, dsm (\d+\.\d+))?[^]]*\]"
)
SENTENCE = re.compile(r"qcsbm [\w-]+: (.+)")
TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+(?!Keyboard)(\S.*)")
INTERRUPTED = re.compile(r"KeyboardInterrupt|SIG[A-Z]+: saved step")
SHARD = re.compile(r"\d+-of-(\d+)\.")


@dataclass(frozen=True)
class Job:
    """One piece of work, with all of its shards: how its end and its life are known.

    Patterns match its ``record``, or what takes the place of one, ``logs``, and saved ``states``.
    ``specification`` is what the record has to be of, where it is a record.
    """

    stage: str
    run: str
    record: str
    logs: tuple[str, ...]
    states: tuple[str, ...] = ()
    specification: Specification | None = field(default=None, hash=False, compare=False)


@dataclass(frozen=True)
class Status:
    """One of `STATES`, and the sentence that says why a job failed."""

    state: str
    reason: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a training is; None stands for what is not known. ``rate`` is in steps/s."""

    step: int | None = None
    rate: float | None = None
    dsm: float | None = None


def jobs(experiment: Experiment, dataset: str) -> list[Job]:
    """Everything that must be computed for ``dataset`` before tables and figures can be made."""
    data, logs = f"{experiment.root}/data/{dataset}", f"{experiment.root}/logs/{dataset}"
    cells = [experiment.cells[dataset, method] for method in experiment.methods]
    spec = specification.prepare(experiment, dataset)
    log = f"{logs}/prepare.log"
    found = [Job("prepare", dataset, f"{data}/data.json", (log,), specification=spec)]
    if any(cell.quality.extractor == "classifier" for cell in cells):
        record, log = f"{data}/classifier.json", f"{logs}/classifier.log"
        spec = specification.classifier(experiment, dataset)
        found.append(Job("classifier", dataset, record, (log,), specification=spec))
    for name in dict.fromkeys(f"{c.quality.extractor}.{c.quality.reference}" for c in cells):
        features, log = f"{data}/features/{name}.*.npz", f"{logs}/features.{name}.*.log"
        found.append(Job("reference features", dataset, features, (log,)))
    for method in experiment.methods:
        for seed in experiment.seeds[dataset]:
            found += trainings(experiment, dataset, method, seed)
            found += _measurements(experiment, dataset, method, seed)
    return found


def trainings(experiment: Experiment, dataset: str, method: str, seed: int) -> list[Job]:
    """The segments of a training, in order; none if its only checkpoint is an imported one."""
    run = f"{dataset}/{method}/seed{seed}"
    folder = layout.run(experiment, dataset, method, seed)
    logs = f"{experiment.root}/logs/{run}"
    return [
        Job(
            "train",
            run,
            f"{folder}/step{stop}.json",
            (f"{logs}/train{stop}.log",),
            (f"{folder}/step{stop}.state/*.safetensors",),
            specification.train(experiment, dataset, method, seed, stop),
        )
        for stop in experiment.cells[dataset, method].stops
        if not experiment.imported(dataset, method, stop)
    ]


def _measurements(experiment: Experiment, dataset: str, method: str, seed: int) -> list[Job]:
    run = f"{dataset}/{method}/seed{seed}"
    folder = layout.run(experiment, dataset, method, seed)
    logs = f"{experiment.root}/logs/{run}"
    specs = specification.of_run(experiment, dataset, method, seed)
    measured = []
    for sampler in experiment.samplers:
        for stage, others in [("sample", ("gather_sample",)), ("quality", ("features",))]:
            patterns = tuple(f"{logs}/{sampler}/{name}*.log" for name in (stage, *others))
            measured.append((f"{stage} {sampler}", f"{sampler}/{stage}.json", patterns))
    for stage in ("likelihood", "asymmetry"):
        patterns = (f"{logs}/{stage}*.log", f"{logs}/gather_{stage}*.log")
        measured.append((stage, f"{stage}.json", patterns))
    return [
        Job(stage, run, f"{folder}/{file}", patterns, specification=specs.get(file))
        for stage, file, patterns in measured
    ]


def status(job: Job, now: float) -> Status:
    """What has become of ``job`` at the time ``now``, in seconds since the epoch."""
    records = _paths(job.record)
    if reason := next(filter(None, map(_reason, records)), None):
        return Status("failed", reason)
    if records and len(records) == (_shards(records[-1]) or 1):
        return Status("stale" if _stale(job) else "done")
    logs = [p for p in _paths(*job.logs) if _modified(p) > _modified(p.with_suffix(".tsv"))]
    for text in map(_tail, logs[::-1]):
        if sentences := SENTENCE.findall(text) or TRACEBACK.findall(text):
            return Status("failed", sentences[-1])
    # A training saves its state before it says that it was interrupted: of equal times, the log's
    # is the later one.
    signs = sorted([*_paths(*job.states), *logs], key=_modified)
    if not signs:
        return Status("missing")
    alive = now - _modified(signs[-1]) < SILENCE_S and not INTERRUPTED.search(_tail(signs[-1]))
    return Status("running" if alive else "interrupted")


def progress(job: Job, state: str) -> Progress:
    """How far the training ``job`` in ``state`` has come; all None if it has not begun."""
    if state in ENDED:
        return _finished(job)
    saved = next(filter(None, map(_saved, _paths(*job.states)[::-1])), Progress())
    if state != "running":
        return saved
    shown = next(filter(None, map(_shown, _paths(*job.logs))), saved)
    return Progress(shown.step, shown.rate, saved.dsm if shown.dsm is None else shown.dsm)


def _finished(job: Job) -> Progress:
    """What record and learning curve say of a training that is done."""
    record = Path(job.record)
    step = rate = dsm = None
    with suppress(OSError, ValueError, KeyError, ZeroDivisionError):
        facts = read_record(record)
        step, cost = facts["protocol"]["stop"], facts["cost"]
        rate = (step - cost["started_at_step"]) / cost["wall_s"]
    with suppress(OSError, ValueError, IndexError):
        dsm = float(record.with_suffix(".csv").read_text().splitlines()[-1].split(",")[1])
    return Progress(step, rate, dsm)


def _saved(path: Path) -> Progress | None:
    """What the header of a saved state says; its tensors are not read, however large."""
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["qcsbm"])
        return Progress(header["step"], None, header["curve"][-1][1] if header["curve"] else None)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError):
        return None


def _shown(path: Path) -> Progress | None:
    """What the last progress bar of a log shows."""
    bars = BAR.findall(_tail(path))
    if not bars:
        return None
    step, number, unit, dsm = bars[-1]
    rate = None
    if number:
        rate = 1 / float(number) if unit == "s/it" else float(number)
    return Progress(int(step), rate, float(dsm) if dsm else None)


def report(experiment: Experiment, now: float) -> tuple[str, bool]:
    """All of ``experiment`` as text, and whether everything is done or has failed."""
    parts = [f"{experiment.root} at {time.strftime('%H:%M:%S', time.localtime(now))}"]
    total: Counter[str] = Counter()
    failures: dict[tuple[str, str], list[str]] = {}
    for dataset, facts in experiment.datasets.items():
        found = {job: status(job, now) for job in jobs(experiment, dataset)}
        parts += [facts.label, _trainings_table(experiment, dataset, found), _counts_table(found)]
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


def _trainings_table(experiment: Experiment, dataset: str, found: dict[Job, Status]) -> str:
    rows = []
    for method in experiment.methods:
        for seed in experiment.seeds[dataset]:
            states = {job: found[job].state for job in trainings(experiment, dataset, method, seed)}
            if states:
                steps = experiment.cells[dataset, method].steps
                rows.append([method, seed, *_training_row(states, steps)])
    headers = ["method", "seed", "step", "steps/s", "ETA", "DSM", "state"]
    align = ["left", *["right"] * 5, "left"]
    return _table(rows, headers, align)


def _training_row(states: dict[Job, str], steps: int) -> list[str]:
    """Step, rate, ETA, DSM loss and state of a training from the states of its segments."""
    segments = list(states)
    current = next((job for job in segments if states[job] not in ENDED), segments[-1])
    known = [progress(job, states[job]) for job in segments[: segments.index(current) + 1]]

    def last(name: str) -> float | None:
        values = [getattr(item, name) for item in known]
        return next((value for value in values[::-1] if value is not None), None)

    step, rate, dsm = last("step"), last("rate"), last("dsm")
    eta = ""
    if states[current] == "running" and rate:
        eta = str(timedelta(seconds=round((steps - (step or 0)) / rate)))
    return [
        f"{'–' if step is None else step}/{steps}",
        f"{rate:.3g}" if rate else "",
        eta,
        f"{dsm:.2f}" if dsm is not None else "",
        states[current],
    ]


def _counts_table(found: dict[Job, Status]) -> str:
    stages = dict.fromkeys(job.stage for job in found)
    counts = Counter((job.stage, item.state) for job, item in found.items())
    rows = [[stage, *(counts[stage, state] or "" for state in STATES)] for stage in stages]
    return _table(rows, ["stage", *STATES], ["left", *["right"] * len(STATES)])


def _table(rows: Sequence[Sequence[object]], headers: list[str], align: list[str]) -> str:
    if not rows:
        return ""
    return tabulate(rows, headers, "plain", colalign=align, disable_numparse=True)


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


def _reason(record: Path) -> str | None:
    with suppress(OSError, ValueError):
        return failure.read(record)
    return None


def _stale(job: Job) -> bool:
    """Whether the record of ``job`` is of another specification than it has to be of."""
    if job.specification is None:
        return False
    try:
        found = json.loads(Path(job.record).read_text(encoding="utf-8"))["specification"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return found != job.specification.document()


def _tail(path: Path) -> str:
    """The end of a file as text."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")
    return ""
