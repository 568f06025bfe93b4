"""What training, sampling and likelihood cost per dataset and method, from the records' costs.

Hours are those of the GPU where a job had one, else of the CPU. The hours of a training are those
of its segments together; what a method starts from is counted where it was trained.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from qcsbm.report import notes
from qcsbm.report.pages import Section
from qcsbm.report.tables import format_value
from qcsbm.schema.samplers import TYPES, sampler_label
from qcsbm.schema.specifications import CostSpec

CELL = ["dataset", "method"]
# The headings of columns, in their order; between the two stand those of every sampler.
TRAINING = {"steps_per_s": "Training steps/s", "train_hours": "Training h"}
SAMPLING = {"hours": "h", "calls": "calls/sample"}
OTHERS = {
    "likelihood_hours": "NLL h",
    "likelihood_calls": "NLL calls/image",
    "memory_gb": "Memory (GB)",
    "gpu_memory_gb": "GPU memory (GB)",
}
NOTES = [
    "Means over seeds; memory is the most that any job took.",
    "A call is one evaluation of the score; for C it includes a backward pass, and under the "
    "likelihood every method has one more for the divergence.",
    "A job that was killed and went on later counts from where it went on.",
]


def costs(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row per dataset and method, with a column for all that was measured."""
    records = list(records)
    jobs = pd.DataFrame([_job(record) for record in records])
    if jobs.empty:
        return pd.DataFrame(columns=CELL)
    runs = jobs.groupby([*CELL, "seed"])
    seeds = runs.sum(min_count=1).drop(columns=["memory_gb", "gpu_memory_gb"])
    if "train_steps" in seeds:
        seeds["steps_per_s"] = seeds["train_steps"] / seeds["train_s"]
    means = seeds.groupby(CELL).mean()
    memory = jobs.groupby(CELL)[["memory_gb", "gpu_memory_gb"]].max()
    frame = means.join(memory).dropna(axis=1, how="all")
    of_samplers = [f"{name}_{what}" for name in _samplers(records) for what in SAMPLING]
    columns = [*TRAINING, *of_samplers, *OTHERS]
    return frame[[column for column in columns if column in frame]].reset_index()


def _samplers(records: list[dict[str, Any]]) -> list[str]:
    """The names of all samplers, in the order of their types."""
    order = list(TYPES)
    protocols = [record["protocol"] for record in records if record["stage"] == "sample"]
    found = {(order.index(facts["sampler_type"]), facts["sampler"]) for facts in protocols}
    return list(dict.fromkeys(name for _, name in sorted(found)))


def _heading(column: str) -> str:
    fixed = TRAINING | OTHERS
    if column in fixed:
        return fixed[column]
    sampler, _, what = column.rpartition("_")
    return f"{sampler_label(sampler)} {SAMPLING[what]}"


def _job(record: dict[str, Any]) -> dict[str, Any]:
    """The costs of one record under the names of columns, and steps and seconds of training."""
    cost, protocol = record["cost"], record["protocol"]
    stage = protocol["sampler"] if record["stage"] == "sample" else record["stage"]
    job = {key: record[key] for key in (*CELL, "seed")}
    job[f"{stage}_hours"] = cost.get("gpu_s", cost["cpu_s"]) / 3600
    job["memory_gb"] = cost["peak_memory_mb"] / 1024
    job["gpu_memory_gb"] = cost.get("gpu_peak_memory_mb", float("nan")) / 1024
    if record["stage"] == "train":
        job["train_steps"] = protocol["stop"] - cost["started_at_step"]
        job["train_s"] = cost["wall_s"]
    elif record["stage"] == "sample":
        # Calls are summed over batches; every sample is in one of them.
        job[f"{stage}_calls"] = cost["network_calls"] / -(
            -protocol["samples"] // protocol["batch_size"]
        )
    else:
        images = next(metric["n"] for metric in record["metrics"] if metric["name"] == "nll")
        job[f"{stage}_calls"] = cost["evaluations"] / images
    return job


def sections(
    frame: pd.DataFrame,
    spec: CostSpec,
    devices: Iterable[str],
    failed: dict[tuple[str, str], list[str]],
) -> list[Section]:
    """A section per dataset of ``spec``; jobs ran on ``devices``.

    The notes say what ``failed`` (`qcsbm.report.tables.failures`): its jobs are not counted.
    """
    columns = [column for column in frame if column not in CELL]
    where = f"Device: {', '.join(sorted(set(devices)))}." if columns else "Nothing was measured."
    found = []
    for dataset, label in spec.datasets.items():
        methods = dict(spec.methods[dataset])
        rows = frame[frame["dataset"] == dataset].set_index("method")
        cells = [
            [name, *(_text(rows, method, column) for column in columns)]
            for method, name in methods.items()
        ]
        below = [where, *NOTES, *notes.failed(failed, dataset, methods)]
        found.append(Section(label, ["Method", *(_heading(c) for c in columns)], cells, below))
    return found


def _text(rows: pd.DataFrame, method: str, column: str) -> str:
    if method not in rows.index or pd.isna(rows.loc[method, column]):
        return "—"
    return format_value(rows.loc[method, column], None)
