"""The paper's claims as predicates on what was measured, and what the measurements say of them.

A claim says which sign an effect has. An effect is the difference between a model and its control,
the unregularised score model that was trained alike and for as many steps, or between two fields.
Differences are paired: models of one seed saw the same data and noise. Asym, NAsym and the Fréchet
distance are positive and vary over seeds by factors; differences are taken of their logarithms and
shown as ratios. With three to five seeds and log-normal values of standard deviation 0.5 and 1,
Student's interval of a ratio covers the truth 95 times in 100, that of a difference 93 and 82.

With the 95 % interval of Student's t over seeds, a claim **holds** if the whole interval has its
sign, **fails** if the whole interval has the other one, and is **undecided** otherwise, as it is
with a single seed.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023);
    https://arxiv.org/abs/2209.12753
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from qcsbm.quality.metrics import METRICS, OF_SAMPLES, names
from qcsbm.report import tables
from qcsbm.report.intervals import t_interval
from qcsbm.report.pages import Section
from qcsbm.schema.samplers import sampler_label
from qcsbm.schema.specifications import ClaimsSpec, Compared

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"

LIMITS = "A conservative parameterisation limits what the model can learn"
LOWERS = "L_QC lowers the asymmetry"
GAINS_NLL = "L_QC improves likelihood"
GAINS_QUALITY = "L_QC improves samples"
COSTS_STEPS = "At equal error, non-conservativeness costs sampling steps"
UNTIED = "A model can be conservative without tied weights"
IF_AND_ONLY_IF = "The autoencoder is conservative if and only if RWᵀ = WRᵀ"

# For each kind of model: what is claimed, of which metrics, and whether they are better than the
# control's.
ABOUT_MODELS: dict[str, list[tuple[str, list[str], bool]]] = {
    "conservative": [(LIMITS, ["nll", "fd"], False)],
    "regularised": [
        (LOWERS, ["asym", "nasym"], True),
        (GAINS_NLL, ["nll"], True),
        (GAINS_QUALITY, ["fd", "cs", "precision", "recall"], True),
    ],
}


@dataclass(frozen=True)
class Judgement:
    """A claim on ``subject``, the ``effect`` that was measured and its interval, and the verdict.

    The effect is a mean difference, or a geometric mean ratio, as ``scale`` says; ``n`` is the
    number of pairs. ``effect`` is None if there are none, ``low`` and ``high`` are None if there
    are fewer than two. ``why`` explains a verdict that needs it.
    """

    claim: str
    topic: str
    subject: str
    measure: str
    scale: str
    effect: float | None
    low: float | None
    high: float | None
    n: int
    verdict: str
    why: str = ""


def judge(
    claim: str,
    topic: str,
    subject: str,
    measure: str,
    differences: Sequence[float],
    sign: int,
    scale: str = "difference",
) -> Judgement:
    """The judgement of a claim that the mean of ``differences`` (n,) has this ``sign``.

    With the ``scale`` "ratio" they are differences of logarithms.
    """
    shown, none = (_exp, 1) if scale == "ratio" else (float, 0)
    n = len(differences)
    mean = float(np.mean(differences)) if n else None
    interval = t_interval(differences)
    effect, low, high = (
        None if value is None else shown(value) for value in (mean, *(interval or (None, None)))
    )
    verdict, why = UNDECIDED, f"the interval contains {none}"
    if interval is None:
        why = "one seed" if n else "not measured"
    elif interval[0] > 0 or interval[1] < 0:
        verdict, why = (HOLDS if sign * interval[0] > 0 else FAILS), ""
    return Judgement(claim, topic, subject, measure, scale, effect, low, high, n, verdict, why)


def _exp(value: float) -> float:
    """e to the ``value``, or the largest such number that JSON can hold."""
    return math.exp(min(value, 709.0))


def about_models(metrics: pd.DataFrame, spec: ClaimsSpec) -> list[Judgement]:
    """Judgements on the models of every dataset of ``spec``.

    ``metrics`` is the frame of `qcsbm.report.tables.tidy`.
    """
    # Where no samples were measured there is no column for their sampler.
    metrics = metrics.reindex(columns=metrics.columns.union(["sampler"]))
    judgements = []
    for dataset in spec.datasets:
        rows = metrics[metrics["dataset"] == dataset.dataset]
        for compared in dataset.comparisons:
            judgements += compare(rows, dataset.label, compared, spec.samplers)
    return judgements


def compare(
    rows: pd.DataFrame, topic: str, compared: Compared, samplers: Iterable[str]
) -> list[Judgement]:
    """All claims on one model against its control, from the numbers of one dataset."""
    judgements = []
    for claim, metrics, better in ABOUT_MODELS[compared.kind]:
        for claimed in metrics:
            # Under which name it was measured depends on the network that extracts features.
            measured = [name for name in names(claimed) if (rows["metric"] == name).any()]
            for alternatives in [[name] for name in measured] or [names(claimed)]:
                metric = alternatives[0]
                heading = " or ".join(METRICS[name].heading for name in alternatives)
                sign = (1 if METRICS[metric].better == "higher" else -1) * (1 if better else -1)
                for sampler in samplers if metric in OF_SAMPLES else [None]:
                    measure = f"{heading}, {sampler_label(sampler)}" if sampler else heading
                    of_method, of_control = paired(
                        rows, metric, sampler, compared.method, compared.control
                    )
                    what = (claim, topic, compared.subject, measure)
                    judgements.append(_compared(what, metric, of_method, of_control, sign))
    return judgements


def _compared(
    what: tuple[str, str, str, str],
    metric: str,
    of_method: np.ndarray,
    of_control: np.ndarray,
    sign: int,
) -> Judgement:
    if not METRICS[metric].ratio:
        return judge(*what, of_method - of_control, sign)
    if (np.minimum(of_method, of_control) <= 0).any():
        why = "a value that is not positive has no ratio"
        return Judgement(*what, "ratio", None, None, None, len(of_method), UNDECIDED, why)
    return judge(*what, np.log(of_method / of_control), sign, "ratio")


def paired(
    rows: pd.DataFrame, metric: str, sampler: str | None, method: str, control: str
) -> tuple[np.ndarray, np.ndarray]:
    """Values of ``method`` and of ``control``, each (n,), of the n seeds that both have."""
    rows = rows[rows["metric"] == metric]
    if sampler:
        rows = rows[rows["sampler"] == sampler]
    of_method, of_control = (
        rows[rows["method"] == name].set_index("seed")["value"] for name in (method, control)
    )
    pairs = pd.concat([of_method, of_control], axis=1, join="inner").dropna().sort_index()
    return tuple(pairs.to_numpy(dtype=float).T)


def about_steps(starts: pd.DataFrame, paper_size: float) -> list[Judgement]:
    """Judgements on Figure 1, from step counts by field, ε, step size h and set of starts.

    At the paper's step size for every ε, and at the largest ε for every step size.
    """
    counts = starts.pivot(index=["epsilon", "h", "seed"], columns="field", values="steps")
    differences = counts["non-conservative"] - counts["conservative"]
    largest = starts["epsilon"].max()
    judgements = []
    for (epsilon, h), values in differences.groupby(["epsilon", "h"]):
        if h == paper_size or epsilon == largest:
            whose = ", the paper's" if h == paper_size else ""
            subject = f"ε = {epsilon:g}, h = {h:g}{whose}"
            judgements.append(judge(COSTS_STEPS, "Figure 1", subject, "steps", values.tolist(), +1))
    return judgements


def about_tying(outcomes: pd.DataFrame, counterexample: float) -> list[Judgement]:
    """Judgements on Figure 4, from the ``outcomes`` of its seeds.

    ``counterexample`` is L_QC of weights with a symmetric RWᵀ; one that is not zero refutes the
    claim of sufficiency, without any statistics.
    """
    untied = outcomes[~outcomes["tied"]]
    conservative = untied[untied["route"] != "none"]
    subject = f"the {len(conservative)} of {len(untied)} seeds that became conservative"
    existence = judge(UNTIED, "Figure 4", subject, "‖W − R‖", conservative["untying"].tolist(), +1)
    refuted = Judgement(
        IF_AND_ONLY_IF,
        "Figure 4",
        "W = I, R = [[1, 2], [2, −1]]",
        "L_QC",
        "difference",
        counterexample,
        None,
        None,
        1,
        FAILS if counterexample > 0 else UNDECIDED,
        "necessary, not sufficient: an exact counterexample",
    )
    return [existence, refuted]


def of_the_paper(spec: ClaimsSpec) -> list[Judgement]:
    """What the paper's own tables say on the datasets of ``spec``; they have no seeds."""
    judgements = []
    for dataset in spec.datasets:
        rows = printed(dataset.dataset)
        if rows.empty:
            continue
        samplers = sorted(rows["sampler"].dropna().unique())
        topic = f"{dataset.label}: the paper's own numbers"
        for method, theirs in tables.PAPER_METHODS.items():
            if method != "u":
                compared = Compared(
                    kind="regularised" if method == "qc" else "conservative",
                    method=method,
                    control="u",
                    subject=f"{theirs} against {tables.PAPER_METHODS['u']}",
                )
                judgements += compare(rows, topic, compared, samplers)
    return judgements


def printed(dataset: str) -> pd.DataFrame:
    """The numbers of the paper's Tables 2 and 3 on ``dataset``, as if they were those of a seed."""
    rows = [
        (method, 0, metric, sampler, float(text))
        for sampler in (None, "pc", "ode")
        for (method, metric), text in tables.printed(dataset, sampler).items()
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "metric", "sampler", "value"])


def document(judgements: Sequence[Judgement], spec: ClaimsSpec) -> dict[str, Any]:
    """Everything, for JSON."""
    return {"claims": [asdict(judgement) for judgement in judgements], "alone": spec.alone}


def sections(judgements: Sequence[Judgement], spec: ClaimsSpec) -> list[Section]:
    """A summary of verdicts by claim, then a table for each topic and claim."""
    verdicts = (HOLDS, FAILS, UNDECIDED)
    claims = dict.fromkeys(judgement.claim for judgement in judgements)
    summary = [
        [claim]
        + [
            str(sum(j.claim == claim and j.verdict == verdict for j in judgements))
            for verdict in verdicts
        ]
        for claim in claims
    ]
    notes = [
        "Effects compare a model with its control, which has the same seed, steps, data and noise. "
        "× marks ratios, which are those of Asym, NAsym and the Fréchet distance; all other "
        "effects are differences. Intervals are Student's at 95 % over seeds, and those of ratios "
        "are computed on logarithms. A claim holds or fails only if the whole interval lies on one "
        "side of no effect, which is a ratio of 1 or a difference of 0. With one seed it is "
        "undecided.",
        "Every interval is at 95 % by itself: where there is no effect at all, one comparison in "
        "twenty is decided by chance.",
        *(f"{subject}: no model was trained alike to compare with." for subject in spec.alone),
    ]
    found = [Section("Verdicts", ["Claim", *verdicts], summary, notes)]
    columns = ["Of", "Effect on", "Effect", "95 % interval", "n", "Verdict"]
    for topic, claim in dict.fromkeys((j.topic, j.claim) for j in judgements):
        rows = [
            [j.subject, j.measure, _effect(j, j.effect), _interval(j), str(j.n), _verdict(j)]
            for j in judgements
            if (j.topic, j.claim) == (topic, claim)
        ]
        found.append(Section(f"{topic}: {claim}", columns, rows, left=2))
    return found


def _effect(judgement: Judgement, value: float | None) -> str:
    if value is None:
        return "—"
    text = tables.format_value(value, None)
    if judgement.scale == "ratio":
        return f"× {text}"
    return f"+{text}" if value > 0 else text


def _interval(judgement: Judgement) -> str:
    if judgement.low is None:
        return "—"
    return f"{_effect(judgement, judgement.low)} to {_effect(judgement, judgement.high)}"


def _verdict(judgement: Judgement) -> str:
    return judgement.verdict + (f" ({judgement.why})" if judgement.why else "")
