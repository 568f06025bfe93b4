r"""What a GPU computes and how fast: agreement with the CPU, determinism, and the paper's sizes.

    python benchmarks/gpu.py [--minutes 8] [--out gpu.json] [--tiny] 2> progress

It needs the package's core dependencies alone. Sections, in this order; what would overrun the
minutes is left out and listed as skipped, and ``--out`` is written whenever something is measured:

* agreement: the same weights and inputs on CPU and GPU, without TF32. Largest difference, relative
  to the largest entry on the CPU in float64, of the network, both scores, L_QC and its gradient in
  the parameters with second derivatives and by finite differences, a predictor–corrector step,
  bits/dim, and what `qcsbm.audit` finds;
* determinism: three steps of the paper's network, and samples, bits/dim and Asym, the same bytes
  twice, and noise that is drawn ahead, the same bytes as on the CPU;
* micro-batches, a process group of NCCL with one process, and the GPU that this process holds;
* steps: a training step of every method of ``config/paper.yaml`` in every precision, and of QC⁺ by
  finite differences in float32, with the largest micro-batch that fits: the whole of it, with its
  draws, Adam and EMA. "published" is
  `qc_step.published_step`, the algorithm of the paper's public code: loss and gradients alone,
  beside the same of ours;
* evaluations: steps of the predictor–corrector sampler, drift and divergence of the likelihood, and
  Asym, with the largest batch that fits, up to the 250 of the tier; and the sampler in bfloat16
  with noise drawn at its use instead of ahead;
* features: those of EfficientNet-Lite0 in every precision, where its packages are installed:
  images/s, and the distance from those of the CPU in float32;
* hours: what the paper tier takes at these rates, all its data sets and seeds. Evaluations that
  adaptive solvers choose are not known: they are taken to be `SOLVER_EVALUATIONS` per image;
* variants of U's step: memory in the order of channels last, kernels that need not be
  deterministic, and ``torch.compile``.

Times are medians in seconds after a warm-up; memory is the peak that PyTorch held in tensors. The
weights are random: what a step costs does not depend on them. Without a GPU all is done on the CPU,
which with ``--tiny`` is a test of this script. The last line is a JSON object.
"""

import argparse
import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import qcsbm
from qcsbm.conservativeness.asymmetry import estimate_asymmetry, one_probe_asymmetry
from qcsbm.conservativeness.products import rademacher
from qcsbm.data.quantisation import dequantise
from qcsbm.runtime import gpus
from qcsbm.runtime.device import claim_device, fix_arithmetic
from qcsbm.runtime.files import atomic
from qcsbm.runtime.seeding import generator
from qcsbm.sampling import noises, pc
from qcsbm.sampling.likelihood import hutchinson_divergence, nll_bits_per_dim
from qcsbm.schema.networks import NCSNpp
from qcsbm.schema.samplers import PC
from qcsbm.schema.sde import VE
from qcsbm.schema.specifications import Model
from qcsbm.schema.training import Regulariser, Training
from qcsbm.score.losses import training_loss
from qcsbm.score.models import ScoreModel, build
from qcsbm.training.checkpoint import TrainingState
from qcsbm.training.loop import train

LEVELS = 256
PRECISIONS = ("float32", "tf32", "bfloat16")
SNR = 0.16
SOLVER_EVALUATIONS = 200
# What takes longer is not repeated any more.
PATIENCE_S = 6.0
GIB = 2**30


@dataclass(frozen=True)
class Method:
    """How a row of the paper tier is trained."""

    parameterisation: str = "score"
    batch: int = 128
    regulariser: Regulariser | None = None


METHODS = {
    "u": Method(),
    "c": Method(parameterisation="energy"),
    "qc": Method(regulariser=Regulariser(weight=1e-4, estimator="trace")),
    "qcplus": Method(regulariser=Regulariser(weight=1e-4, estimator="antisymmetric")),
    "u_b8": Method(batch=8),
    "qc_k16": Method(batch=8, regulariser=Regulariser(weight=1e-4, probes=16, estimator="trace")),
}
# Beside them, in float32 alone: coarser rounding drowns differences.
FINITE_DIFFERENCES = Regulariser(
    weight=1e-4, estimator="antisymmetric", derivatives="finite_differences"
)
IN_FLOAT32 = METHODS | {"qcplus_fd": Method(regulariser=FINITE_DIFFERENCES)}


@dataclass(frozen=True)
class Dataset:
    """Steps of U and of C, those of the other methods after U's, and images to measure."""

    steps: int
    later_steps: int
    samples: int
    test: int


DATASETS = {
    "cifar10": Dataset(700_000, 100_000, 50_000, 10_000),
    "cifar100": Dataset(700_000, 100_000, 50_000, 10_000),
    "imagenet32": Dataset(700_000, 100_000, 50_000, 50_000),
    "svhn": Dataset(400_000, 100_000, 26_032, 26_032),
}
SEEDS, PC_STEPS, ASYM_LEVELS, ASYM_IMAGES = 3, 1000, 100, 10_000

PAPER_NETWORK = dict(
    type="ncsnpp",
    nf=128,
    ch_mult=[1, 2, 2, 2],
    num_res_blocks=8,
    attn_resolutions=[16],
    dropout=0.1,
)
SMALL_NETWORK = dict(type="ncsnpp", nf=16, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[8])


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how large batches, probes and repetitions are at most."""

    network: dict[str, Any]
    image: int
    batch: int
    evaluation_batch: int
    probes: int
    repetitions: int


PAPER = Sizes(PAPER_NETWORK, 32, 128, 250, 16, 3)
TINY = Sizes({**SMALL_NETWORK, "nf": 8, "attn_resolutions": [], "dropout": 0.1}, 4, 4, 4, 2, 1)


class Enough(Exception):
    """As many steps of a training as were to be timed are done."""


class Skipped(Exception):
    """There is no time for it."""


@dataclass
class Run:
    """What is measured, where it is written, and when it has to end."""

    place: torch.device
    sizes: Sizes
    end: float
    out: Path | None
    result: dict[str, Any] = field(default_factory=dict)
    built: dict[tuple[str, float], ScoreModel] = field(default_factory=dict)

    def fresh(self, parameterisation: str = "score", dropout: float | None = None) -> ScoreModel:
        """The model as it starts, a copy of its own: to draw its weights takes seconds."""
        network = dict(self.sizes.network)
        if dropout is not None:
            network["dropout"] = dropout
        key = parameterisation, network["dropout"]
        if key not in self.built:
            shape = (3, self.sizes.image, self.sizes.image)
            self.built[key] = build(shape, specification(network, parameterisation), seed=0)
        return copy.deepcopy(self.built[key]).to(self.place)

    def left(self) -> float:
        return self.end - time.monotonic()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within, a part of the work: its time is noted, or what it fails with."""
        start = time.monotonic()
        try:
            yield
        except Skipped:
            self.result["skipped"].append(name)
        except Exception as error:  # the other parts are measured all the same
            self.result["errors"][name] = f"{type(error).__name__}: {error}"[:2000]
            print(f"{name}: {self.result['errors'][name]}", flush=True)
        else:
            self.result["seconds"][name] = round(time.monotonic() - start, 2)
        finally:
            if self.place.type == "cuda":
                torch.cuda.empty_cache()
            self.save()

    def require(self, seconds: float) -> None:
        """Skip this part if it takes more ``seconds`` than are left."""
        if self.left() < seconds:
            raise Skipped

    def save(self) -> None:
        if self.out:
            with atomic(self.out) as temporary:
                temporary.write_text(json.dumps(self.result, indent=1) + "\n")

    def seconds(self, call: Callable[[], object]) -> float:
        """Median time of ``call`` after a first one; fewer repetitions where time is short."""
        times = []
        while len(times) < self.sizes.repetitions + 1:
            start = time.perf_counter()
            call()
            self.synchronise()
            times.append(time.perf_counter() - start)
            if len(times) > 1 and (sum(times[1:]) > PATIENCE_S or self.left() < times[-1]):
                break
        return statistics.median(times[1:])

    def synchronise(self) -> None:
        if self.place.type == "cuda":
            torch.cuda.synchronize()

    def largest(self, most: int, measure: Callable[[int], float]) -> dict[str, float | None]:
        """``measure(size)`` for the largest ``size``, halved from ``most``, that memory has room
        for, beside that size and the peak memory."""
        size = most
        while True:
            if self.place.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                seconds = measure(size)
                break
            except RuntimeError as error:
                said = str(error)
                if size == 1 or not ("out of memory" in said or "ALLOC_FAILED" in said):
                    raise
            # Outside of the clause: the error holds the frames, and these hold the tensors.
            size //= 2
        peak = torch.cuda.max_memory_allocated() / GIB if self.place.type == "cuda" else None
        return {"s": significant(seconds), "size": size, "peak_gib": peak and significant(peak)}


def specification(
    network: dict[str, Any], parameterisation: str = "score", sigma_max: float = 50.0
) -> Model:
    """With an output layer that is not next to zero, as in training's first step: the corrector
    would divide by it."""
    return Model(
        parameterisation=parameterisation,
        residual=False,
        network=NCSNpp(**network, init_scale=1.0),
        sde=VE(type="ve", sigma_min=0.01, sigma_max=sigma_max),
    )


def images(size: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, LEVELS, (n, 3, size, size), dtype=np.uint8)


@contextmanager
def arithmetic(precision: str, model: ScoreModel) -> Iterator[None]:
    """Within, ``model`` computes in ``precision``."""
    model.compute_in(precision)
    try:
        yield
    finally:
        model.compute_in("float32")


def settings(batch: int, micro_batch: int | None, precision: str = "float32") -> Training:
    """Those of the paper tier."""
    return Training(batch_size=batch, micro_batch=micro_batch, precision=precision, flip=True)


def small_batch(size: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0, t, z and probes v of ``n`` images, on the CPU."""
    draws = generator(0, "batch")
    x_0 = dequantise(torch.from_numpy(images(size, n)), LEVELS, draws)
    t = 0.1 + 0.8 * torch.rand(n, generator=draws)
    z = torch.randn(x_0.shape, generator=draws)
    return x_0, t, z, rademacher(x_0.shape, draws)


def quantities(place: torch.device, dtype: torch.dtype, tiny: bool) -> dict[str, Tensor]:
    """What CPU and GPU are to agree on, of a small network."""
    size = 8 if tiny else 16
    models = {
        name: build((3, size, size), specification(SMALL_NETWORK, name, 5.0), seed=0)
        .to(place, dtype)
        .eval()
        for name in ("score", "energy")
    }
    u, c = models["score"], models["energy"]
    x_0, t, z, v = (part.to(place, dtype) for part in small_batch(size, 4))
    mean, std = u.sde.marginal_prob(x_0, t)
    x = mean + std[:, None, None, None] * z
    found = {"score of U": u(x, t), "score of C": c(x, t)}
    found["network"] = u.network(x, u.sde.sigma(t))
    for name, estimator, step in (
        ("trace", "trace", None),
        ("antisymmetric", "antisymmetric", None),
        ("differences", "antisymmetric", FINITE_DIFFERENCES.difference_step),
    ):
        u.zero_grad()
        qc = training_loss(u, x_0, t, z, v[None], estimator, step).qc
        qc.mean().backward()
        gradients = [p.grad.flatten() for p in u.parameters() if p.grad is not None]
        found |= {f"L_QC, {name}": qc, f"its gradient, {name}": torch.cat(gradients)}
    with torch.no_grad():
        corrected, _ = pc.corrector_step(u, u.sde, x, 10, 20, SNR, z)
        found["PC step"], _ = pc.predictor_step(u, u.sde, corrected, 10, 20, v)
    draws = generator(0, "divergence")
    tolerances = dict(rtol=1e-1, atol=1e-1) if tiny else dict(rtol=1e-2, atol=1e-3)
    audited = qcsbm.audit(u, x, [0.3], products="autograd", probes=2, planes=1).levels[0]
    found |= {
        "audit, Asym": torch.tensor(audited.samples.asym),
        "audit, NAsym": torch.tensor(audited.samples.nasym),
        "audit, circulation": torch.tensor(audited.circulation.values),
        "audit, rotation": torch.tensor(audited.spectrum[0].rotation),
    }
    found["bits/dim"], _ = nll_bits_per_dim(u, u.sde, x_0[:2], LEVELS, draws, **tolerances)
    return {name: value.detach().double().cpu() for name, value in found.items()}


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of entries relative to the largest entry of ``b``."""
    return significant(float((a - b).abs().max() / b.abs().max()))


def significant(value: float) -> float:
    return float(f"{value:.4g}")


def measure_agreement(run: Run) -> None:
    tiny, cpu = run.sizes is TINY, torch.device("cpu")
    exact, single = (quantities(cpu, d, tiny) for d in (torch.float64, torch.float32))
    there, there_single = (quantities(run.place, d, tiny) for d in (torch.float64, torch.float32))
    rows = {}
    print(f"{'relative difference':>30} {'float32':>9} {'float64':>9} {'of the CPU':>10}")
    for name in exact:
        rows[name] = {
            "float32": distance(there_single[name], single[name]),
            "float64": distance(there[name], exact[name]),
            "cpu_rounding": distance(single[name], exact[name]),
        }
        print(f"{name:>30} " + " ".join(f"{value:9.2g}" for value in rows[name].values()))
    run.result["agreement"] = rows


def steps_of(
    run: Run, method: Method, training: Training, steps: int, dropout: float | None = None
) -> TrainingState:
    """A training of ``steps`` steps from fresh weights."""
    model, data = run.fresh(method.parameterisation, dropout), images(run.sizes.image, 64)
    return train(model, data, LEVELS, training, method.regulariser, 0, steps)


def same(a: TrainingState, b: TrainingState) -> bool:
    parts = ("model", "ema", "exp_avg", "exp_avg_sq")
    return all(
        torch.equal(tensor, getattr(b, part)[name])
        for part in parts
        for name, tensor in getattr(a, part).items()
    )


def measure_determinism(run: Run) -> None:
    found, sizes = {}, run.sizes
    batch = min(8, sizes.batch)
    for name in ("u", "c", "qc", "qcplus"):
        a, b = (steps_of(run, METHODS[name], settings(batch, None), 3) for _ in range(2))
        found[f"training, {name}"] = same(a, b)
    shape = (3, sizes.image, sizes.image)
    u = run.fresh().eval()
    x_0, t, _, _ = (part.to(run.place) for part in small_batch(sizes.image, batch))
    protocol = PC(type="pc", steps=3, snr=SNR, batch_size=batch)

    def sample() -> Tensor:
        return pc.sample(u, u.sde, (batch, *shape), generator(0, "pc"), protocol, run.place).x

    def divergence() -> Tensor:
        x = x_0.clone().requires_grad_()
        return hutchinson_divergence(u(x, t), x, torch.ones_like(x))

    def asym() -> Tensor:
        return estimate_asymmetry(u, x_0, t, 2, generator(0, "probes"))[1]

    draws = [
        noises.noises(3, (batch, *shape), generator(1, "noise"), place)
        for place in (run.place, "cpu")
    ]
    with draws[0] as ahead, draws[1] as inline:
        found["noise"] = all(torch.equal(z.cpu(), next(inline)) for z in ahead)
    calls = {"samples, pc": sample, "divergence": divergence, "asymmetry": asym}
    found |= {name: torch.equal(call(), call()) for name, call in calls.items()}
    run.result["determinism"] = found
    print("same bytes twice: " + ", ".join(f"{name}: {value}" for name, value in found.items()))


def measure_micro_batches(run: Run) -> None:
    """Three steps without dropout, in parts of the batch and at once: largest difference of Adam's
    first moment, which is a mean of the gradients."""
    batch, found = min(8, run.sizes.batch), {}
    for name in ("u", "c", "qc", "qcplus"):
        whole, parts = (
            steps_of(run, METHODS[name], settings(batch, micro), 3, dropout=0.0)
            for micro in (None, batch // 2)
        )
        moments, expected = (
            torch.cat([m.flatten() for m in state.exp_avg.values()]) for state in (parts, whole)
        )
        found[name] = distance(moments, expected)
    run.result["micro_batches"] = found
    print("parts of a batch against all at once:", {n: f"{d:.2g}" for n, d in found.items()})


def measure_process_group(run: Run) -> None:
    """One process in a group, as `qcsbm.training.parallel` makes it, and none."""
    method, training = METHODS["u"], settings(min(8, run.sizes.batch), None)
    alone = steps_of(run, method, training, 2)
    backend = "nccl" if run.place.type == "cuda" else "gloo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        ones = torch.ones(1000, device=run.place)
        dist.all_reduce(ones)
        summed = bool((ones == 1).all())
        together = steps_of(run, method, training, 2)
    finally:
        dist.destroy_process_group()
    facts = {"backend": backend, "all_reduce": summed, "same_bytes": same(alone, together)}
    run.result["process_group"] = facts
    print("a process group of one:", facts)


CHILD = """
import json, torch
from qcsbm.runtime import gpus
seen = gpus.visible()
free = gpus.take(seen, 1) is not None
second = gpus.take(seen, 2) is not None
total = float(torch.ones(1000, device="cuda").sum()) if seen else 1000.0
print(json.dumps({"seen": len(seen), "free": free, "second_place": second, "sum": total}))
"""


def measure_broker(run: Run) -> None:
    """What another process sees while this one holds its GPU: that it is taken."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    output = subprocess.run(
        [sys.executable, "-c", CHILD],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=60,
    ).stdout
    facts = json.loads(output.splitlines()[-1])
    facts["this_process_sees"] = len(gpus.visible())
    run.result["broker"] = facts
    print("another process:", facts)


class Steps:
    """Times of the steps of a training, taken where it asks whether its state is to be saved."""

    def __init__(self, run: Run):
        self.run, self.ends = run, []

    def due(self) -> bool:
        self.run.synchronise()
        self.ends.append(time.perf_counter())
        times = np.diff(self.ends)
        enough = len(times) == self.run.sizes.repetitions or sum(times) > PATIENCE_S
        if enough or (len(times) and self.run.left() < times[-1]):
            raise Enough
        return False

    def median(self) -> float:
        """Without the first step, which warms up."""
        return float(np.median(np.diff(self.ends)))


def step_seconds(
    run: Run, model: ScoreModel, method: Method, data: np.ndarray, precision: str, micro: int
) -> float:
    batch = min(method.batch, run.sizes.batch)
    training, steps = settings(batch, micro, precision), Steps(run)
    if regulariser := method.regulariser:
        probes = min(regulariser.probes, run.sizes.probes)
        regulariser = regulariser.model_copy(update={"probes": probes})
    with suppress(Enough):
        train(model, data, LEVELS, training, regulariser, 0, 1000, None, lambda _: None, steps.due)
    model.zero_grad()
    return steps.median()


def measure_steps(run: Run, models: dict[str, ScoreModel]) -> None:
    rows = run.result["steps"] = {}
    data = images(run.sizes.image, 2 * run.sizes.batch)
    print(f"{'step':>18} {'precision':>9} {'s':>8} {'x U':>6} {'micro-batch':>11} {'GiB':>6}")
    for precision in ("float32", "bfloat16", "tf32"):
        for name, method in (IN_FLOAT32 if precision == "float32" else METHODS).items():
            model = models[method.parameterisation]
            known = rows.get("u/float32", {}).get("s", 0.0)
            with run.part(f"steps/{name}/{precision}"), arithmetic(precision, model):
                run.require(8 * known)
                measure = partial(step_seconds, run, model, method, data, precision)
                row = run.largest(min(method.batch, run.sizes.batch), measure)
                rows[f"{name}/{precision}"] = row
                show(name, precision, row, rows.get(f"u/{precision}"))


def show(
    name: str, precision: str, row: dict[str, float | None], u: dict[str, float | None] | None
) -> None:
    ratio = f"{row['s'] / u['s']:6.2f}" if u else ""
    peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:6.1f}"
    print(f"{name:>18} {precision:>9} {row['s']:8.4f} {ratio:>6} {row['size']:>11} {peak:>6}")
    sys.stdout.flush()


def published_seconds(run: Run, model: ScoreModel, step: Callable, batch: int, micro: int) -> float:
    """Time of loss and gradients of a ``batch``, in parts, by ``step`` of `qc_step`."""
    parts = [part.to(run.place).split(micro) for part in small_batch(run.sizes.image, batch)]

    def call() -> None:
        model.zero_grad()
        for x_0, t, z, v in zip(*parts, strict=True):
            step(model, x_0, t, z, v)

    model.train()
    return run.seconds(call)


def measure_published(run: Run, models: dict[str, ScoreModel]) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import qc_step

    model, batch, rows = models["score"], run.sizes.batch, run.result["steps"]
    for precision in ("float32", "bfloat16"):
        steps = {
            "published": qc_step.published_step,
            "trace": partial(qc_step.our_step, b=batch, estimator="trace"),
        }
        known = rows.get(f"qc/{precision}", {}).get("s", 0.0)
        for name, step in steps.items():
            with run.part(f"gradient/{name}/{precision}"), arithmetic(precision, model):
                run.require(5 * known)
                measure = partial(published_seconds, run, model, step, batch)
                row = rows[f"gradient, {name}/{precision}"] = run.largest(batch, measure)
                show(f"gradient, {name}", precision, row, rows.get(f"u/{precision}"))
            model.zero_grad()


def evaluation(run: Run, model: ScoreModel, what: str, n: int) -> Callable[[], object]:
    """A call that evaluates ``n`` images once; `PC_CALLS` make two steps of the sampler."""
    size = run.sizes.image
    x, t, z, v = (part.to(run.place) for part in small_batch(size, n))
    x = x + model.sde.std(t)[:, None, None, None] * z
    if what in PC_CALLS:
        protocol = PC(type="pc", steps=2, snr=SNR, batch_size=n)
        shape = (n, 3, size, size)

        def sample() -> None:
            with patch.object(noises, "ahead_on", PC_CALLS[what]):
                pc.sample(model, model.sde, shape, generator(0, "pc"), protocol, run.place)

        return sample
    if what == "asym, one probe":
        return lambda: one_probe_asymmetry(model, x, t, generator(0, "probes"))
    if what == "asym, antisymmetric":
        return lambda: estimate_asymmetry(model, x, t, 1, generator(0, "probes"))

    def drift_and_divergence() -> None:
        x_t = x.detach().requires_grad_()
        hutchinson_divergence(model(x_t, t), x_t, v)

    return drift_and_divergence


EVALUATIONS = ("pc", "likelihood", "asym, one probe", "asym, antisymmetric")
# Those of the sampler, and where it draws noise ahead.
PC_CALLS = {"pc": noises.ahead_on, "pc, noise at its use": lambda device: False}


def measure_evaluations(run: Run, models: dict[str, ScoreModel]) -> None:
    rows = run.result["evaluations"] = {}
    for model in models.values():
        model.eval()
    head = f"{'images/s':>9} {'batch':>6} {'GiB':>6}"
    print(f"{'evaluation':>20} {'model':>6} {'precision':>9} {head}")
    # What the tier needs first.
    names = [("u", w, p) for p in ("float32", "bfloat16", "tf32") for w in EVALUATIONS]
    names += [("c", w, "float32") for w in EVALUATIONS[:3]]
    names += [("u", "pc, noise at its use", "bfloat16")]
    for method, what, precision in names:
        model = models["score" if method == "u" else "energy"]
        known = run.result.get("steps", {}).get("u/float32", {}).get("s", 0.0)
        with run.part(f"evaluations/{method}/{what}/{precision}"), arithmetic(precision, model):
            run.require(8 * known)

            def measure(n: int, model: ScoreModel = model, what: str = what) -> float:
                return run.seconds(evaluation(run, model, what, n))

            row = run.largest(run.sizes.evaluation_batch, measure)
            # Two steps of the sampler were made; an image takes all of them.
            calls = 2 / PC_STEPS if what in PC_CALLS else 1
            row["images_per_s"] = significant(calls * row["size"] / row["s"])
            rows[f"{method}/{what}/{precision}"] = row
            peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:6.1f}"
            numbers = f"{row['images_per_s']:9.4g} {row['size']:6} {peak:>6}"
            print(f"{what:>20} {method:>6} {precision:>9} {numbers}", flush=True)


def measure_features(run: Run) -> None:
    try:
        from qcsbm.quality.extractors import EfficientNetLite0, extract
    except ImportError:  # not among the core dependencies
        raise Skipped from None
    extractor, rows = EfficientNetLite0(), {}
    few, many = (images(run.sizes.image, n) for n in (4, run.sizes.evaluation_batch))
    expected = extract(extractor, few, LEVELS, len(few))
    extractor.to(run.place)
    for precision in PRECISIONS:
        extractor.compute_in(precision)
        found = extract(extractor, few, LEVELS, len(few), run.place)
        seconds = run.seconds(partial(extract, extractor, many, LEVELS, len(many), run.place))
        pairs = [map(torch.from_numpy, pair) for pair in zip(found, expected, strict=True)]
        features, logits = (distance(*pair) for pair in pairs)
        rate = significant(len(many) / seconds)
        rows[precision] = {"features": features, "logits": logits, "images_per_s": rate}
        print(f"features, {precision}: {rows[precision]}", flush=True)
    extractor.compute_in("float32")
    run.result["features"] = rows


def measure_hours(run: Run) -> None:
    """GPU-hours of the whole tier by rule, in every precision of which all is known.

    Evaluations of C other than in float32 are taken to be slower than U's by the same factor.
    """
    steps, evaluations = run.result["steps"], run.result["evaluations"]
    hours = {}
    for precision in PRECISIONS:

        def rate(
            what: str, precision: str = precision, evaluations: dict[str, Any] = evaluations
        ) -> float:
            """Seconds that an evaluation of one image takes, summed over the six methods."""
            of_u = evaluations[f"u/{what}/{precision}"]["images_per_s"]
            single = {m: evaluations[f"{m}/{what}/float32"]["images_per_s"] for m in ("u", "c")}
            return (len(METHODS) - 1 + single["u"] / single["c"]) / of_u

        try:
            step_s = {name: steps[f"{name}/{precision}"]["s"] for name in METHODS}
            later = sum(step_s[name] for name in METHODS if name not in ("u", "c"))
            sets = DATASETS.values()
            totals = {
                "train": sum(
                    d.steps * (step_s["u"] + step_s["c"]) + d.later_steps * later for d in sets
                ),
                "sample, pc": sum(d.samples for d in sets) * rate("pc"),
                "sample, ode": sum(d.samples for d in sets)
                * SOLVER_EVALUATIONS
                * rate("pc")
                / (2 * PC_STEPS),
                "likelihood": sum(d.test for d in sets) * SOLVER_EVALUATIONS * rate("likelihood"),
                "asymmetry": len(sets) * ASYM_LEVELS * ASYM_IMAGES * rate("asym, one probe"),
            }
        except KeyError as error:
            run.result["skipped"].append(f"hours/{precision}: {error} was not measured")
            continue
        totals["together"] = sum(totals.values())
        hours[precision] = {n: significant(SEEDS * s / 3600) for n, s in totals.items()}
        shown = ", ".join(f"{name} {h:.4g}" for name, h in hours[precision].items())
        print(f"GPU-hours, {precision}: {shown}")
    run.result["hours"] = hours


def measure_variants(run: Run, model: ScoreModel) -> None:
    """U's step in other ways, each beside the usual one of its precision."""
    rows, data = run.result["steps"], images(run.sizes.image, 2 * run.sizes.batch)

    def measure(name: str, precision: str) -> None:
        usual = rows[f"u/{precision}"]
        with run.part(f"variants/{name}/{precision}"), arithmetic(precision, model):
            run.require(8 * usual["s"])
            call = partial(step_seconds, run, model, METHODS["u"], data, precision)
            row = rows[f"u, {name}/{precision}"] = run.largest(usual["size"], call)
            show(f"u, {name}", precision, row, usual)

    known = [p for p in ("bfloat16", "float32") if f"u/{p}" in rows]
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    for precision in known:
        measure("any kernel", precision)
    torch.use_deterministic_algorithms(before)
    model.to(memory_format=torch.channels_last)
    for precision in known:
        measure("channels last", precision)
    model.to(memory_format=torch.contiguous_format)
    # Compiling such a network takes minutes: it comes last.
    if run.place.type == "cuda" and known and run.left() > 120:
        model.network.compile()
        measure("compiled", known[0])


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time in which to end")
    parser.add_argument("--out", type=Path, help="JSON to write whenever something is measured")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try this script")
    arguments = parser.parse_args(words)
    seconds = 60 * arguments.minutes
    end = time.monotonic() + seconds
    fix_arithmetic()
    place = claim_device()
    run = Run(place, TINY if arguments.tiny else PAPER, end, arguments.out)
    on_gpu = place.type == "cuda"
    run.result = {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / GIB if on_gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "seconds": {},
        "skipped": [],
        "errors": {},
    }
    print(json.dumps(run.result), flush=True)
    with ending(seconds):
        measure(run)
    print(json.dumps(run.result))


@contextmanager
def ending(seconds: float) -> Iterator[None]:
    """Within, what is under way after so many ``seconds`` is skipped."""

    def leave(number: int, frame: object) -> None:
        raise Skipped

    before = signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with suppress(Skipped):  # between two parts
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(run: Run) -> None:
    for name, section in {
        "agreement": measure_agreement,
        "determinism": measure_determinism,
        "micro_batches": measure_micro_batches,
        "broker": measure_broker,
    }.items():
        with run.part(name):
            run.require(0)
            section(run)
    models = {name: run.fresh(name) for name in ("score", "energy")}
    # Last is what might hang or take long.
    for name, section in {
        "steps": partial(measure_steps, models=models),
        "evaluations": partial(measure_evaluations, models=models),
        "published": partial(measure_published, models=models),
        "hours": measure_hours,
        "features": measure_features,
        "process_group": measure_process_group,
        "variants": partial(measure_variants, model=models["score"]),
    }.items():
        with run.part(name):
            run.require(0)
            section(run)


if __name__ == "__main__":
    main()
