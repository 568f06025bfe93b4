"""Colour patches of natural images, cut from the two photographs that scikit-learn ships.

Each photograph is cut into vertical bands. The right end of a band, as wide as a patch, is for
testing, the rest is for training: no pixel is in both, and both see all of the scene.
"""

import numpy as np

from qcsbm.data.splits import Split, Splits
from qcsbm.runtime.errors import BadInput
from qcsbm.schema.sources import Patches

BAND = 5  # widths of a patch per band; the last one is for testing


def patches(config: Patches) -> Splits:
    """``config.train`` and ``config.test`` different positions, drawn once for all seeds.

    Raises:
        BadInput: there are fewer positions than patches asked for.
    """
    from sklearn.datasets import load_sample_images  # takes a second, and only this source needs it

    photographs = load_sample_images().images
    size = config.size
    rng = np.random.default_rng(0)
    splits = {}
    for name, wanted in [("train", config.train), ("test", config.test)]:
        positions = [
            (i, y, x)
            for i, photograph in enumerate(photographs)
            for x in _columns(photograph.shape[1], size, name)
            for y in range(photograph.shape[0] - size + 1)
        ]
        if wanted > len(positions):
            raise BadInput(
                f"data.{name}: found {wanted}, expected at most {len(positions)}, the positions of "
                f"{size} × {size} patches"
            )
        chosen = [positions[p] for p in rng.permutation(len(positions))[:wanted]]
        images = [photographs[i][y : y + size, x : x + size] for i, y, x in chosen]
        splits[name] = Split(
            np.stack(images).transpose(0, 3, 1, 2).copy(), np.full(wanted, -1, dtype=np.int64)
        )
    return Splits(**splits, levels=256)


def _columns(width: int, size: int, split: str) -> list[int]:
    """Left edges of the patches of a split."""
    columns: list[int] = []
    for band in range(0, width - BAND * size + 1, BAND * size):
        edge = band + (BAND - 1) * size
        columns += [edge] if split == "test" else range(band, edge - size + 1)
    return columns
