"""Differences between two audits, or two folders of results, and whether the second is worse.

Each difference has a 95 % interval of its own, so that of many independent ones between equal
models 2.5 % are found worse. Two audits of the same data with the same seed have their samples,
their noise and their triangles in common: differences are taken sample by sample, and those of
equal models are exactly 0.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

import torch
from scipy.special import stdtrit
from torch import Tensor

from qcsbm.auditing.force_report import ForceReport
from qcsbm.auditing.report import WIDTH, Circulation, Level, Report, aligned, interval, short
from qcsbm.conservativeness.interval import LEVEL, Interval, mean
from qcsbm.quality.metrics import METRICS, Metric
from qcsbm.runtime.errors import BadInput, MissingFile
from qcsbm.schema.specifications import Trained

AUDIT, METRICS_FILE = "audit.json", "metrics.csv"
# Columns of metrics.csv that say what is measured, not how.
IDENTITY = ("dataset", "method", "metric", "stage", "sampler")
VALUES = ("seed", "value", "stderr", "n", "unit")
# Samples of two models are not the same.
OWN = (*Trained.model_fields, "samples_sha256")

Verdict = Literal["worse", "better", "undecided", "same"]
Audit = Report | ForceReport
Source = Audit | str | Path


@dataclass(frozen=True)
class Difference:
    """``metric`` of B less that of A at ``place``, or, where ``ratio``, divided by it.

    Without an interval, as of single samples, nothing is decided.
    """

    place: str
    metric: str
    a: float
    b: float
    change: Interval
    ratio: bool
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """All differences between A and B; print it for a table."""

    differences: tuple[Difference, ...]

    @property
    def worse(self) -> bool:
        """Whether B is worse than A anywhere, beyond the interval of the difference."""
        return any(difference.verdict == "worse" for difference in self.differences)

    def __str__(self) -> str:
        rows = [["where", "metric", "A", "B", "B - A", "95 % interval", "B is"]]
        for d in self.differences:
            change, bounds = short(d.change.value), interval(d.change)
            if d.ratio:
                change, bounds = f"x {change}", f"x {bounds}" if bounds else ""
            rows.append([d.place, d.metric, short(d.a), short(d.b), change, bounds, d.verdict])
        found = [d.verdict for d in self.differences]
        counts = ", ".join(
            f"{found.count(verdict)} {verdict}"
            for verdict in ("worse", "better", "undecided", "same")
            if verdict in found
        )
        notes = [f"B against A: {counts}."]
        if any(d.ratio for d in self.differences):
            notes.append("x: of values that vary by factors, B / A.")
        lines = aligned(rows)
        if len(lines[0]) > WIDTH:
            rows = [[*row[:2], *row[4:]] for row in rows]
            lines = aligned(rows)
        if len(lines[0]) > WIDTH:
            lines = _by_place(rows)
        return "\n".join([*lines, "", *notes])


def _by_place(rows: list[list[str]]) -> list[str]:
    """Lines of ``rows``, whose first column stands above those that share it."""
    head, *below = aligned([row[1:] for row in rows])
    lines = [head]
    places = (row[0] for row in rows[1:])
    for place, group in groupby(zip(places, below, strict=True), key=itemgetter(0)):
        lines += ["", place, *(line for _, line in group)]
    return lines


def compare(a: Source, b: Source) -> Comparison:
    """What differs between two audits, or between two result folders of the workflow.

    Each is a `Report` or `ForceReport`, its JSON file, or a folder with ``audit.json`` or with
    ``metrics.csv``. Of audits, Asym, NAsym and circulation are compared at every level, of those of
    forces NAsym, λ and circulation, and less is better; of result folders every metric with a
    better direction that both have, over the seeds that both have.

    Raises:
        BadInput: they were not measured alike, so that differences mean nothing.

    >>> import torch, qcsbm
    >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> slow, fast = (qcsbm.asymmetry(lambda x: w * x @ turn - x, x) for w in (0.1, 0.2))
    >>> qcsbm.compare(slow, fast).worse, qcsbm.compare(slow, slow).worse
    (True, False)
    """
    first, second = _read(a), _read(b)
    if isinstance(first, Report) and isinstance(second, Report):
        _require_alike(first, second)
        return Comparison(tuple(_of_audits(first, second)))
    if isinstance(first, ForceReport) and isinstance(second, ForceReport):
        _require_alike_forces(first, second)
        return Comparison(tuple(_of_forces(first, second)))
    if not isinstance(first, Path) or not isinstance(second, Path):
        names = (_named(first), _named(second))
        raise BadInput(f"found {names[0]} and {names[1]}, expected two of a kind to compare")
    return Comparison(tuple(_of_results(first, second)))


def _named(source: Audit | Path) -> str:
    if isinstance(source, Path):
        return "a result folder"
    return "an audit of forces" if isinstance(source, ForceReport) else "an audit"


def _read(source: Source) -> Audit | Path:
    """An audit, or the path of a file of metrics."""
    if isinstance(source, Report | ForceReport):
        return source
    path = Path(source)
    if not path.is_dir():
        if path.name == METRICS_FILE and path.is_file():
            return path
        return _audit(path)
    for name in (AUDIT, METRICS_FILE):
        if (path / name).is_file():
            return _audit(path / name) if name == AUDIT else path / name
    raise MissingFile(f"{path}: found neither {AUDIT} nor {METRICS_FILE}, expected one of them")


def _audit(path: Path) -> Audit:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and content.get("kind") == "force":
            return ForceReport.from_json(path)
    return Report.from_json(path)


def _require_alike_forces(a: ForceReport, b: ForceReport) -> None:
    """The same structures, moved in the same way."""
    for name in ("structures", "seed", "displacement"):
        found, expected = (getattr(report.protocol, name) for report in (b, a))
        if found != expected:
            raise BadInput(f"B: found the {name} {found}, expected {expected} as in A")
    if len(a.structures) != len(b.structures):
        raise BadInput(
            f"B: found {len(b.structures)} structures, expected {len(a.structures)} as in A"
        )


def _of_forces(a: ForceReport, b: ForceReport) -> Iterator[Difference]:
    nothing = a.zero_within is not None and b.zero_within is not None
    for metric, key in (("NAsym", "nasym"), ("lambda", "lambda_")):
        first, second = (_tensor([getattr(one, key) for one in r.structures]) for r in (a, b))
        yield _difference("structures", metric, first, second, True, nothing)
    if a.circulation and b.circulation:
        yield _of_circulation("structures", a.circulation, b.circulation, True)


def _require_alike(a: Report, b: Report) -> None:
    units = ({level.circulation.unit for level in r.levels if level.circulation} for r in (a, b))
    first_unit, second_unit = units
    if first_unit and second_unit and first_unit != second_unit:
        raise BadInput(f"B: found circulation in {second_unit}, expected {first_unit} as in A")
    facts = [
        {
            "kind": r.field.kind,
            "shape of samples": r.field.shape,
            "data": r.protocol.data,
            "estimator": r.protocol.estimator,
            "dtype": r.protocol.dtype,
            "levels": [_rounded(level) for level in r.levels],
        }
        for r in (a, b)
    ]
    for name, expected in facts[0].items():
        if facts[1][name] != expected:
            raise BadInput(
                f"B: found another {name}, {facts[1][name]}, expected {expected} as in A: audits "
                "of different protocols cannot be compared"
            )


def _rounded(level: Level) -> str:
    """The noise, which two schedules may have at different times."""
    return short(level.sigma if level.sigma is not None else level.t)


def _of_audits(a: Report, b: Report) -> Iterator[Difference]:
    paired = a.protocol.seed == b.protocol.seed
    over_levels: dict[str, list[tuple[Tensor, Tensor]]] = {"Asym": [], "NAsym": []}
    for first, second in zip(a.levels, b.levels, strict=True):
        name = "sigma" if first.sigma is not None else "t"
        place = f"{name} = {_rounded(first)}" if first.t is not None else "samples"
        nothing = first.zero_within is not None and second.zero_within is not None
        for metric, pair in (
            ("Asym", (first.samples.asym, second.samples.asym)),
            ("NAsym", (first.samples.nasym, second.samples.nasym)),
        ):
            values = _tensor(pair[0]), _tensor(pair[1])
            over_levels[metric].append(values)
            yield _difference(place, metric, *values, paired, nothing)
        if first.circulation and second.circulation:
            yield _of_circulation(place, first.circulation, second.circulation, paired)
    if len(a.levels) > 1:
        nothing = a.mean.zero_within is not None and b.mean.zero_within is not None
        for metric, pairs in over_levels.items():
            firsts, seconds = (torch.stack(values).mean(0) for values in zip(*pairs, strict=True))
            yield _difference("mean", metric, firsts, seconds, paired, nothing)


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _difference(
    place: str, metric: str, a: Tensor, b: Tensor, paired: bool, nothing: bool
) -> Difference:
    """``nothing``: both are zero as far as anybody can tell."""
    change = _change(a, b, paired)
    verdict: Verdict = "same" if nothing else _verdict(change, "lower", 0.0)
    return Difference(place, metric, float(a.mean()), float(b.mean()), change, False, verdict)


def _of_circulation(place: str, a: Circulation, b: Circulation, paired: bool) -> Difference:
    """The difference of root mean squares c, as (c_b² − c_a²) / (c_a + c_b)."""
    c_a, c_b = a.rms.value, b.rms.value
    first, second = _tensor(a.values).square(), _tensor(b.values).square()
    change = _change(first, second, paired)
    total = c_a + c_b
    if total > 0:
        stderr, low, high = (
            p if p is None else p / total for p in (change.stderr, change.low, change.high)
        )
        change = Interval(change.value / total, stderr, low, high, change.n)
    verdict = _verdict(change, "lower", a.error + b.error)
    return Difference(place, "circulation", c_a, c_b, change, False, verdict)


def _change(a: Tensor, b: Tensor, paired: bool) -> Interval:
    """Mean(b) − mean(a), by Student's interval of the differences or, unpaired, by Welch's.

    References:
        The generalization of "Student's" problem when several different population variances are
        involved (Welch, 1947)
    """
    if paired:
        return mean(b - a)
    first, second = mean(a), mean(b)
    value, n = second.value - first.value, min(first.n, second.n)
    if first.stderr is None or second.stderr is None:
        return Interval(value, None, None, None, n)
    variances = first.stderr**2, second.stderr**2
    stderr = math.sqrt(sum(variances))
    if stderr == 0:
        return Interval(value, 0.0, value, value, n)
    freedom = sum(variances) ** 2 / (
        variances[0] ** 2 / (first.n - 1) + variances[1] ** 2 / (second.n - 1)
    )
    half_width = float(stdtrit(freedom, (1 + LEVEL) / 2)) * stderr
    return Interval(value, stderr, value - half_width, value + half_width, n)


def _verdict(change: Interval, better: Literal["lower", "higher"], error: float) -> Verdict:
    """What an interval says that does not contain what an ``error`` of measuring may be."""
    if change.value == 0:
        return "same"
    if change.low is None or change.high is None:
        return "undecided"
    if change.low > error:
        return "worse" if better == "lower" else "better"
    if change.high < -error:
        return "better" if better == "lower" else "worse"
    return "undecided"


Rows = dict[tuple[str, ...], dict[str, dict[str, str]]]


def _of_results(a: Path, b: Path) -> Iterator[Difference]:
    first, second = read_metrics(a), read_metrics(b)
    common = [key for key in first if key in second]
    if not common:
        raise BadInput(f"{b}: found no metric of a dataset and method that {a} has, expected some")
    for key in common:
        require_same_protocol(a, b, key, first[key], second[key], _of_the_model)
        dataset, method, metric, _, sampler = key
        seeds = sorted(first[key].keys() & second[key].keys())
        if not seeds:
            raise BadInput(
                f"{b}: found seeds {', '.join(second[key])} of {method} on {dataset}, expected one "
                f"of {', '.join(first[key])} as in {a}"
            )
        pairs = [(first[key][seed], second[key][seed]) for seed in seeds]
        place = ", ".join(name for name in (dataset, method, sampler) if name)
        yield _over_seeds(place, METRICS[metric], pairs)


def read_metrics(path: Path) -> Rows:
    """By what is measured and by seed, the rows that have a better direction.

    Raises:
        BadInput: the file is no table of metrics.
    """
    rows: Rows = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                key = tuple(row.get(name) or "" for name in IDENTITY)
                float(row["value"])
                known = METRICS.get(row["metric"])
                if known is not None and known.better is not None:
                    rows.setdefault(key, {})[row["seed"]] = row
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise BadInput(f"{path}: found no metrics ({error!r}), expected those of results") from None
    return rows


def require_same_protocol(
    a: Path,
    b: Path,
    key: tuple[str, ...],
    first: dict[str, dict[str, str]],
    second: dict[str, dict[str, str]],
    may_differ: Callable[[str], bool],
) -> None:
    """Refuse the rows of ``key`` in ``b`` that were measured in another way than those in ``a``.

    Columns of which ``may_differ`` says so do not count.

    Raises:
        BadInput: they were.
    """
    found, expected = (_protocols(rows, may_differ) for rows in (second, first))
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name, {""}) != expected.get(name, {""}):
            values = [", ".join(sorted(facts.get(name, {""}))) for facts in (found, expected)]
            raise BadInput(
                f"{b}: found {name} {values[0] or 'not given'} for {key[2]} of {key[1]} on "
                f"{key[0]}, expected {values[1] or 'none'} as in {a}: metrics of different "
                "protocols cannot be compared"
            )


def _protocols(
    rows: dict[str, dict[str, str]], may_differ: Callable[[str], bool]
) -> dict[str, set[str]]:
    """The values of every column that says how a metric was measured."""
    columns: dict[str, set[str]] = {}
    for row in rows.values():
        for name, value in row.items():
            if name not in (*IDENTITY, *VALUES) and not may_differ(name):
                columns.setdefault(name, set()).add(_plain(value or ""))
    return columns


def _plain(text: str) -> str:
    """A number as it is written alone: in a column with gaps 64 is written 64.0."""
    return text.removesuffix(".0")


def _of_the_model(column: str) -> bool:
    return column in OWN or column.startswith("regulariser")


def _over_seeds(
    place: str, metric: Metric, pairs: list[tuple[dict[str, str], dict[str, str]]]
) -> Difference:
    """Over several seeds their differences tell, of one alone the errors within its runs."""
    a, b = (_tensor([float(pair[side]["value"]) for pair in pairs]) for side in (0, 1))
    ratio = metric.ratio and bool((a > 0).all() and (b > 0).all())
    scale = torch.log if ratio else torch.clone
    change = mean(scale(b) - scale(a))
    if len(pairs) == 1:
        change = _within_runs(change.value, *pairs[0], ratio)
    assert metric.better is not None
    verdict = _verdict(change, metric.better, 0.0)
    if ratio:
        parts = [v if v is None else math.exp(v) for v in (change.value, change.low, change.high)]
        assert parts[0] is not None
        change = Interval(parts[0], change.stderr, parts[1], parts[2], change.n)
    return Difference(place, metric.name, float(a.mean()), float(b.mean()), change, ratio, verdict)


def _within_runs(value: float, a: dict[str, str], b: dict[str, str], ratio: bool) -> Interval:
    errors = [row.get("stderr") or "" for row in (a, b)]
    if "" in errors:
        return Interval(value, None, None, None, 1)
    scales = [abs(float(row["value"])) if ratio else 1.0 for row in (a, b)]
    stderr = math.hypot(*(float(e) / scale for e, scale in zip(errors, scales, strict=True)))
    half_width = NORMAL * stderr
    return Interval(value, stderr, value - half_width, value + half_width, 1)


# Half the width of a normal distribution's 95 % interval, in standard deviations.
NORMAL = 1.96
