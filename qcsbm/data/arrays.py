"""Images in NumPy arrays: ``train`` and ``test``, .npz or .npy, with labels or without.

An .npz file holds arrays ``images`` and, if there are labels, ``labels``; beside .npy files of
images lie ``train_labels.npy`` and ``test_labels.npy``. The order of the axes is not guessed from
their lengths: the configuration says it.
"""

from pathlib import Path

import numpy as np

from qcsbm.data.local import require_file, shuffled
from qcsbm.data.raw import dataset_folder
from qcsbm.data.splits import SPLITS, Split, Splits
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.npy import read_array
from qcsbm.schema.sources import Arrays

LARGEST_LABEL = 2**16 - 1  # a network that classifies has an output for each smaller one
TO_NCHW = {
    "nhw": lambda images: images[:, None],
    "nhwc": lambda images: images.transpose(0, 3, 1, 2),
    "nchw": lambda images: images,
}


def arrays(config: Arrays) -> Splits:
    """The images of both files, their axes in the order ``config.layout``, in random order.

    Raises:
        MissingFile: a file is missing.
        BadInput: a file is damaged, or holds anything but uint8 images with 1 or 3 channels or
            anything but one label from 0 to `LARGEST_LABEL` for each of them.
    """
    folder = dataset_folder(config.name)
    return shuffled(folder, config, {name: _read(folder, name, config) for name in SPLITS})


def _read(folder: Path, split: str, config: Arrays) -> Split:
    path = label_path = folder / f"{split}.npz"
    keys: tuple[str | None, str | None] = ("images", "labels")
    if not path.is_file():
        path, label_path = folder / f"{split}.npy", folder / f"{split}_labels.npy"
        keys = (None, None)
    images = _images(path, keys[0], config.layout)
    if config.labels:
        return Split(images, _labels(label_path, keys[1]))
    return Split(images, np.full(len(images), -1))


def _images(path: Path, key: str | None, layout: str) -> np.ndarray:
    """Images (N, C, H, W)."""
    require_file(path, "the images of a split, or an .npz file of that name")
    images = read_array(path, key)
    if images.dtype != np.uint8 or images.ndim != len(layout) or not images.size:
        raise BadInput(
            f"{path}: found {images.dtype} of shape {images.shape}, expected uint8 with the axes "
            f"{layout}, of at least one pixel"
        )
    images = TO_NCHW[layout](images)
    if images.shape[1] not in (1, 3):
        raise BadInput(
            f"{path}: found {images.shape[1]} channels with the axes {layout}, expected 1 or 3"
        )
    return images


def _labels(path: Path, key: str | None) -> np.ndarray:
    require_file(path, "the labels of a split")
    labels = read_array(path, key)
    expected = f"expected a list of whole numbers from 0 to {LARGEST_LABEL}"
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise BadInput(
            f"{path}: found labels of {labels.dtype} and shape {labels.shape}, {expected}"
        )
    wrong = (labels < 0) | (labels > LARGEST_LABEL)
    if wrong.any():
        raise BadInput(f"{path}: found the label {labels[wrong][0]}, {expected}")
    return labels
