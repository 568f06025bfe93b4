"""ImageNet-32: ImageNet scaled down to 32 × 32 pixels, in the .npz batches of its authors.

The authors publish pickles too, which are not read: unpickling can run any code. Labels are
numbered 1 … 1000 in the files and 0 … 999 here.

References:
    A downsampled variant of ImageNet as an alternative to the CIFAR datasets (Chrabaszcz et al.,
    2017); https://arxiv.org/abs/1707.08819
"""

from pathlib import Path

import numpy as np

from qcsbm.data.local import random_order, require_file
from qcsbm.data.raw import dataset_folder
from qcsbm.data.splits import Split, Splits
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.npy import read_array
from qcsbm.schema.sources import ImageNet32

SHAPE = (3, 32, 32)
CLASSES = 1000
BATCHES = {
    "train": [f"train_data_batch_{i}.npz" for i in range(1, 11)],
    "test": ["val_data.npz"],
}
# SHA-256 as in the checksums of TensorFlow Datasets' imagenet_resized.
ARCHIVES = {
    "train": (
        "https://image-net.org/data/downsample/Imagenet32_train_npz.zip",
        "94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc",
    ),
    "test": (
        "https://image-net.org/data/downsample/Imagenet32_val_npz.zip",
        "013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a",
    ),
}


def imagenet32(config: ImageNet32) -> Splits:
    """1 281 167 training and 50 000 validation images of 1 000 classes, in random order.

    Each batch is scattered to its places in the shuffled split as it is read, so the peak of
    memory is the wanted images (3.9 GB for all of them) and two batches (0.4 GB each).

    Raises:
        MissingFile: one of the files is missing.
        BadInput: one of the files is damaged or holds something else.
    """
    folder = dataset_folder(config.source)
    for name, files in BATCHES.items():
        for file in files:
            _require_batch(folder / file, *ARCHIVES[name])
    splits = {
        name: _read([folder / file for file in files], getattr(config, name), name)
        for name, files in BATCHES.items()
    }
    return Splits(**splits, levels=config.levels)


def _require_batch(path: Path, url: str, sha256: str) -> None:
    pickled = path.with_suffix("")
    if pickled.exists() and not path.exists():
        raise BadInput(
            f"{pickled}: found the pickled release, which is not read, as unpickling can run any "
            f"code; expected {path.name} from {url}"
        )
    require_file(path, f"the one from {url} (SHA-256 {sha256}), unpacked in {path.parent}")


def _read(paths: list[Path], limit: int | None, split: str) -> Split:
    labels = [_read_labels(path) for path in paths]
    ends = np.cumsum([len(batch) for batch in labels])
    order = random_order(int(ends[-1]), limit, split)
    place = np.full(ends[-1], -1)
    place[order] = np.arange(len(order))
    images = np.empty((len(order), *SHAPE), dtype=np.uint8)
    for path, batch, end in zip(paths, labels, ends, strict=True):
        places = place[end - len(batch) : end]
        wanted = places >= 0
        images[places[wanted]] = _read_images(path, len(batch))[wanted]
    return Split(images, np.concatenate(labels)[order])


def _read_labels(path: Path) -> np.ndarray:
    labels = read_array(path, "labels")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise BadInput(
            f"{path}: found labels of {labels.dtype} and shape {labels.shape}, expected a list of "
            "integers"
        )
    if not ((labels >= 1) & (labels <= CLASSES)).all():
        raise BadInput(
            f"{path}: found labels from {labels.min()} to {labels.max()}, expected 1 to {CLASSES}"
        )
    return labels.astype(np.int64) - 1


def _read_images(path: Path, n: int) -> np.ndarray:
    images = read_array(path, "data")
    shape = (n, int(np.prod(SHAPE)))
    if images.dtype != np.uint8 or images.shape != shape:
        raise BadInput(
            f"{path}: found data of {images.dtype} and shape {images.shape}, expected uint8 and "
            f"{shape}, an image for each label"
        )
    return images.reshape(n, *SHAPE)
