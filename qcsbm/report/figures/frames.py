"""What pictures of runs are drawn from, as tidy frames.

Every path given is that of a record; other files of its stage lie beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from qcsbm.data.splits import open_images
from qcsbm.report.tables import read_csv
from qcsbm.runtime.provenance import read_record


def noise_levels(records: Iterable[Path]) -> pd.DataFrame:
    """Asym and NAsym by noise level, from records of the stage asymmetry.

    Columns: method, seed, then those of its CSV.
    """
    return _beside(records)


def curves(records: Iterable[Path]) -> pd.DataFrame:
    """Learning curves, from records of the stage train: method, seed, step, dsm, qc, grad_norm."""
    frame = _beside(records)
    return frame.sort_values(["method", "seed", "step"], kind="stable", ignore_index=True)


def _beside(records: Iterable[Path]) -> pd.DataFrame:
    frames = []
    for path in records:
        record = read_record(path)
        frame = read_csv(path.with_suffix(".csv"))
        frame.insert(0, "method", record["method"])
        frame.insert(1, "seed", record["seed"])
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def compute(
    records: Iterable[Path], chains: Mapping[str, Sequence[tuple[str, int, int]]]
) -> pd.DataFrame:
    """Seconds of training behind the final checkpoint of every run: method, seed, seconds, clock.

    ``chains`` has, for each method, the (method, first step, last step) of all segments that lead
    there, U's among those of QC; a model that was imported has none and gets no row. ``clock`` is
    "GPU" where one was used, else "CPU". The record of a job that was interrupted counts only the
    steps after its resumption; earlier steps are taken to be as fast.
    """
    seconds_per_step, clocks = {}, {}
    for path in records:
        record = read_record(path)
        cost, last = record["cost"], record["protocol"]["stop"]
        steps = last - cost["started_at_step"]
        if steps == 0:  # nothing was left to do after the resumption
            continue
        key = record["method"], last, record["seed"]
        clocks[key] = "GPU" if "gpu_s" in cost else "CPU"
        seconds_per_step[key] = cost.get("gpu_s", cost["cpu_s"]) / steps
    rows = []
    for method, chain in chains.items():
        for seed in sorted({seed for _, _, seed in clocks}):
            keys = [(of, last, seed) for of, _, last in chain]
            if keys and all(key in clocks for key in keys):
                steps = [last - first for _, first, last in chain]
                seconds = sum(n * seconds_per_step[key] for n, key in zip(steps, keys, strict=True))
                rows.append((method, seed, seconds, clocks[keys[-1]]))
    return pd.DataFrame(rows, columns=["method", "seed", "seconds", "clock"])


def strip(path: Path, n: int) -> np.ndarray:
    """The first ``n`` images of a uint8 file side by side, (H, n · W + n − 1, 3) levels, float.

    A column of NaN lies between two images; where the file holds fewer, NaN takes their place.
    """
    images = np.array(open_images(path)[:n], dtype=float)
    _, channels, height, width = images.shape
    picture = np.full((height, n, width + 1, 3), np.nan)
    picture[:, : len(images), :-1] = images.transpose(2, 0, 3, 1)
    return picture.reshape(height, n * (width + 1), 3)[:, :-1]
