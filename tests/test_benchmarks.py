"""What the benchmarks compare is the same quantity."""

import importlib.util
import json
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from qcsbm.conservativeness.products import rademacher
from qcsbm.experiment import config
from qcsbm.report.intervals import detectable
from qcsbm.runtime.seeding import generator
from qcsbm.schema.networks import NCSNpp
from qcsbm.score.models import build

ROOT = Path(__file__).parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def qc_step():
    return load("qc_step")


@pytest.fixture
def model(qc_step):
    changes = {"nf": 8, "attn_resolutions": [], "init_scale": 1.0}
    network = qc_step.MODEL.network.model_copy(update=changes)
    return build((1, 4, 4), qc_step.MODEL.model_copy(update={"network": network}), 0).double()


@pytest.fixture(scope="module")
def workflow():
    return load("workflow")


@pytest.fixture(scope="module")
def gpu():
    return load("gpu")


@pytest.fixture(scope="module")
def samplers():
    return load("samplers")


@pytest.fixture(scope="module")
def denoisers():
    return load("denoisers")


def batch(n=3):
    g = generator(0, "published")
    x_0 = torch.rand(n, 1, 4, 4, dtype=torch.float64, generator=g)
    z = torch.randn(x_0.shape, dtype=torch.float64, generator=g)
    t = torch.rand(n, dtype=torch.float64, generator=g)
    return x_0, t, z, rademacher(x_0.shape, g).double()


def gradient_after(step, model):
    model.zero_grad()
    step(model, *batch())
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_published_algorithm_has_the_gradient_of_our_trace_step(qc_step, model):
    ours = gradient_after(partial(qc_step.our_step, estimator="trace", b=3), model)
    torch.testing.assert_close(gradient_after(qc_step.published_step, model), ours)


def test_last_step_of_a_window_has_the_gradient_of_a_regularised_one(qc_step, model):
    window = partial(qc_step.window, estimator="antisymmetric", b=3, every=4)
    once = gradient_after(partial(qc_step.our_step, estimator="antisymmetric", b=3), model)
    shared = gradient_after(window, model)
    for name in once:
        torch.testing.assert_close(once[name], shared[name])


def test_step_without_second_derivatives_has_the_gradient_of_one_with_them(qc_step, model):
    ours = gradient_after(partial(qc_step.our_step, estimator="antisymmetric", b=3), model)
    found = gradient_after(qc_step.STEPS["finite_differences"], model)
    error, size = (
        torch.stack([d.square().sum() for d in dicts]).sum().sqrt()
        for dicts in ([found[n] - ours[n] for n in ours], ours.values())
    )
    assert 0 < error < 0.01 * size
    errors = [qc_step.finite_difference_error(model, lambda _: batch(), 1, d) for d in (1e-3, 1e-4)]
    assert errors[0] < 0.01 and errors[0] == pytest.approx(10 * errors[1], rel=0.05)


def test_settings_of_equal_variance_leave_no_room_for_another_step(qc_step):
    chosen = set(qc_step.settings(11.7).values())
    assert {(64, 11), (32, 5), (16, 2), (8, 1)} <= chosen
    assert all(m == 1 or m * 64 / b <= 11.7 for b, m in chosen)
    assert (64, 1) not in chosen


def test_power_is_that_of_the_measured_spread_and_the_declared_family(
    capsys, monkeypatch, tmp_path
):
    power, path = load("study_power"), tmp_path / "metrics.csv"
    rows = ["dataset,method,seed,metric,value,sampler"]
    # NLL differs by 0.1 ± 0.02 between seeds, FD by a factor of 0.9 whose logarithm has 0.03.
    for seed, sign in enumerate((-1, 0, 1)):
        rows += [
            f"digits,u,{seed},nll,{3 + seed},",
            f"digits,qc0,{seed},nll,{3.1 + seed + 0.02 * sign},",
        ]
        rows += [
            f"digits,u,{seed},fd,{50 + seed},heun",
            f"digits,qc0,{seed},fd,{(50 + seed) * np.exp(-0.1 + 0.03 * sign)},heun",
        ]
    path.write_text("\n".join(rows) + "\n")
    config = str(ROOT / "config/study.yaml")
    monkeypatch.setattr("sys.argv", ["x", str(path), "--configfile", config, "--called", "qc0=qc"])
    power.main()
    text = capsys.readouterr().out
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    found = {(row[1], row[2]): row[3:5] for row in table if len(row) == 6 and row[0] == "primary"}
    # Six pairs on NLL and on FD by three samplers; twenty seeds.
    nll, fd = (detectable(deviation, 20, 24) for deviation in (0.02, 0.03))
    assert found == {
        ("qc, u", "NLL (bits/dim)"): ["3", f"±{nll:.4f}"],
        ("qc, u", "FD, heun"): ["3", f"× {np.exp(fd):.3g}"],
    }
    shares = {row[0]: row[1:3] for row in table if row and row[0] in ("digits", "fashion_mnist")}
    assert shares["digits"] == ["20", f"{detectable(1, 20, 24):.2f}"]
    assert shares["fashion_mnist"] == ["3", f"{detectable(1, 3, 24):.2f}"]


def write_benchmark(folder, name, seconds):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.tsv").write_text(f"s\th:m:s\tcpu_time\n{seconds}\t0:00:01\tNA\n")


def test_every_job_of_the_workflow_is_counted_under_its_kind(workflow, tmp_path):
    logs = tmp_path / "ci/logs"
    for name, seconds in {"table2": 1, "figure4": 2, "figures": 3, "claims": 4}.items():
        write_benchmark(logs, name, seconds)
    run = logs / "digits/c/seed0"
    for name, seconds in {"train60": 10, "likelihood.1-of-2": 20, "gather_likelihood": 5}.items():
        write_benchmark(run, name, seconds)
    for name, seconds in {"sample.1-of-1": 25, "features.classifier.float32.1-of-1": 30}.items():
        write_benchmark(run / "pc", name, seconds)
    kinds = workflow.shares(workflow.jobs(tmp_path), dict.fromkeys(workflow.STAGES, 0.5))
    assert {kind: (facts["jobs"], facts["s"]) for kind, facts in kinds.items()} == {
        "train": (1, 10),
        "sample": (1, 25),
        "evaluate": (2, 50),
        "everything else": (5, 15),
    }
    assert kinds["evaluate"]["share"] == 0.5 and kinds["evaluate"]["starts_s"] == 1.0


def test_samplers_are_measured_against_the_flow_and_the_known_mixture(samplers, monkeypatch):
    centres = torch.rand(20, 64, generator=generator(0, "centres"))
    labels = np.arange(20) % 3
    chosen = {n: s for n, s in samplers.samplers(64).items() if n[:3] in ("ode", "heu")}
    monkeypatch.setattr(samplers, "samplers", lambda batch: chosen)
    found = samplers.measure(
        samplers.mixture(centres), *samplers.of_mixture(centres, labels), n=64, sets=4
    )
    assert [found[f"heun {steps}"]["calls"] for steps in (9, 18, 36)] == [17, 35, 71]
    exact = found[samplers.EXACT]
    assert exact["apart"] == exact["excess"] == 0 and found[samplers.USUAL]["ratio"] == 1
    assert exact["calls"] > found[samplers.USUAL]["calls"] > found["ode 1e-3"]["calls"]
    # 256 samples in 64 dimensions; χ² of three classes, which the prior's error shifts a little.
    assert abs(exact["spread"] - 1) < 4 * (2 / (256 * 64)) ** 0.5
    assert exact["weights"] < 20
    assert found["heun 9"]["apart"] > found["heun 36"]["apart"] > 0
    assert found["heun 9"]["spread"] > found["heun 18"]["spread"] > found["heun 36"]["spread"]


def test_what_is_measured_on_a_gpu_is_the_paper_tier(gpu):
    experiment = config.read(ROOT / "config/paper.yaml")
    assert list(gpu.DATASETS) == list(experiment.datasets)
    assert set(gpu.METHODS) == set(experiment.methods)
    for (dataset, method), cell in experiment.cells.items():
        expected, of = gpu.METHODS[method], gpu.DATASETS[dataset]
        found = (cell.parameterisation, cell.training.batch_size, cell.regulariser)
        assert found == (expected.parameterisation, expected.batch, expected.regulariser)
        start = cell.init_from.step if cell.init_from else 0
        assert cell.steps - start == (of.later_steps if start else of.steps)
        assert cell.quality.samples == of.samples and cell.samplers["pc"].steps == gpu.PC_STEPS
        asymmetry = (cell.asymmetry.estimator, cell.asymmetry.noise_levels, cell.asymmetry.samples)
        assert asymmetry == ("trace", gpu.ASYM_LEVELS, gpu.ASYM_IMAGES)
        assert len(experiment.seeds[dataset]) == gpu.SEEDS
    assert experiment.cells["cifar10", "u"].network == NCSNpp(**gpu.PAPER_NETWORK)


@pytest.mark.slow
def test_everything_that_is_measured_on_a_gpu_can_be_tried_on_a_cpu(
    gpu, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(gpu, "fix_arithmetic", lambda: None)
    # On the machine of this test there may be a GPU, which a test does not hold to its end.
    monkeypatch.setattr(gpu, "claim_device", lambda: torch.device("cpu"))
    gpu.main(["--tiny", "--out", str(tmp_path / "gpu.json")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "gpu.json").read_text())
    assert result["errors"] == {} and result["skipped"] == []
    assert max(result["micro_batches"].values()) < 1e-5
    assert all(result["determinism"].values()) and result["process_group"]["same_bytes"]
    differences = [
        row[key] for row in result["agreement"].values() for key in ("float32", "float64")
    ]
    assert max(differences) == 0
    assert max(row["cpu_rounding"] for row in result["agreement"].values()) < 0.01
    precisions = set(gpu.PRECISIONS)
    assert {f"{m}/{p}" for m in gpu.METHODS for p in precisions} <= set(result["steps"])
    assert "qcplus_fd/float32" in result["steps"]
    assert {"its gradient, differences", "audit, NAsym"} <= set(result["agreement"])
    assert set(result["features"]) == precisions
    assert result["features"]["float32"]["features"] == 0 < result["features"]["bfloat16"]["logits"]
    assert {f"u/{w}/{p}" for w in gpu.EVALUATIONS for p in precisions} <= set(result["evaluations"])
    assert set(result["hours"]) == precisions
    assert result["hours"]["float32"]["together"] > result["hours"]["float32"]["train"] > 0


def test_what_is_out_of_time_is_skipped_and_what_fails_is_told(gpu, tmp_path):
    run = gpu.Run(torch.device("cpu"), gpu.TINY, time.monotonic() + 5, tmp_path / "gpu.json")
    run.result = {"seconds": {}, "skipped": [], "errors": {}}
    with run.part("long"):
        run.require(10)
        raise AssertionError
    with run.part("bad"):
        raise ValueError("planted")
    with gpu.ending(0.05), run.part("endless"):
        time.sleep(5)
    assert json.loads((tmp_path / "gpu.json").read_text()) == {
        "seconds": {},
        "skipped": ["long", "endless"],
        "errors": {"bad": "ValueError: planted"},
    }


def test_batch_is_halved_until_there_is_memory_for_it(gpu):
    run = gpu.Run(torch.device("cpu"), gpu.TINY, time.monotonic() + 5, None)

    def measure(size):
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.5

    assert run.largest(16, measure) == {"s": 0.5, "size": 2, "peak_gib": None}


@pytest.mark.slow
def test_tier_is_run_elsewhere_and_its_times_are_those_of_its_jobs(workflow):
    tier = workflow.run("ci", cores=1, targets=("results/ci/data/patches/data.json",))
    assert [stage for stage, _ in tier.jobs] == ["prepare"]
    assert tier.jobs[0][1] < tier.wall_s and tier.jobs_s > 0 and tier.snakemake_s > 0
    with pytest.raises(OSError, match="MissingRuleException"):
        workflow.run("ci", cores=1, targets=("no/such/file",))


def test_proximal_maps_among_denoisers_are_symmetric_and_other_filters_are_not(denoisers):
    x = denoisers.photographs(3, 12)
    found = {
        name: denoisers.audit(name, x, probes=8).mean
        for name in denoisers.denoisers()
        if "3 000" not in name
    }
    zeros = [name for name, mean in found.items() if mean.zero_within]
    assert zeros == ["soft-thresholding in a DCT", 'Gaussian filter, `mode="reflect"`']
    assert all(found[name].zero_within.lambda_ < 1e-6 for name in zeros)
    sizes = {name: mean.lambda_.value for name, mean in found.items()}
    assert sizes["total variation, 300 iterations"] < sizes["total variation, `eps=2e-4`"]
    assert min(sizes["non-local means"], sizes["bilateral filter"]) > 0.05
    assert sizes["median filter"] > 0.4


@pytest.fixture(scope="module")
def relation():
    return load("asymmetry_and_quality")


def models(draws, seeds, methods, slope, capacity):
    """log NAsym and NLL (seeds, methods): ``slope`` within a method, ``capacity`` between them."""
    strength = np.arange(methods)  # of the regulariser
    x = draws.normal(size=(seeds, methods)) + draws.normal(size=(seeds, 1))
    noise = draws.normal(size=(seeds, methods)) + draws.normal(size=(seeds, 1))
    return x - 10 * strength, slope * x + noise + capacity * strength


def test_a_confounder_shows_across_methods_and_not_within(relation):
    draws = np.random.default_rng(0)
    x, y = models(draws, 40, 6, slope=0, capacity=5)
    assert relation.across(x, y) < -0.9 and abs(relation.within(x, y)) < 0.4
    x, y = models(draws, 40, 6, slope=3, capacity=5)
    assert relation.across(x, y) < 0 and relation.within(x, y) > 0.8
    # Ranks are those of SciPy, ties included.
    x[:5, 0] = 1.0
    expected = [spearmanr(a, b).statistic for a, b in zip(x.T, y.T, strict=True)]
    np.testing.assert_allclose(relation.spearman(x, y), expected)


def test_p_of_no_relation_is_uniform_and_that_of_one_is_small(relation, monkeypatch):
    monkeypatch.setattr(relation, "DRAWS", 99)
    draws, repeats = np.random.default_rng(1), 300
    p = [relation.permutation(*models(draws, 8, 4, 0, 5), draws) for _ in range(repeats)]
    # Of a share of 0.05: within four binomial standard errors, as methods are not independent.
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 300) ** 0.5)
    assert relation.permutation(*models(draws, 8, 4, 3, 5), draws) <= 0.05


def test_three_seeds_have_a_correlation_and_no_interval(relation):
    draws = np.random.default_rng(3)
    x, y = models(draws, 3, 4, 0, 5)
    interval = relation.bootstrap(relation.within, x, y, draws)
    assert np.isnan(interval).all()
    assert re.fullmatch(r"-?\d\.\d\d", relation.show(relation.within(x, y), *interval))


def test_relations_are_read_from_metrics_and_drawn(relation, tmp_path, capsys, monkeypatch):
    draws, lines = np.random.default_rng(2), ["dataset,method,seed,metric,value,sampler"]
    x, y = models(draws, 12, 5, slope=2, capacity=5)
    for seed, method in np.ndindex(x.shape):
        if (seed, method) != (3, 1):  # a model that was not measured
            lines.append(f"digits,m{method},{seed},nll,{y[seed, method]},")
        lines.append(f"digits,m{method},{seed},fd,{np.exp(-y[seed, method] / 9)},pc")
        lines.append(f"digits,m{method},{seed},nasym,{np.exp(x[seed, method] / 9)},")
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    arguments = [str(tmp_path / "metrics.csv"), "--out", str(tmp_path / "x.svg")]
    monkeypatch.setattr("sys.argv", ["x", *arguments])
    monkeypatch.setattr(relation, "DRAWS", 200)
    relation.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("|")[1:-1] for line in lines if "NAsym" in line]
    assert [[cell.strip() for cell in row[:3]] for row in rows] == [
        ["NAsym, NLL (bits/dim)", "11", "5"],
        ["NAsym, FD, PC", "12", "5"],
    ]
    for row, sign in zip(rows, (1, -1), strict=True):
        inside, low, high = (float(n) for n in re.findall(r"-?\d\.\d+", row[3]))
        assert low <= inside <= high and sign * inside > 0.6
        assert float(row[4]) < 0.05
    assert (tmp_path / "x_digits.svg").stat().st_size > 5000
