"""Time and memory of the metrics of sample quality, against pytorch-fid and prdc.

    python benchmarks/metrics.py [--features 10240] [--pairs 5000] [--repetitions 3]

Features have 2 048 dimensions and a spectrum that falls over six decades. Times are taken in turn,
with one BLAS thread, as in a job of the workflow (prdc starts eight threads of its own). Peak
memory, without the features, is that of a process of its own each: of all 50 000 features for the
estimate of the Fréchet distance, with its error and extrapolation; for kernel distance, precision,
recall, density and coverage that of 50 000 × 50 000 is extrapolated from two smaller sizes, the
larger twice the smaller, growing with N here and with N² in prdc. Linux only.

The last line is a JSON object; times are medians in seconds, memory is in MB.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from prdc import compute_prdc
from pytorch_fid.fid_score import calculate_frechet_distance
from threadpoolctl import threadpool_limits

from qcsbm.quality.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    frechet_estimate,
)
from qcsbm.quality.kernel_distance import kernel_distance
from qcsbm.quality.prdc import prdc

D = 2048
N = 50_000
K = 3


def features(seed: int, n: int) -> np.ndarray:
    """Gaussian features (n, D), float32, with variances from 1 to 1e-6."""
    x = np.random.default_rng(seed).standard_normal((n, D), dtype=np.float32)
    x *= np.logspace(0, -3, D, dtype=np.float32)
    return x


def correlated_statistics(seed: int, n: int) -> FeatureStatistics:
    """Statistics of ``n`` features with a dense covariance."""
    rng = np.random.default_rng(seed)
    return feature_statistics(features(seed, n) @ rng.standard_normal((D, D), dtype=np.float32))


def peer_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def peer_prdc(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        result = compute_prdc(real, fake, K)
    return {name: float(value) for name, value in result.items()}


def our_prdc(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    return {name: value for name, (value, _) in prdc(real, fake, K)._asdict().items()}


def in_turn(functions: dict, repetitions: int) -> tuple[dict, dict, dict]:
    """Median wall and CPU time of each of ``functions``, taken in turn, and what it returned."""
    wall, cpu, values = {name: [] for name in functions}, {name: [] for name in functions}, {}
    for _ in range(repetitions):
        for name, function in functions.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            values[name] = function()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
    medians = ({n: statistics.median(t) for n, t in times.items()} for times in (wall, cpu))
    return *medians, values


def peak_of_pairs(function, n: int) -> float:
    real, fake = features(0, n), features(1, n)
    before = high_water_mark()
    with threadpool_limits(1):
        function(real, fake)
    return high_water_mark() - before


def peak_of_estimate(n: int) -> float:
    x, b = features(0, n), FeatureStatistics(np.ones(D), np.eye(D))
    before = high_water_mark()
    with threadpool_limits(1):
        frechet_estimate(x, b)
    return high_water_mark() - before


def high_water_mark() -> float:
    """The most memory that this process has held, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024 / 1e6


def alone(function, *arguments) -> float:
    """What ``function`` returns in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


@dataclass(frozen=True)
class Peaks:
    """Peak memory of n / 2 and n features of each kind, and of N, where it grows as n^power."""

    n: int
    half: float
    whole: float
    extrapolated: float

    @classmethod
    def measure(cls, function, n: int, power: int) -> "Peaks":
        half, whole = (alone(peak_of_pairs, function, m) for m in (n // 2, n))
        slope = max(whole - half, 0.0) / (n**power - (n // 2) ** power)
        return cls(n, half, whole, whole + slope * (N**power - n**power))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=5 * D, help="features of a covariance")
    parser.add_argument(
        "--pairs", type=int, default=5000, help="features of each kind, at least 4096"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="timed calls of each kind")
    arguments = parser.parse_args()
    n = arguments.pairs

    measured = {
        # Here it grows with N once there are several blocks.
        "precision … coverage": Peaks.measure(our_prdc, 2 * n, power=1),
        "prdc": Peaks.measure(peer_prdc, n, power=2),
        "kernel distance": Peaks.measure(kernel_distance, 2 * n, power=1),
    }
    estimate_peak = alone(peak_of_estimate, N)
    with threadpool_limits(1):
        a, b = (correlated_statistics(seed, arguments.features) for seed in (0, 1))
        x = features(2, arguments.features)
        wall, cpu, value = in_turn(
            {
                "distance": lambda: frechet_distance(a, b),
                "pytorch-fid": lambda: peer_distance(a, b),
                "statistics": lambda: feature_statistics(x),
                "estimate": lambda: frechet_estimate(x, b),
            },
            arguments.repetitions,
        )
        real, fake = features(3, n), features(4, n)
        pairs_wall, pairs_cpu, shares = in_turn(
            {
                "precision … coverage": lambda: our_prdc(real, fake),
                "prdc": lambda: peer_prdc(real, fake),
                "kernel distance": lambda: kernel_distance(fake, real),
            },
            arguments.repetitions,
        )
    relative = abs(value["distance"] / value["pytorch-fid"] - 1)
    print(f"Fréchet distance of {arguments.features} features: {value['distance']:.6g}, relative")
    ours, theirs = shares["precision … coverage"], shares["prdc"]
    print(f"difference {relative:.1e}; of {n} features of each kind: {ours} and {theirs}")
    print(f"{'':>22} {'wall s':>8} {'CPU s':>8}")
    for name, seconds in (wall | pairs_wall).items():
        print(f"{name:>22} {seconds:8.2f} {(cpu | pairs_cpu)[name]:8.2f}")
    print(f"peak memory, MB: estimate from {N} features {estimate_peak:.0f}")
    for name, peaks in measured.items():
        print(
            f"{name} of {peaks.n // 2}, {peaks.n} and, extrapolated, {N} features of each kind: "
            f"{peaks.half:.0f}, {peaks.whole:.0f} and {peaks.extrapolated:.0f}"
        )
    result = {
        "distance_s": wall["distance"],
        "pytorch_fid_s": wall["pytorch-fid"],
        "distance_ratio": wall["pytorch-fid"] / wall["distance"],
        "relative_difference": relative,
        "statistics_s": wall["statistics"],
        "estimate_s": wall["estimate"],
        "pair_us": 1e6 * pairs_wall["precision … coverage"] / n**2,
        "prdc_pair_us": 1e6 * pairs_wall["prdc"] / n**2,
        "kernel_pair_us": 1e6 * pairs_wall["kernel distance"] / n**2,
        "same_shares": all(math.isclose(ours[name], theirs[name]) for name in ours),
        "estimate_peak_mb": estimate_peak,
        "peak_mb": measured["precision … coverage"].extrapolated,
        "kernel_peak_mb": measured["kernel distance"].extrapolated,
        "prdc_peak_mb": measured["prdc"].extrapolated,
        "machine": platform.processor() or platform.machine(),
        **{name: version(name) for name in ("numpy", "scipy", "pytorch-fid", "prdc")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
