"""The files that each source of a dataset reads: where they are, and what they are.

Where files lie is a fact of the machine and no part of an experiment; what is in them is. The
environment variable ``QCSBM_DATA`` (``data`` in the working directory if unset) names a folder with
one subfolder per dataset. Nothing here imports torch, or reads an image.
"""

import hashlib
import json
import os
from pathlib import Path

from qcsbm.runtime import outside, packages
from qcsbm.schema.sources import Data, Fingerprint

# Of each source, patterns of its files below its folder.
PATTERNS = {
    "digits": ("data/digits.csv.gz",),
    "patches": ("images/china.jpg", "images/flower.jpg"),
    "idx": ("t*-ubyte", "t*-ubyte.gz"),
    "cifar10": ("cifar-10-batches-py/*",),
    "cifar100": ("cifar-100-python/*",),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "imagenet32": ("train_data_batch_*.npz", "val_data.npz"),
    "folder": ("train/*", "test/*"),
    "arrays": ("train*.np[yz]", "test*.np[yz]"),
}
PACKAGED = ("digits", "patches")


def dataset_folder(name: str) -> Path:
    """The folder of the dataset ``name`` on this machine."""
    return Path(os.environ.get("QCSBM_DATA", "data")) / name


def folder(data: Data) -> Path:
    """The folder that ``data`` is read from: that of a user, or one of scikit-learn."""
    if data.source in PACKAGED:
        return packages.folder("sklearn") / "datasets"
    return dataset_folder(getattr(data, "name", data.source))


def fingerprint(data: Data) -> Fingerprint | None:
    """Number, size in bytes and SHA-256 of the files of ``data``; None if there are none.

    The SHA-256 is that of a list with the name, size and SHA-256 of every file.
    """
    place = folder(data)
    paths = sorted(
        path
        for pattern in PATTERNS[data.source]
        for path in place.glob(pattern)
        if path.is_file() and not path.name.startswith(".")
    )
    rows = [(p.relative_to(place).as_posix(), p.stat().st_size, outside.sha256(p)) for p in paths]
    if not rows:
        return None
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return Fingerprint(files=len(rows), bytes=sum(size for _, size, _ in rows), sha256=digest)


def prepared(path: str | Path) -> Fingerprint | None:
    """The fingerprint of what the dataset described by the file ``path`` was prepared from."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))["raw"]
        return Fingerprint(**{key: found[key] for key in Fingerprint.model_fields})
    except (OSError, ValueError, KeyError, TypeError):
        return None
