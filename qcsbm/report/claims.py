"""The paper's claims as predicates on what was measured, and what the measurements say of them.

A claim says which sign an effect has. An effect is the difference between a model and its control,
the unregularised score model that was trained alike and for as many steps, or between two fields.
Differences are paired: models of one seed saw the same data and noise. Asym, NAsym and the Fréchet
distance are positive and vary over seeds by factors; differences are taken of their logarithms and
shown as ratios. With three to five seeds and log-normal values of standard deviation 0.5 and 1,
Student's interval of a ratio covers the truth 95 times in 100, that of a difference 93 and 82.

With the 95 % interval of Student's t over seeds, a claim **holds** if the whole interval has its
sign, **fails** if the whole interval has the other one, and is **undecided** otherwise, as it is
with a single seed. The same is said by Student's p below 0.05. In a family that the experiment file
declares, p is first adjusted by Holm's procedure, so that in 95 of 100 studies nothing is decided
where there is no effect. Beside an undecided claim stands the effect that would have been found in
80 of 100 studies, if the standard deviation over seeds is the one that was measured.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023);
    https://arxiv.org/abs/2209.12753
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from qcsbm.quality.metrics import METRICS, OF_SAMPLES, names
from qcsbm.report import tables
from qcsbm.report.intervals import LEVEL, detectable, holm, t_interval, t_test
from qcsbm.report.pages import Section
from qcsbm.schema.samplers import sampler_label
from qcsbm.schema.specifications import ClaimsSpec, Compared, ComparedDataset, Family

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"

LIMITS = "A conservative parameterisation limits what the model can learn"
LOWERS = "L_QC lowers the asymmetry"
GAINS_NLL = "L_QC improves likelihood"
GAINS_QUALITY = "L_QC improves samples"
COSTS_STEPS = "At equal error, non-conservativeness costs sampling steps"
BETTER = "Without a claim of the paper: the first is better than the second"
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
    "other": [],
}
# Of these metrics, the paper claims of the same kind of model what it claims of the others.
ALSO = {"circulation": "asym", "kd": "fd", "density": "precision", "coverage": "recall"}


@dataclass(frozen=True)
class Judgement:
    """A claim on ``subject``, the ``effect`` that was measured and its interval, and the verdict.

    The effect is a mean difference, or a geometric mean ratio, as ``scale`` says; ``n`` is the
    number of pairs. ``effect`` is None if there are none, ``low``, ``high`` and ``p`` are None if
    there are fewer than two. ``why`` explains a verdict that needs it.

    The verdict is by ``adjusted_p``, which is ``p`` outside a ``family``. ``detectable`` is the
    smallest effect of either sign that would have been found with a power of 80 %; as a ratio it
    is above 1. ``seconds`` are core-seconds of training of the model and of its control, means over
    seeds.
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
    p: float | None = None
    adjusted_p: float | None = None
    detectable: float | None = None
    family: str | None = None
    seconds: tuple[float, float] | None = None


def judge(
    claim: str,
    topic: str,
    subject: str,
    measure: str,
    differences: Sequence[float],
    sign: int,
    scale: str = "difference",
    m: int = 1,
) -> Judgement:
    """The judgement of a claim that the mean of ``differences`` (n,) has this ``sign``.

    With the ``scale`` "ratio" they are differences of logarithms. What is detectable is so in a
    family of ``m``; the verdict is that of the comparison by itself.
    """
    shown, none = (_exp, 1) if scale == "ratio" else (float, 0)
    n = len(differences)
    mean = float(np.mean(differences)) if n else None
    interval, p = t_interval(differences), t_test(differences)
    effect, low, high = (
        None if value is None else shown(value) for value in (mean, *(interval or (None, None)))
    )
    verdict, why, least = UNDECIDED, f"the interval contains {none}", None
    if interval is None:
        why = "one seed" if n else "not measured"
    else:
        least = shown(detectable(float(np.std(differences, ddof=1)), n, m))
        if interval[0] > 0 or interval[1] < 0:
            verdict, why = (HOLDS if sign * interval[0] > 0 else FAILS), ""
    what = (claim, topic, subject, measure, scale, effect, low, high, n, verdict, why)
    return Judgement(*what, p, p, least)


def corrected(judgements: Sequence[Judgement], family: str) -> list[Judgement]:
    """The ``judgements`` of a whole family, with Holm's correction."""
    tested = [j for j in judgements if j.p is not None]
    adjusted = iter(holm([j.p for j in tested if j.p is not None], len(judgements)))
    found = []
    for judgement in judgements:
        changed: dict[str, Any] = {"family": family}
        if judgement.p is not None:
            changed["adjusted_p"] = next(adjusted)
            if judgement.verdict != UNDECIDED and changed["adjusted_p"] >= 1 - LEVEL:
                changed |= {"verdict": UNDECIDED, "why": "after Holm's correction"}
        found.append(replace(judgement, **changed))
    return found


def _exp(value: float) -> float:
    """e to the ``value``, or the largest such number that JSON can hold."""
    return math.exp(min(value, 709.0))


def about_models(
    metrics: pd.DataFrame, spec: ClaimsSpec, seconds: pd.DataFrame | None = None
) -> list[Judgement]:
    """Judgements on the models of every dataset of ``spec``.

    ``metrics`` is the frame of `qcsbm.report.tables.tidy`. ``seconds`` has those of training, with
    the columns dataset, method, seed and seconds.
    """
    # Where no samples were measured there is no column for their sampler.
    metrics = metrics.reindex(columns=metrics.columns.union(["sampler"]))
    judgements = []
    for dataset in spec.datasets:
        rows = metrics[metrics["dataset"] == dataset.dataset]
        for compared in dataset.comparisons:
            judgements += compare(rows, dataset.label, compared, spec.samplers)
        for family in dataset.families:
            judgements += _of_family(rows, dataset, family, seconds)
    return judgements


def _of_family(
    rows: pd.DataFrame, dataset: ComparedDataset, family: Family, seconds: pd.DataFrame | None
) -> list[Judgement]:
    """All judgements of one ``family``, from the numbers of its dataset."""
    wanted = [
        (compared, metric, sampler)
        for metric in family.metrics
        for sampler in (family.samplers if metric in OF_SAMPLES else [None])
        for compared in family.comparisons
    ]
    judgements = []
    for compared, metric, sampler in wanted:
        claim, better = _claimed(compared.kind, metric)
        found = _on(rows, dataset.label, compared, claim, metric, sampler, better, len(wanted))
        judgements += [replace(j, seconds=_seconds(seconds, dataset, compared)) for j in found]
    return corrected(judgements, family.name)


def _claimed(kind: str, metric: str) -> tuple[str, bool]:
    """What the paper claims of a metric, and whether that is to be better than the control."""
    for claim, metrics, better in ABOUT_MODELS[kind]:
        if ALSO.get(metric, metric) in metrics:
            return claim, better
    return BETTER, True


def _seconds(
    seconds: pd.DataFrame | None, dataset: ComparedDataset, compared: Compared
) -> tuple[float, float] | None:
    if seconds is None:
        return None
    means = seconds[seconds["dataset"] == dataset.dataset].groupby("method")["seconds"].mean()
    pair = [means.get(method) for method in (compared.method, compared.control)]
    return None if None in pair else (float(pair[0]), float(pair[1]))


def compare(
    rows: pd.DataFrame, topic: str, compared: Compared, samplers: Iterable[str]
) -> list[Judgement]:
    """All claims on one model against its control, from the numbers of one dataset."""
    judgements = []
    for claim, metrics, better in ABOUT_MODELS[compared.kind]:
        for claimed in metrics:
            for sampler in samplers if claimed in OF_SAMPLES else [None]:
                judgements += _on(rows, topic, compared, claim, claimed, sampler, better)
    return judgements


def _on(
    rows: pd.DataFrame,
    topic: str,
    compared: Compared,
    claim: str,
    claimed: str,
    sampler: str | None,
    better: bool,
    m: int = 1,
) -> list[Judgement]:
    """A claim on a metric, one of a family of ``m``, under every name that it was measured by."""
    judgements = []
    # Which that is depends on the network that extracts features.
    measured = [name for name in names(claimed) if (rows["metric"] == name).any()]
    for alternatives in [[name] for name in measured] or [names(claimed)]:
        metric = alternatives[0]
        heading = " or ".join(METRICS[name].heading for name in alternatives)
        sign = (1 if METRICS[metric].better == "higher" else -1) * (1 if better else -1)
        measure = f"{heading}, {sampler_label(sampler)}" if sampler else heading
        values = paired(rows, metric, sampler, compared.method, compared.control)
        what = (claim, topic, compared.subject, measure)
        judgements.append(_compared(what, metric, *values, sign, m))
    return judgements


def _compared(
    what: tuple[str, str, str, str],
    metric: str,
    of_method: np.ndarray,
    of_control: np.ndarray,
    sign: int,
    m: int,
) -> Judgement:
    if not METRICS[metric].ratio:
        return judge(*what, of_method - of_control, sign, m=m)
    if (np.minimum(of_method, of_control) <= 0).any():
        why = "a value that is not positive has no ratio"
        return Judgement(*what, "ratio", None, None, None, len(of_method), UNDECIDED, why)
    return judge(*what, np.log(of_method / of_control), sign, "ratio", m)


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
    families = any(judgement.family for judgement in judgements)
    notes = [
        "Effects compare a model with its control, which has the same seed, data and noise"
        f"{'' if families else ' and as many steps'}. "
        "× marks ratios, which are those of quantities that vary by factors; all other effects are "
        "differences. Intervals are Student's at 95 % over seeds, and those of ratios are computed "
        "on logarithms; p is of the same test. A claim holds or fails only if the whole interval "
        "lies on one side of no effect, which is a ratio of 1 or a difference of 0. With one seed "
        "it is undecided.",
        "Detectable: the smallest effect, of either sign, that would be found in four studies of "
        "five with as many seeds and the same spread.",
        IN_FAMILIES if families else BY_THEMSELVES,
        *(f"{subject}: no model was trained alike to compare with." for subject in spec.alone),
    ]
    found = [Section("Verdicts", ["Claim", *verdicts], summary, notes)]
    for topic, family, claim in dict.fromkeys((j.topic, j.family, j.claim) for j in judgements):
        chosen = [j for j in judgements if (j.topic, j.family, j.claim) == (topic, family, claim)]
        columns = COLUMNS if family else [c for c in COLUMNS if c not in OF_FAMILIES]
        rows = [[_cells(j)[column] for column in columns] for j in chosen]
        heading = f"{topic}, {family}: {claim}" if family else f"{topic}: {claim}"
        found.append(Section(heading, columns, rows, left=2))
    return found


BY_THEMSELVES = (
    "Every interval is at 95 % by itself: where there is no effect at all, one comparison in "
    "twenty is decided by chance."
)
IN_FAMILIES = (
    "In a family, which the experiment file declares, a verdict also needs a p below 0.05 after "
    "Holm's correction for all comparisons of the family on that dataset: where there is no effect "
    "at all, one family in twenty has a decided comparison. What is detectable is so with the "
    "whole correction. Intervals and p are each comparison's own. Core-s are core-seconds (with a "
    "GPU its seconds) of training behind the model and behind its control."
)
OF_FAMILIES = ("p (Holm)", "Core-s")
COLUMNS = [
    *("Of", "Effect on", "Effect", "95 % interval", "n", "p", "p (Holm)", "Detectable", "Core-s"),
    "Verdict",
]


def _cells(judgement: Judgement) -> dict[str, str]:
    """A row of a table, by its column."""
    j = judgement
    return {
        "Of": j.subject,
        "Effect on": j.measure,
        "Effect": _effect(j, j.effect),
        "95 % interval": _interval(j),
        "n": str(j.n),
        "p": _p(j.p),
        "p (Holm)": _p(j.adjusted_p),
        "Detectable": _detectable(j),
        "Core-s": " / ".join(f"{s:.0f}" for s in j.seconds) if j.seconds else "—",
        "Verdict": _verdict(j),
    }


def _p(p: float | None) -> str:
    if p is None:
        return "—"
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _detectable(judgement: Judgement) -> str:
    """Of a claim that is decided, nothing."""
    if judgement.verdict != UNDECIDED or judgement.detectable is None:
        return "—"
    text = tables.format_value(judgement.detectable, None)
    return f"× {text}" if judgement.scale == "ratio" else f"±{text}"


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
