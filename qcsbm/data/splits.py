"""A dataset on disk: images as uint8 levels that are memory-mapped, with their checksums."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcsbm.files import atomic, sha256, write_text

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), uint8 in 0 … levels − 1, and labels (N,), int64, −1 where unknown."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Splits:
    """A training and a test split; both in random order, so that a prefix is a random subset."""

    train: Split
    test: Split
    levels: int


@dataclass(frozen=True)
class Description:
    """What `data.json` says of a prepared dataset."""

    shape: tuple[int, int, int]
    levels: int
    classes: int


def write(folder: str | Path, splits: Splits) -> None:
    """Write images and labels of both splits and, last, the JSON that vouches for them."""
    folder = Path(folder)
    description: dict = {
        "shape": list(splits.train.images.shape[1:]),
        "levels": splits.levels,
        "classes": int(max(splits.train.labels.max(), splits.test.labels.max())) + 1,
    }
    for name in SPLITS:
        split: Split = getattr(splits, name)
        for file, array in [(f"{name}.npy", split.images), (f"{name}_labels.npy", split.labels)]:
            with atomic(folder / file) as temporary:
                np.save(temporary, array, allow_pickle=False)
        description[name] = {"n": len(split.images), "sha256": sha256(folder / f"{name}.npy")}
    write_text(folder / "data.json", json.dumps(description, indent=1) + "\n")


def describe(folder: str | Path) -> Description:
    """The description of the dataset prepared in ``folder``."""
    raw = json.loads((Path(folder) / "data.json").read_text())
    return Description(tuple(raw["shape"]), raw["levels"], raw["classes"])


def open_images(path: str | Path) -> np.ndarray:
    """Images (N, C, H, W) of a prepared split or of samples, memory-mapped.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: found no NumPy array ({error}), expected images") from None
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{path}: found {images.dtype} of shape {images.shape}, expected uint8 images of shape "
            "(N, C, H, W)"
        )
    return images
