r"""Variance, coverage, floors and cost of the three ways to products of an audit.

    python benchmarks/audit_estimates.py

Four tables, of one thread:

* the standard deviation of a sample's Asym and NAsym relative to their values, against K, of linear
  fields in 300 dimensions: J Gaussian, with rotation in all planes, and J symmetric but for a
  rotation of 1 % of its norm in a single plane;
* how often 95 % intervals of the mean of n samples hold Asym where all rotation is in one plane,
  the worst case;
* :math:`\lambda = \sqrt{NAsym}` that is measured, and that floors and `zero_within` leave, for a
  small U-Net that is conservative by construction;
* milliseconds per sample of a score U-Net of the same size.

The last line is a JSON object.
"""

import json
import math
import platform
import time

import torch
from torch import Tensor

from qcsbm.conservativeness.estimates import PRODUCTS, estimate, exact, zero_within
from qcsbm.conservativeness.interval import mean
from qcsbm.runtime.seeding import generator
from qcsbm.schema.networks import NCSNpp
from qcsbm.schema.sde import VE
from qcsbm.schema.specifications import Model
from qcsbm.score.models import build

MODEL = Model(
    parameterisation="energy",
    residual=False,
    network=NCSNpp(
        type="ncsnpp",
        nf=8,
        ch_mult=[1, 2],
        num_res_blocks=1,
        attn_resolutions=[4],
        dropout=0.0,
        init_scale=1.0,
    ),
    sde=VE(type="ve", sigma_min=0.01, sigma_max=5.0),
)
D = 300
SHAPE = (1, 8, 8)
PROBES = (4, 8, 16, 32)


def fields() -> dict[str, Tensor]:
    """Jacobians (D, D) by what they are called."""
    draws = generator(0, "jacobians")
    j = torch.randn(D, D, dtype=torch.float64, generator=draws)
    s = j + j.T
    p, q = torch.linalg.qr(torch.randn(D, 2, dtype=torch.float64, generator=draws))[0].T
    r = torch.outer(p, q) - torch.outer(q, p)
    return {"all planes": j, "one plane": s + 0.01 * s.norm() * r / r.norm()}


def deviations(j: Tensor, products: str, probes: int, n: int = 500) -> tuple[float, float, int]:
    """Of Asym and of NAsym, relative to their values, and passes."""
    a = (j - j.T).square().sum()
    x = torch.zeros(n, D, dtype=torch.float64)
    found = estimate(lambda y: y @ j.T, x, probes, products, 1.0, generator(0, products, probes))
    asym, nasym = found.asym / (a / 2), found.nasym() / (a / (4 * j.square().sum()))
    return float(asym.std()), float(nasym.std()), found.evaluations


def coverage(j: Tensor, products: str, probes: int, n: int, repetitions: int = 2000) -> float:
    """The share of intervals that hold Asym."""
    truth = float((j - j.T).square().sum() / 2)
    found = estimate(
        lambda y: y @ j.T,
        torch.zeros(n * repetitions, len(j), dtype=torch.float64),
        probes,
        products,
        1.0,
        generator(0, products, probes, n),
    )
    intervals = [mean(row) for row in found.asym.view(repetitions, n)]
    return sum(i.low <= truth <= i.high for i in intervals) / repetitions


def samples(sigma: float, n: int, dtype: torch.dtype) -> Tensor:
    """Random images with noise of ``sigma``."""
    draws = generator(0, "samples")
    x = torch.rand(n, *SHAPE, generator=draws)
    return (x + sigma * torch.randn(x.shape, generator=draws)).to(dtype)


def floors(sigma: float, dtype: torch.dtype, products: str, step: float) -> dict[str, float]:
    """λ of an exact gradient at a noise level, of its floor, and of the bound that is printed."""
    model = build(SHAPE, MODEL, 0).to(dtype).eval()
    t = model.sde.time(torch.tensor([sigma], dtype=dtype))
    x = samples(sigma, 16, dtype)
    draws = generator(0, "floors")
    found = estimate(lambda y: model(y, t.expand(len(y))), x, 8, products, step * sigma, draws)
    bound = zero_within(found.asym, found.floor, found.comparisons)
    norm = 2 * float(found.squared_norm.mean())
    return {
        "measured": math.sqrt(float(found.asym.mean()) / norm),
        "floor": math.sqrt(float(found.floor.mean()) / norm),
        "zero within": math.nan if bound is None else math.sqrt(bound / norm),
    }


def milliseconds(products: str, probes: int | None, n: int = 32) -> tuple[float, int]:
    """CPU time per sample of estimates, or of exact values where there are no probes; passes."""
    settings = MODEL.model_copy(update={"parameterisation": "score"})
    model = build(SHAPE, settings, 0).eval()
    t, x = torch.full((n,), 0.5), samples(0.2, n, torch.float32)
    times = []
    for _ in range(3):
        start = time.process_time()
        if probes is None:
            found = exact(lambda y: model(y, t), x, products, 2e-3)
        else:
            found = estimate(lambda y: model(y, t), x, probes, products, 2e-3, generator(0))
        times.append(time.process_time() - start)
    return 1e3 * min(times) / n, found.evaluations


def main() -> None:
    torch.set_num_threads(1)
    result = {"torch": torch.__version__, "machine": platform.machine()}

    jacobians = fields()
    print("relative standard deviation of a sample's Asym, NAsym")
    for products in PRODUCTS:
        for probes in PROBES:
            found = {name: deviations(j, products, probes) for name, j in jacobians.items()}
            passes = found["all planes"][2]
            print(f"{products:>18} K = {probes:2d}, {passes:3d} passes: ", end="")
            print(", ".join(f"{name} {a:6.1%} {r:6.1%}" for name, (a, r, _) in found.items()))
            result |= {f"{products}_{probes}_{name}": found[name][:2] for name in found}

    print("coverage of 95 % intervals in the worst case")
    small = jacobians["one plane"][:40, :40]
    p, q = torch.linalg.qr(small)[0][:, :2].T
    plane = torch.outer(p, q) - torch.outer(q, p)
    for products in ("autograd", "forward"):
        for n in (4, 8, 16, 32):
            shares = {probes: coverage(plane, products, probes, n) for probes in (4, 8, 16)}
            print(f"{products:>18} n = {n:2d}: ", end="")
            print(", ".join(f"K = {probes} {share:.1%}" for probes, share in shares.items()))
            result |= {f"covered_{products}_{n}_{k}": share for k, share in shares.items()}

    print("λ of an exact gradient: measured, floor, zero within")
    for dtype in (torch.float32, torch.float64):
        for products in PRODUCTS:
            for step in (1e-3, 1e-2) if products != "autograd" else (0.0,):
                name = f"{str(dtype).removeprefix('torch.')} {products} {step:g}"
                print(f"{name:>36}", end="")
                for sigma in (0.01, 0.2, 5.0):
                    found = floors(sigma, dtype, products, step)
                    print(
                        f"  σ = {sigma:g}: " + " ".join(f"{v:.1e}" for v in found.values()), end=""
                    )
                    result[f"{name} {sigma:g}"] = found
                print()

    print("milliseconds per sample of a score U-Net with 64 inputs")
    for products in PRODUCTS:
        for probes in (8, 16, None):
            cost, passes = milliseconds(products, probes)
            name = "exact" if probes is None else f"K = {probes}"
            print(f"{products:>18} {name:>7}, {passes:3d} passes: {cost:6.2f}")
            result[f"{products} {name} ms"] = cost
    print(json.dumps(result))


if __name__ == "__main__":
    main()
