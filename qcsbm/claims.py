"""The paper's claims as predicates on what was measured, and what the measurements say of them.

A claim says which sign the effect has: that of the difference between a model and its control, the
unregularised score model that was trained alike and for as many steps, or between two fields. The
differences are paired: models of one seed saw the same data and noise. With the 95 % interval of
Student's t over seeds, a claim **holds** if the whole interval has its sign, **fails** if the whole
interval has the other one, and is **undecided** otherwise, as it is with a single seed.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023);
    https://arxiv.org/abs/2209.12753
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from qcsbm import tables
from qcsbm.pages import Section
from qcsbm.statistics import t_interval

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"

LIMITS = "A conservative parameterisation limits what the model can learn"
LOWERS = "L_QC lowers the asymmetry"
GAINS_NLL = "L_QC does not cost likelihood, and gains it"
GAINS_QUALITY = "L_QC improves samples"
COSTS_STEPS = "At equal error, non-conservativeness costs sampling steps"
UNTIED = "A model can be conservative without tied weights"
IF_AND_ONLY_IF = "The autoencoder is conservative if and only if RWᵀ = WRᵀ"

# For each kind of model: what is claimed, of which metrics, and whether they are better than the
# control's.
ABOUT_MODELS = {
    "conservative": [(LIMITS, ["nll", "fid", "fd"], False)],
    "regularised": [
        (LOWERS, ["asym", "nasym"], True),
        (GAINS_NLL, ["nll"], True),
        (GAINS_QUALITY, ["fid", "fd", "is", "cs", "precision", "recall"], True),
    ],
}


@dataclass(frozen=True)
class Judgement:
    """A claim on ``subject``, the ``effect`` that was measured and its interval, and the verdict.

    ``effect``, ``low`` and ``high`` are None where nothing was measured; ``low`` and ``high`` are
    too for fewer than two of the ``n`` differences. ``why`` explains a verdict that needs it.
    """

    claim: str
    topic: str
    subject: str
    measure: str
    effect: float | None
    low: float | None
    high: float | None
    n: int
    verdict: str
    why: str = ""


def judge(
    claim: str, topic: str, subject: str, measure: str, differences: Sequence[float], sign: int
) -> Judgement:
    """The judgement of a claim that the mean of ``differences`` (n,) has this ``sign``."""
    n = len(differences)
    effect = float(np.mean(differences)) if n else None
    interval = t_interval(differences)
    if interval is None:
        why = "one seed" if n else "not measured"
        return Judgement(claim, topic, subject, measure, effect, None, None, n, UNDECIDED, why)
    low, high = interval
    verdict, why = UNDECIDED, "the interval contains 0"
    if low > 0 or high < 0:
        verdict, why = (HOLDS if sign * effect > 0 else FAILS), ""
    return Judgement(claim, topic, subject, measure, effect, low, high, n, verdict, why)


def about_models(metrics: pd.DataFrame, spec: dict) -> list[Judgement]:
    """Judgements on the models of every dataset of ``spec`` (`qcsbm.specification.claims`).

    ``metrics`` is the frame of `qcsbm.tables.tidy`.
    """
    judgements = []
    for dataset, label, comparisons in spec["datasets"]:
        rows = metrics[metrics["dataset"] == dataset]
        for kind, method, control, subject in comparisons:
            judgements += compare(rows, label, kind, method, control, subject, spec["samplers"])
    return judgements


def compare(
    rows: pd.DataFrame,
    topic: str,
    kind: str,
    method: str,
    control: str,
    subject: str,
    samplers: Iterable[str],
) -> list[Judgement]:
    """All claims on one model against its control, from the numbers of one dataset."""
    judgements = []
    for claim, metrics, better in ABOUT_MODELS[kind]:
        for metric in metrics:
            # Which of FID and FD there is depends on the network.
            if not (rows["metric"] == metric).any() and metric in ("fid", "fd", "is", "cs"):
                continue
            heading, arrow = tables.HEADINGS[metric].rsplit(" ", 1)
            sign = (1 if arrow == "↑" else -1) * (1 if better else -1)
            sampled = metric in tables.QUALITY_METRICS
            for sampler in samplers if sampled else [None]:
                differences = paired(rows, metric, sampler, method, control)
                measure = f"{heading}, {sampler.upper()}" if sampled else heading
                judgements.append(judge(claim, topic, subject, measure, differences, sign))
    return judgements


def paired(
    rows: pd.DataFrame, metric: str, sampler: str | None, method: str, control: str
) -> list[float]:
    """Differences between ``method`` and ``control``, one per seed that both have."""
    rows = rows[rows["metric"] == metric]
    if sampler:
        rows = rows[rows["sampler"] == sampler]
    of_method, of_control = (
        rows[rows["method"] == name].set_index("seed")["value"] for name in (method, control)
    )
    return (of_method - of_control).dropna().sort_index().tolist()


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
        counterexample,
        None,
        None,
        1,
        FAILS if counterexample > 0 else UNDECIDED,
        "necessary, not sufficient: a counterexample, exact",
    )
    return [existence, refuted]


def of_the_paper(spec: dict) -> list[Judgement]:
    """What the paper's own tables say on the datasets of ``spec``; they have no seeds."""
    judgements = []
    for dataset, label, _ in spec["datasets"]:
        rows = printed(dataset)
        if rows.empty:
            continue
        samplers = sorted(rows["sampler"].dropna().unique())
        topic = f"{label}: the paper's own numbers"
        for kind, method in (("conservative", "c"), ("regularised", "qc")):
            subject = f"{tables.PAPER_METHODS[method]} against {tables.PAPER_METHODS['u']}"
            judgements += compare(rows, topic, kind, method, "u", subject, samplers)
    return judgements


def printed(dataset: str) -> pd.DataFrame:
    """The numbers of the paper's Tables 2 and 3 on ``dataset``, as if they were those of a seed."""
    rows = [
        (method, 0, metric, sampler, float(text))
        for sampler in (None, "pc", "ode")
        for (method, metric), text in tables.printed(dataset, sampler).items()
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "metric", "sampler", "value"])


def document(judgements: Sequence[Judgement], spec: dict) -> dict:
    """Everything, for JSON."""
    return {"claims": [asdict(judgement) for judgement in judgements], "alone": spec["alone"]}


def sections(judgements: Sequence[Judgement], spec: dict) -> list[Section]:
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
        "Effects are differences to the control with the same seed, steps, data and noise; "
        "intervals are Student's, at 95 %, over seeds. A claim holds or fails only where the whole "
        "interval lies on one side of 0; with one seed it is undecided.",
        "Every interval is at 95 % by itself: where there is no effect at all, one comparison in "
        "twenty is decided by chance.",
        *(f"{subject}: no model trained alike to compare it with." for subject in spec["alone"]),
    ]
    found = [Section("Verdicts", ["Claim", *verdicts], summary, notes)]
    columns = ["Of", "Effect on", "Effect", "95 % interval", "n", "Verdict"]
    for topic, claim in dict.fromkeys((j.topic, j.claim) for j in judgements):
        rows = [
            [j.subject, j.measure, _signed(j.effect), _interval(j), str(j.n), _verdict(j)]
            for j in judgements
            if (j.topic, j.claim) == (topic, claim)
        ]
        found.append(Section(f"{topic}: {claim}", columns, rows, left=2))
    return found


def _signed(value: float | None) -> str:
    if value is None:
        return "—"
    return ("+" if value > 0 else "") + tables.format_value(value, None)


def _interval(judgement: Judgement) -> str:
    if judgement.low is None:
        return "—"
    return f"{_signed(judgement.low)} to {_signed(judgement.high)}"


def _verdict(judgement: Judgement) -> str:
    return judgement.verdict + (f" ({judgement.why})" if judgement.why else "")
