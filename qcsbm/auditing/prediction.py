r"""Whether a run reproduces a study: its means beside prediction intervals of the study's seeds.

A mean of m new seeds lies in

.. math:: \bar x \pm t_{n-1} \, s \sqrt{1/n + 1/m}

in 95 of 100 cases, where the study's n seeds have the mean x̄ and the standard deviation s, and
values of seeds are normal and independent. Of values that vary by factors these are the logarithms.
Of the study's own seeds, whose data and noise are the same, a new run is closer than that.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from qcsbm.auditing.compare import METRICS_FILE, read_metrics, require_same_protocol
from qcsbm.auditing.report import WIDTH, aligned, short, wrapped
from qcsbm.conservativeness.interval import LEVEL
from qcsbm.quality.metrics import METRICS
from qcsbm.runtime.errors import BadInput, MissingFile

# What is in the folder of a collected study, beside its numbers.
PIECE = "piece.json"
# What another machine computes with other roundings: samples, and the classifier among extractors.
DIFFERENT = ("samples_sha256", "extractor_sha256", "extractor_accuracy")


@dataclass(frozen=True)
class Prediction:
    """A mean over ``seeds`` new seeds, the study's, and where the former was to be expected.

    ``p`` is that of a mean at least as far from the study's. ``same``: the new values are those
    that the study has of the same seeds, to all digits.
    """

    method: str
    metric: str
    sampler: str
    study: float
    new: float
    seeds: int
    low: float
    high: float
    p: float
    same: bool


@dataclass(frozen=True)
class Reproduction:
    """All ``predictions``, and how many numbers of the study have none; print it for a table."""

    predictions: tuple[Prediction, ...]
    missing: int

    def verdict(self, prediction: Prediction) -> Literal["in", "out", "far out"]:
        """Far out: beyond what one of all these numbers together reaches in 5 of 100 runs."""
        if prediction.p >= 1 - LEVEL:
            return "in"
        return "far out" if prediction.p < (1 - LEVEL) / len(self.predictions) else "out"

    @property
    def failed(self) -> bool:
        """Whether a number is far out."""
        return any(self.verdict(p) == "far out" for p in self.predictions)

    def __str__(self) -> str:
        rows = [["method", "metric", "sampler", "study", "here", "95 % interval", ""]]
        for p in self.predictions:
            bounds = f"[{short(p.low)}, {short(p.high)}]"
            place = [p.method, p.metric, p.sampler]
            rows.append([*place, short(p.study), short(p.new), bounds, self.verdict(p)])
        lines = aligned(rows)
        if max(map(len, lines)) > WIDTH:
            lines = aligned([[*row[:3], *row[4:]] for row in rows])
        found = [self.verdict(p) for p in self.predictions]
        total, seeds = len(found), sorted({p.seeds for p in self.predictions})
        notes = [
            f"Within the prediction interval: {found.count('in')} of {total} numbers, each a mean "
            f"over {' or '.join(map(str, seeds))} seeds. Outside are {total - found.count('in')}; "
            f"{(1 - LEVEL) * total:.1f} are to be expected of as many new seeds.",
            f"Far out: {found.count('far out')}. Of all {total} together, one or more are so in at "
            "most 5 of 100 runs.",
        ]
        if same := sum(p.same for p in self.predictions):
            notes.append(f"Equal to the study's numbers of the same seeds, to all digits: {same}.")
        if self.missing:
            notes.append(f"Not measured here: {self.missing} numbers of the study.")
        return "\n".join([*lines, "", *(line for note in notes for line in wrapped(note))])


def is_study(path: Path) -> bool:
    """Whether ``path`` is the folder of a collected study."""
    return (path / PIECE).is_file()


def reproduce(study: Path, new: Path) -> Reproduction:
    """Compare the folders of a collected ``study`` and of a ``new`` run of the same experiment.

    Raises:
        BadInput: they have no number in common, or were not measured alike.
    """
    paths = study / METRICS_FILE, new if new.name == METRICS_FILE else new / METRICS_FILE
    for path in paths:
        if not path.is_file():
            raise MissingFile(f"{path}: found no such file, expected the metrics of a run")
    first, second = (
        {key: rows for key, rows in read_metrics(path).items() if METRICS[key[2]].heading}
        for path in paths
    )
    common = [key for key in first if key in second]
    if not common:
        raise BadInput(f"{paths[1]}: found no metric of the study {paths[0]}, expected some")
    found = []
    for key in common:
        require_same_protocol(*paths, key, first[key], second[key], DIFFERENT.__contains__)
        values = [
            {seed: float(row["value"]) for seed, row in rows.items()}
            for rows in (first[key], second[key])
        ]
        if len(values[0]) < 2:
            raise BadInput(f"{paths[0]}: found one seed of {key[1]}, expected at least 2")
        found.append(predicted(key, *values))
    return Reproduction(tuple(found), len(first) - len(common))


def predicted(key: tuple[str, ...], study: dict[str, float], new: dict[str, float]) -> Prediction:
    """From values by seed."""
    _, method, metric, _, sampler = key
    n, m = len(study), len(new)
    logarithms = METRICS[metric].ratio and min(*study.values(), *new.values()) > 0
    scale, back = (np.log, np.exp) if logarithms else (np.asarray, np.asarray)
    old, ours = (scale(np.array(list(values.values()))) for values in (study, new))
    spread = float(old.std(ddof=1)) * math.sqrt(1 / n + 1 / m)
    difference = float(ours.mean() - old.mean())
    half_width = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * spread
    if old.min() < old.max():
        p = 2 * float(stdtr(n - 1, -abs(difference) / spread))
    else:  # as the number of steps of a sampler
        p = float((ours == old[0]).all())
    low, high = (float(back(old.mean() + side * half_width)) for side in (-1, 1))
    same = all(study.get(seed) == value for seed, value in new.items())
    mean, mean_here = (float(back(values.mean())) for values in (old, ours))
    return Prediction(method, metric, sampler, mean, mean_here, m, low, high, p, same)
