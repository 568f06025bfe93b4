"""What a reader has to know of the numbers in a table: their seeds, their models, their protocol.

All of it comes from the records of the measurements, so that it stays true of the numbers when the
configuration changes.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from qcsbm.schema.samplers import TYPES

# What a reader needs to know of a protocol, in this order; of a sampler it is all of its settings.
PROTOCOL = {
    "likelihood": ["weights", "divergence", "rtol", "atol", "precision"],
    "asymmetry": [
        *("weights", "estimator", "probes", "derivatives", "difference_step"),
        *("noise_levels", "precision"),
    ],
    "circulation": ["weights", "triangles", "noise_levels", "precision"],
    "sample": ["weights", "sampler"],
    "quality": ["extractor", "extractor_accuracy", "reference", "statistics", "neighbours"],
}
# How the model was trained, or which one from outside it is, as every record of a measurement has
# it.
TRAINED = [
    *("train_steps", "parameterisation", "residual", "started_from", "training_batch_size"),
    *("regulariser_weight", "regulariser_estimator", "regulariser_probes", "regulariser_every"),
    *("regulariser_time_sampling", "regulariser_batch_size"),
    *("regulariser_derivatives", "regulariser_difference_step"),
    *("model", "model_sha256"),
]


def seeds(
    counts: dict[tuple[str, str], int], rows: dict[str, int], methods: dict[str, str]
) -> Iterator[str]:
    """How many seeds the ``rows`` have, and which cells, with ``counts`` of them, have fewer."""
    yield f"Seeds per row: {', '.join(map(str, sorted(set(rows.values()))))}."
    if 1 in counts.values():
        yield (
            "A mean over one seed has no standard error over seeds; the error within its run is in "
            "`metrics.csv`."
        )
    for (method, metric), n in counts.items():
        if n == 0:
            yield f"{methods[method]}: {metric} was not measured."
        elif n < rows[method]:
            yield f"{methods[method]}: {metric} is over {n} of {rows[method]} seeds."


def training(rows: pd.DataFrame, methods: dict[str, str], names: dict[str, str]) -> Iterator[str]:
    """How the model of each method was trained; ``names`` has labels of what it started from."""
    for method, label in methods.items():
        facts = rows[rows["method"] == method].reindex(columns=TRAINED)
        for trained in facts.dropna(subset="started_from").drop_duplicates().to_dict("records"):
            yield f"{label}: {_trained(trained, names)}."


def _trained(facts: dict[str, Any], names: dict[str, str]) -> str:
    if facts["started_from"] == "outside":
        return (
            f"{facts['model']} from outside, SHA-256 {facts['model_sha256'][:12]}…; how it was "
            "trained is not known here"
        )
    model = {"score": "a score", "energy": "an energy"}[facts["parameterisation"]]
    model += " with h = x − f" if facts["residual"] else ""
    origins = []
    for origin in reversed(facts["started_from"].split(" → ")):
        of, _, step = origin.rpartition("@")
        origins.append(f"{names.get(of, of)} at step {step}" if of else origin)
    start = ", and that from ".join(origins)
    if pd.isna(facts["training_batch_size"]):
        return f"{model}, imported from {start}; how it was trained is not known here"
    steps, batch = facts["train_steps"], facts["training_batch_size"]
    return (
        f"{_regulariser(facts)}, started from {start}, trained as {model} to step {steps:.0f} with "
        f"batches of {batch:.0f}"
    )


def _regulariser(facts: dict[str, Any]) -> str:
    weight = facts["regulariser_weight"]
    if pd.isna(weight):
        return "no L_QC"
    probes, every = int(facts["regulariser_probes"]), int(facts["regulariser_every"])
    parts = [
        f"L_QC with λ = {weight:g}",
        facts["regulariser_estimator"],
        f"{probes} probe" + ("s" if probes > 1 else ""),
        f"every {every} steps" if every > 1 else "every step",
    ]
    if facts["regulariser_batch_size"] < facts["training_batch_size"]:
        parts.append(f"on {facts['regulariser_batch_size']:.0f} samples of each batch")
    if facts["regulariser_time_sampling"] != "uniform":
        parts.append(f"t by {facts['regulariser_time_sampling']} sampling")
    if facts["regulariser_derivatives"] == "finite_differences":
        parts.append(f"by finite differences over {facts['regulariser_difference_step']:g} σ")
    return ", ".join(parts)


def failed(
    reasons: dict[tuple[str, str], list[str]], dataset: str, methods: dict[str, str]
) -> Iterator[str]:
    """Why there are no numbers; ``reasons`` are those of `qcsbm.report.tables.failures`."""
    for method, label in methods.items():
        for reason in reasons.get((dataset, method), []):
            yield f"{label}, {reason}."


def protocol(rows: pd.DataFrame, methods: dict[str, str]) -> Iterator[str]:
    """How each stage measured, by method where the methods were not measured alike."""
    for stage, keys in PROTOCOL.items():
        of_stage = rows[rows["stage"] == stage]
        if stage == "sample" and len(of_stage):
            keys = [*keys, *_settings(of_stage)]
        described = [_described(of_stage, key, methods) for key in keys if key in of_stage]
        if any(described):
            yield f"{stage.capitalize()}: {', '.join(filter(None, described))}."


def _settings(rows: pd.DataFrame) -> Iterator[str]:
    """The type of the samplers, unless their name says it, and what they are told.

    How many samples are drawn at once is left to `metrics.csv`.
    """
    if (rows["sampler_type"] != rows["sampler"]).any():
        yield "sampler_type"
    told = [TYPES[kind].model_fields for kind in rows["sampler_type"].unique()]
    yield from dict.fromkeys(
        key for keys in told for key in keys if key not in ("type", "batch_size")
    )


def _described(rows: pd.DataFrame, key: str, methods: dict[str, str]) -> str:
    """``key`` in words, with its value or values; empty where it has none."""
    by_value = {v: set(rows.loc[rows[key] == v, "method"]) for v in rows[key].dropna().unique()}
    texts = {value: _plain(value) for value in by_value}
    if len(by_value) > 1:
        for value, measured in by_value.items():
            labels = ", ".join(label for method, label in methods.items() if method in measured)
            texts[value] += f" ({labels})"
    return f"{key.replace('_', ' ')} {' / '.join(texts.values())}" if texts else ""


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
