"""Every metric, in one table: its heading and unit, which way is better, and what it needs.

Records take their units from here, tables their columns in this order, claims and pictures the
headings and the direction. A metric that is computed from features has two names: only with those
of the Inception network is a Fréchet distance an FID.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """What all values of a metric have in common.

    It ``needs`` a model and test images, the density of the data, labels, generated samples, their
    features, or their features by the Inception network; with these, a metric of features has the
    name ``inception``. One without ``heading`` is in `metrics.csv` and in no table.

    ``ratio``: its values are positive and vary by factors, so that two are compared by their ratio.
    ``bias`` says how the value of finitely many samples differs from that of infinitely many;
    ``unbiased`` names the metric that is free of it.
    """

    name: str
    heading: str
    better: Literal["lower", "higher"] | None
    needs: Literal["model", "density", "labels", "samples", "features", "inception"]
    inception: str | None = None
    unit: str = "1"
    ratio: bool = False
    bias: str | None = None
    unbiased: str | None = None

    @property
    def column(self) -> str:
        """The heading, with an arrow towards the better."""
        arrow = {"lower": " ↓", "higher": " ↑", None: ""}[self.better]
        return f"{self.heading}{arrow}"


_LARGE = "too large on average"
_SMALL = "too small on average, by much if there are many classes"
_BELOW_1 = (
    "below 1 even where distributions are equal: then it is 1 − (1 + M/N)⁻ᵏ on average, with M "
    "samples, N real images and k neighbours"
)
_TABLE = (
    Metric("accuracy", "", "higher", "labels"),
    Metric("score_error", "Score error", "lower", "density"),
    Metric("nll_nats", "NLL (nats)", "lower", "density", unit="nats"),
    Metric("nll_excess", "NLL − exact", "lower", "density", unit="nats"),
    Metric("nll", "NLL (bits/dim)", "lower", "model", unit="bits/dim"),
    Metric("nll_nfe", "", "lower", "model", unit="evaluations"),
    Metric("asym", "Asym", "lower", "model", ratio=True),
    Metric("nasym", "NAsym", "lower", "model", ratio=True),
    Metric("circulation", "Circulation (nats)", "lower", "model", unit="nats", ratio=True),
    Metric("nfe", "NFE", "lower", "samples", unit="evaluations"),
    Metric("fid", "FID", "lower", "inception", ratio=True, bias=_LARGE, unbiased="fid_infinity"),
    Metric("fd", "FD", "lower", "features", "fid", ratio=True, bias=_LARGE, unbiased="fd_infinity"),
    Metric("fid_infinity", "", "lower", "inception"),
    Metric("fd_infinity", "", "lower", "features", "fid_infinity"),
    Metric("kid", "KID", "lower", "inception"),
    Metric("kd", "KD", "lower", "features", "kid"),
    Metric("is", "IS", "higher", "inception", bias=_SMALL),
    Metric("cs", "CS", "higher", "features", "is", bias=_SMALL),
    Metric("precision", "Prec.", "higher", "features"),
    Metric("recall", "Rec.", "higher", "features"),
    Metric("density", "Density", "higher", "features"),
    Metric("coverage", "Coverage", "higher", "features", bias=_BELOW_1),
)
METRICS = {metric.name: metric for metric in _TABLE}

# The columns of a table of models and of one of samples.
OF_MODELS = [m.name for m in _TABLE if m.heading and m.needs == "model"]
OF_SAMPLES = [
    m.name for m in _TABLE if m.heading and m.needs in ("samples", "features", "inception")
]
# What models are compared by; of metrics of features, the name without the Inception network.
COMPARED = [
    m.name for m in _TABLE if m.heading and m.better and m.needs in ("model", "samples", "features")
]


def named(metric: str, extractor: str) -> str:
    """What ``metric`` is called with features of ``extractor``."""
    return (METRICS[metric].inception if extractor == "inception" else None) or metric


def names(metric: str) -> list[str]:
    """All names of ``metric``, the one with features of the Inception network first."""
    return [name for name in (METRICS[metric].inception, metric) if name]
