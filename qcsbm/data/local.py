"""Datasets that a user has put on this machine: what must be there, and the order it is taken in.

Nothing here touches the network; `qcsbm.data.raw` knows where files are.
"""

import hashlib
from pathlib import Path

import numpy as np

from qcsbm.data.splits import SPLITS, Split, Splits
from qcsbm.runtime.errors import BadInput, MissingFile
from qcsbm.runtime.files import CHUNK
from qcsbm.schema.sources import Own, Published


def require_file(path: Path, expected: str) -> None:
    """Raise MissingFile, saying what was ``expected``, if there is no file."""
    if not path.is_file():
        raise MissingFile(
            f"{path}: found no such file, expected {expected}; the environment variable QCSBM_DATA "
            "says where datasets are"
        )


def require_published(path: Path, md5: str, origin: str) -> None:
    """Refuse every file but the published one.

    Raises:
        MissingFile: there is no file.
        BadInput: its MD5 is not ``md5``.
    """
    require_file(path, f"the one with MD5 {md5} from {origin}")
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != md5:
        raise BadInput(
            f"{path}: found a file with MD5 {digest.hexdigest()}, expected {md5}, that of the file "
            f"from {origin}"
        )


def random_order(n: int, limit: int | None, split: str) -> np.ndarray:
    """The first ``limit`` (all if None) of the numbers 0 … n − 1 in an order made once for all.

    Raises:
        BadInput: there are fewer than ``limit``, or none.
    """
    if not n:
        raise BadInput(f"data: found no images in the split {split}, expected at least one")
    if limit is not None and limit > n:
        raise BadInput(
            f"data.{split}: found {limit}, expected at most {n}, the number of images in the files"
        )
    from qcsbm.runtime.seeding import permutation  # with torch, which takes seconds

    return permutation(n, 0, "data", split)[:limit]


def shuffled(folder: Path, config: Own | Published, splits: dict[str, Split]) -> Splits:
    """Random subsets, in random order, of the ``splits`` read from ``folder``.

    Raises:
        BadInput: images have no pixels, differ in shape between the splits or have more than
            ``config.levels`` levels, or images and labels differ in number.
    """
    chosen = {}
    for name in SPLITS:
        images, labels = splits[name].images, splits[name].labels
        if len(labels) != len(images):
            raise BadInput(
                f"{folder}: found {len(labels)} labels and {len(images)} images in the split "
                f"{name}, expected as many of both"
            )
        order = random_order(len(images), getattr(config, name), name)
        chosen[name] = Split(images[order], labels[order].astype(np.int64))
        largest, levels = chosen[name].images.max(initial=0), config.levels
        if largest >= levels:
            raise BadInput(
                f"{folder}: found the pixel value {largest} in the split {name}, expected at most "
                f"{levels - 1} with data.levels = {levels}, as pixels are numbers of levels and "
                "not grey values"
            )
    train, test = (chosen[name].images.shape[1:] for name in SPLITS)
    if 0 in train:
        raise BadInput(f"{folder}: found images of shape {train}, expected some with pixels")
    if train != test:
        raise BadInput(
            f"{folder}: found test images of shape {test}, expected that of the training images, "
            f"{train}"
        )
    return Splits(**chosen, levels=config.levels)
