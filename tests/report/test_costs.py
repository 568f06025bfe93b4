"""The table of costs, from records with costs that are computed by hand."""

import pandas as pd
import pytest

from qcsbm.report.costs import costs, sections
from qcsbm.schema.specifications import CostSpec


def record(stage, method, seed, cost, metrics=(), **protocol):
    return {
        "stage": stage,
        "dataset": "digits",
        "method": method,
        "seed": seed,
        "cost": {"wall_s": 100.0, "cpu_s": 1800.0, "peak_memory_mb": 512.0, **cost},
        "protocol": protocol,
        "metrics": list(metrics),
    }


def run(method, seed, start, faster=1.0):
    """Two segments of 200 and 300 steps, 100 s each, 70 samples in 3 batches, and 8 images."""
    seconds = {"wall_s": 100.0 / faster}
    nll = {"name": "nll", "n": 8}
    return [
        record("train", method, seed, {**seconds, "started_at_step": start}, stop=start + 200),
        record(
            "train", method, seed, {**seconds, "started_at_step": start + 200}, stop=start + 500
        ),
        record(
            "sample",
            method,
            seed,
            {"network_calls": 60, "peak_memory_mb": 2048.0},
            sampler="pc",
            sampler_type="pc",
            samples=70,
            batch_size=32,
        ),
        record("likelihood", method, seed, {"evaluations": 400}, [nll]),
    ]


def told(methods):
    return CostSpec(
        version=1,
        **{"strict": False, "seeds": {}, "records": {}},
        datasets={"digits": "Digits"},
        methods={"digits": methods},
    )


def test_costs_are_sums_within_a_run_and_means_over_seeds():
    frame = costs(run("u", 0, 0) + run("u", 1, 0, faster=2.0)).set_index("method")
    u = frame.loc["u"]
    assert u["steps_per_s"] == pytest.approx((500 / 200 + 500 / 100) / 2)
    assert u["train_hours"] == 1.0 and u["pc_hours"] == u["likelihood_hours"] == 0.5
    assert u["pc_calls"] == 20 and u["likelihood_calls"] == 50
    assert u["memory_gb"] == 2.0
    assert not {"ode_hours", "gpu_memory_gb"} & set(frame.columns)


def sampled(name, kind, calls):
    cost = {"network_calls": calls}
    told = {"sampler": name, "sampler_type": kind, "samples": 70, "batch_size": 32}
    return record("sample", "u", 0, cost, **told)


def test_every_sampler_has_columns_in_the_order_of_types():
    samplers = [("heun35", "heun", 105), ("ode", "ode", 300), ("heun5", "heun", 15)]
    frame = costs([sampled(*facts) for facts in samplers] + run("u", 0, 0))
    names = ["pc", "ode", "heun35", "heun5"]
    columns = [f"{name}_{what}" for name in names for what in ("hours", "calls")]
    assert list(frame)[4:-3] == columns
    assert frame[["heun35_calls", "heun5_calls"]].iloc[0].tolist() == [35, 5]
    (section,) = sections(frame, told([("u", "U")]), ["cpu"], {})
    assert section.columns == [
        *("Method", "Training steps/s", "Training h", "PC h", "PC calls/sample"),
        *("ODE h", "ODE calls/sample", "heun35 h", "heun35 calls/sample"),
        *("heun5 h", "heun5 calls/sample", "NLL h", "NLL calls/image", "Memory (GB)"),
    ]


def test_a_gpu_is_counted_by_its_own_time_and_memory():
    gpu = {"started_at_step": 0, "gpu_s": 7200.0, "gpu_peak_memory_mb": 3072.0}
    row = costs([record("train", "u", 0, gpu, stop=10)]).iloc[0]
    assert row["train_hours"] == 2.0 and row["gpu_memory_gb"] == 3.0


def test_a_model_that_was_not_trained_here_has_no_cost_of_training():
    frame = costs(run("u", 0, 0) + run("qc", 0, 500)[2:])
    spec = told([("u", "U"), ("qc", "QC"), ("c", "C")])
    failed = {("digits", "c"): ["seed 0: it diverged"], ("patches", "u"): ["seed 0: not here"]}
    (section,) = sections(frame, spec, ["cpu", "cpu"], failed)
    table = pd.DataFrame(section.rows, columns=section.columns).set_index("Method")
    assert list(table["Training steps/s"]) == ["2.50", "—", "—"]
    assert list(table["PC calls/sample"]) == ["20", "20", "—"]
    assert section.heading == "Digits" and "Device: cpu." in section.notes
    assert section.notes[-1] == "C, seed 0: it diverged."
