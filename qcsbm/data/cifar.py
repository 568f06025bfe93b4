"""CIFAR-10 and CIFAR-100: 32 × 32 colour images, in the "python version" of the official files.

Those files are pickles, and unpickling can run any code. So each of them, the ones that
torchvision's reader opens beside the images included, must have its published MD5 before that
reader is called.

References:
    Learning multiple layers of features from tiny images (Krizhevsky, 2009);
    https://www.cs.toronto.edu/~kriz/cifar.html
"""

import numpy as np

from qcsbm.data.local import require_published, shuffled
from qcsbm.data.raw import dataset_folder
from qcsbm.data.splits import SPLITS, Split, Splits
from qcsbm.schema.sources import Cifar10, Cifar100


def cifar10(config: Cifar10) -> Splits:
    """50 000 training and 10 000 test images of 10 classes, in random order.

    Raises:
        MissingFile: one of the files is missing.
        BadInput: one of the files is not the published one.
    """
    return _read("CIFAR10", config)


def cifar100(config: Cifar100) -> Splits:
    """50 000 training and 10 000 test images of 100 classes, in random order.

    Raises:
        MissingFile: one of the files is missing.
        BadInput: one of the files is not the published one.
    """
    return _read("CIFAR100", config)


def _read(name: str, config: Cifar10 | Cifar100) -> Splits:
    from torchvision import datasets  # takes seconds, and only this source needs it

    published = getattr(datasets, name)
    folder = dataset_folder(config.source)
    origin = f"{published.url} (MD5 {published.tgz_md5}), unpacked in {folder}"
    meta = (published.meta["filename"], published.meta["md5"])
    for file, md5 in [*published.train_list, *published.test_list, meta]:
        require_published(folder / published.base_folder / file, md5, origin)
    splits = {}
    for split in SPLITS:
        dataset = published(folder, train=split == "train")
        splits[split] = Split(dataset.data.transpose(0, 3, 1, 2), np.array(dataset.targets))
    return shuffled(folder, config, splits)
