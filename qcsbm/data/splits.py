"""A dataset on disk: images as uint8 levels that are memory-mapped, with their checksums."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from pydantic import Field, PositiveInt

from qcsbm.runtime.errors import BadInput, MissingFile
from qcsbm.runtime.files import sha256, write_text
from qcsbm.runtime.npy import read_array, write_array

SPLITS = ("train", "test")
FILES = tuple(f"{name}{what}.npy" for name in SPLITS for what in ("", "_labels"))


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


@pydantic.dataclasses.dataclass(frozen=True)
class Description:
    """What `data.json` says of a prepared dataset."""

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    levels: Annotated[int, Field(ge=2, le=256)]
    classes: Annotated[int, Field(ge=0)]


def write(folder: str | Path, splits: Splits, **facts: object) -> None:
    """Write images and labels of both splits and, last, the JSON that vouches for them.

    ``facts`` on where they are from go into it.
    """
    folder = Path(folder)
    description: dict[str, Any] = {
        "shape": list(splits.train.images.shape[1:]),
        "levels": splits.levels,
        "classes": int(max(splits.train.labels.max(), splits.test.labels.max())) + 1,
    }
    for name in SPLITS:
        split: Split = getattr(splits, name)
        for file, array in [(f"{name}.npy", split.images), (f"{name}_labels.npy", split.labels)]:
            write_array(folder / file, array)
        description[name] = {"n": len(split.images)}
    description["outputs"] = {name: sha256(folder / name) for name in FILES}
    write_text(folder / "data.json", json.dumps(description | facts, indent=1) + "\n")


def describe(folder: str | Path) -> Description:
    """The description of the dataset prepared in ``folder``.

    Raises:
        MissingFile: there is none.
        BadInput: the file holds something else.
    """
    path = Path(folder) / "data.json"
    if not path.is_file():
        raise MissingFile(f"{path}: found no such file, expected that of a prepared dataset")
    try:
        return pydantic.TypeAdapter(Description).validate_json(path.read_bytes(), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "JSON"
        raise BadInput(
            f"{path}: found another {place} ({first['msg']}), expected the description of a "
            "prepared dataset"
        ) from None


def read(folder: str | Path, name: str) -> Split:
    """The split ``name`` of the dataset prepared in ``folder``, memory-mapped.

    Raises:
        BadInput: a file holds something else, or there is not a label for each image.
    """
    images = open_images(Path(folder) / f"{name}.npy")
    path = Path(folder) / f"{name}_labels.npy"
    labels = read_array(path)
    if labels.dtype != np.int64 or labels.shape != (len(images),):
        raise BadInput(
            f"{path}: found {labels.dtype} of shape {labels.shape}, expected int64 of shape "
            f"{(len(images),)}, a label for each image"
        )
    return Split(images, labels)


def first_test_images(folder: str | Path, samples: int | None, stage: str) -> np.ndarray:
    """The first ``samples`` (all if None) test images prepared in ``folder``, memory-mapped.

    Raises:
        BadInput: there are fewer than ``stage`` is to measure, or the file holds something else.
    """
    path = Path(folder) / "test.npy"
    images = open_images(path)
    if samples is not None and samples > len(images):
        raise BadInput(
            f"{stage}.samples: found {samples}, expected at most {len(images)}, the number of "
            f"images in {path}"
        )
    return images[:samples]


def open_images(path: str | Path) -> np.ndarray:
    """Images (N, C, H, W) of a prepared split or of samples, memory-mapped.

    Raises:
        BadInput: the file holds something else.
    """
    images = read_array(path)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise BadInput(
            f"{path}: found {images.dtype} of shape {images.shape}, expected uint8 images of shape "
            "(N, C, H, W)"
        )
    return images
