"""From records to numbers in tidy form, and from those to tables in Markdown, CSV and LaTeX.

Tables show the mean over seeds ± its standard error; a row of one seed shows no ±. What could not
be measured is shown as such. The notes below a table say why it could not, how each model was
trained, and how it was measured. Below models that are the paper's, on its datasets, stand its
numbers (``qcsbm/paper/table2.csv``, ``table3.csv``) and the differences.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Tables 2 and 3; https://arxiv.org/abs/2209.12753
"""

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from qcsbm.quality.metrics import METRICS, OF_MODELS, OF_SAMPLES
from qcsbm.report import notes
from qcsbm.report.pages import Section
from qcsbm.runtime import failure
from qcsbm.runtime.errors import BadInput
from qcsbm.schema.specifications import PaperRow, TableSpec

# Holds every decimal digit of any float.
EXACT = Context(prec=1100)

IDENTITY = ["dataset", "method", "seed"]
METRIC_COLUMNS = [*IDENTITY, "metric", "value", "stderr", "n", "unit", "stage"]

# The rows of the paper's tables, by kind of model.
PAPER_METHODS = {"c": "C-NCSN++", "u": "U-NCSN++", "qc": "QC-NCSN++"}


@dataclass(frozen=True)
class Block:
    """The rows of one dataset: ``cells`` has a (mean, stderr) per method and metric, or None.

    ``paper`` has what the paper prints for some of them.
    """

    dataset: str
    label: str
    methods: dict[str, str]
    metrics: list[str]
    cells: dict[tuple[str, str], tuple[float, float | None] | None]
    seeds: dict[str, int]
    notes: list[str]
    paper: dict[tuple[str, str], str]


def read_csv(path: str | Path) -> pd.DataFrame:
    """The table in a CSV file that another stage wrote.

    Raises:
        BadInput: the file holds something else.
    """
    try:
        return pd.read_csv(path)
    except ValueError as error:  # pandas' own errors and those of decoding are ValueErrors
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(f"{path}: found no table ({reason}), expected CSV") from None


def tidy(records: list[dict[str, Any]]) -> pd.DataFrame:
    """A row per number: `METRIC_COLUMNS`, then a column for every key of any protocol."""
    rows = []
    for record in records:
        identity = {key: record.get(key) for key in IDENTITY}
        protocol = {key: v for key, v in record["protocol"].items() if not isinstance(v, dict)}
        for metric in record["metrics"]:
            rows.append(
                {
                    **identity,
                    "metric": metric["name"],
                    **{key: metric[key] for key in ("value", "stderr", "n", "unit")},
                    "stage": record["stage"],
                    **protocol,
                }
            )
    frame = pd.DataFrame(rows, columns=None if rows else METRIC_COLUMNS)
    frame = frame[METRIC_COLUMNS + sorted(set(frame.columns) - set(METRIC_COLUMNS))]
    return frame.sort_values([*IDENTITY, "stage", "metric"], kind="stable", ignore_index=True)


def failures(records: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Why computations of a dataset and method failed, with their seeds."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if failure.KEY in record:
            reasons = found.setdefault((record["dataset"], record["method"]), [])
            sentence = f"seed {record['seed']}: {record[failure.KEY]}"
            if sentence not in reasons:
                reasons.append(sentence)
    return found


def over_seeds(values: pd.Series) -> tuple[float, float | None]:
    """Mean and standard error of one value per seed; no standard error for a single seed."""
    n = len(values)
    stderr = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return float(values.mean()), stderr


def build(
    frame: pd.DataFrame, spec: TableSpec, failed: dict[tuple[str, str], list[str]]
) -> list[Block]:
    """The blocks of the table that ``spec`` describes.

    ``frame`` is that of `tidy`; the notes say what ``failed`` (see `failures`).
    """
    sampler = spec.sampler
    wanted = OF_SAMPLES if sampler else OF_MODELS
    if sampler and not frame.empty:
        frame = frame[frame["sampler"] == sampler]
    blocks = []
    for dataset, label in spec.datasets.items():
        of_dataset = frame[frame["dataset"] == dataset]
        methods = dict(spec.methods[dataset])
        rows = of_dataset[of_dataset["metric"].isin(wanted)]
        rows = rows[rows["method"].isin(methods)]
        metrics = [metric for metric in wanted if (rows["metric"] == metric).any()]
        cells, counts = {}, {}
        for method in methods:
            for metric in metrics:
                chosen = (rows["method"] == method) & (rows["metric"] == metric)
                values = rows.loc[chosen, "value"]
                counts[method, metric] = len(values)
                cells[method, metric] = over_seeds(values) if len(values) else None
        seeds = {
            method: max((counts[method, metric] for metric in metrics), default=0)
            for method in methods
        }
        paper, left_out = _of_the_paper(spec.paper[dataset], methods)
        below = [
            *notes.seeds(counts, seeds, methods),
            *notes.training(rows, methods, spec.names[dataset]),
            *notes.protocol(rows, methods),
            *_biases(of_dataset, metrics, methods),
            *notes.failed(failed, dataset, methods),
            *left_out,
        ]
        paper = {key: text for key, text in paper.items() if cells.get(key)}
        blocks.append(Block(dataset, label, methods, metrics, cells, seeds, below, paper))
    return blocks


def printed(dataset: str, sampler: str | None) -> dict[tuple[str, str], str]:
    """What the paper prints for ``dataset``, by kind of model and metric, with its digits.

    ``sampler`` is its type, None for Table 2.
    """
    table = pd.read_csv(
        files("qcsbm") / "paper" / ("table3.csv" if sampler else "table2.csv"), dtype=str
    ).rename(columns={"nll_bpd": "nll"})
    table = table[table["dataset"] == dataset]
    if sampler:
        table = table[table["sampler"] == sampler]
    rows = table.set_index("method").drop(columns=["dataset", "sampler"], errors="ignore")
    return {
        (kind, metric): rows.loc[theirs, metric]
        for kind, theirs in PAPER_METHODS.items()
        if theirs in rows.index
        for metric in rows.columns
    }


def _of_the_paper(
    rows: dict[str, PaperRow], methods: dict[str, str]
) -> tuple[dict[tuple[str, str], str], list[str]]:
    """What the paper prints for the methods that are its own, and why not for others.

    ``rows`` are those of `qcsbm.experiment.paper_rows.counterpart`.
    """
    paper: dict[tuple[str, str], str] = {}
    left_out = []
    for method, row in rows.items():
        theirs = {
            metric: text
            for (kind, metric), text in printed(row.dataset, row.sampler).items()
            if kind == row.kind
        }
        if theirs and row.differences:
            first, rest = row.differences[:3], row.differences[3:]
            more = f", and {len(rest)} more" if rest else ""
            left_out.append(
                f"{methods[method]}: the numbers of the paper's {PAPER_METHODS[row.kind]} are "
                f"left out, as this row differs: {', '.join(first)}{more}."
            )
        else:
            paper |= {(method, metric): text for metric, text in theirs.items()}
    return paper, left_out


def _biases(rows: pd.DataFrame, shown: list[str], methods: dict[str, str]) -> list[str]:
    """How, and by how much where it is known, those ``shown`` err as samples are finite in number.

    ``rows`` are those of a dataset and sampler.
    """
    found = []
    for metric in (METRICS[name] for name in shown):
        if metric.bias is None:
            continue
        of_metric = rows[rows["metric"] == metric.name]
        count = " / ".join(str(n) for n in sorted(of_metric["n"].unique()))
        sentence = f"{metric.heading} of {count} samples is {metric.bias}"
        if metric.unbiased:
            size = _excess(rows, metric.name, metric.unbiased, methods)
            sentence += (
                f"{size}; `{metric.unbiased}` in `metrics.csv` is without this bias, and noisier"
            )
        found.append(f"{sentence}.")
    return found


def _excess(rows: pd.DataFrame, metric: str, unbiased: str, methods: dict[str, str]) -> str:
    """By how much ``metric`` exceeds ``unbiased`` on average; empty where that is not known."""
    plain, free = (
        rows[rows["metric"] == name].set_index(["method", "seed"])["value"]
        for name in (metric, unbiased)
    )
    excess = (plain - free).dropna().groupby("method").mean()
    estimates = [
        f"{format_value(excess[method], None)} ({label})"
        for method, label in methods.items()
        if method in excess
    ]
    return f", by an estimated {', '.join(estimates)}" if estimates else ""


def format_value(mean: float, stderr: float | None) -> str:
    """``mean ± stderr`` with as many digits as the error supports; powers of ten where needed.

    Without an error, or with one of exactly 0, three digits; whole numbers as they are.
    """
    if not stderr and abs(mean) < 1e4 and mean == int(mean):
        return str(int(mean))
    # Two digits of an error that begins with 1, one of any other. Formatting rounds first, so that
    # 9.996 is a number that begins with 1.
    digits, power = f"{stderr:.1e}".split("e") if stderr else f"{mean:.2e}".split("e")
    last = int(power) - (digits[0] == "1" if stderr else 2)
    numbers = [Decimal(number) for number in ([mean, stderr] if stderr else [mean])]
    # If the error leaves no digit of the mean, the power of ten is the error's.
    exponent = next(filter(None, (_rounded(x, last) for x in numbers))).adjusted()
    if -3 <= exponent < 4:
        return " ± ".join(f"{_rounded(x, min(last, 0)):f}" for x in numbers)
    shown = (_rounded(x, last).scaleb(-exponent, EXACT) for x in numbers)
    text = " ± ".join(f"{x:f}" for x in shown)
    return f"({text})e{exponent}" if stderr else f"{text}e{exponent}"


def _rounded(number: Decimal, last: int) -> Decimal:
    """``number`` rounded to a multiple of ten to the power of ``last``; never −0."""
    return EXACT.plus(number.quantize(Decimal((0, (1,), last)), context=EXACT))


def _rows(block: Block) -> list[list[str]]:
    return [
        [label]
        + [
            format_value(*cell) if (cell := block.cells[method, metric]) else "—"
            for metric in block.metrics
        ]
        for method, label in block.methods.items()
    ]


def sections(blocks: list[Block]) -> list[Section]:
    """A table per dataset, the protocol below it, and one beside the paper's where there is one."""
    found = []
    for block in blocks:
        headings = ["Method", *(METRICS[metric].column for metric in block.metrics)]
        found.append(Section(block.label, headings, _rows(block), block.notes))
        if block.paper:
            found.append(_beside_the_paper(block))
    return found


def _beside_the_paper(block: Block) -> Section:
    """The paper's numbers, ours and the difference, ours minus the paper's, in a row each."""
    rows = []
    for method, label in block.methods.items():
        for metric in block.metrics:
            printed, cell = block.paper.get((method, metric)), block.cells[method, metric]
            if printed and cell:
                mean, stderr = cell
                difference = format_value(mean - float(printed), stderr)
                ours = format_value(mean, stderr)
                rows.append([label, METRICS[metric].column, printed, ours, difference])
    headings = ["Method", "Metric", "Paper", "Here", "Difference"]
    return Section(f"{block.label}: beside the paper", headings, rows, left=2)


LATEX = str.maketrans(
    {
        **{"±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "—": "---", "⁺": "$^+$"},
        **{character: rf"\{character}" for character in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    }
)


def latex(blocks: list[Block]) -> str:
    """A tabular per dataset."""
    parts = []
    for block in blocks:
        headings = ["Method", *(METRICS[metric].column for metric in block.metrics)]
        grid = tabulate(
            [[_latex(text) for text in row] for row in _rows(block)],
            [_latex(text) for text in headings],
            tablefmt="latex_raw",
            disable_numparse=True,
        )
        parts.append(f"% {block.label}\n{grid}\n")
    return "\n".join(parts)


def _latex(text: str) -> str:
    return text.translate(LATEX)


def flat(blocks: list[Block]) -> pd.DataFrame:
    """The numbers of the table: a row per dataset and method, two columns per metric."""
    rows = []
    for block in blocks:
        for method, label in block.methods.items():
            row: dict[str, object] = {
                "dataset": block.dataset,
                "method": method,
                "label": label,
                "seeds": block.seeds[method],
            }
            for metric in block.metrics:
                mean, stderr = block.cells[method, metric] or (None, None)
                row[metric], row[f"{metric}_stderr"] = mean, stderr
            rows.append(row)
    return pd.DataFrame(rows)
