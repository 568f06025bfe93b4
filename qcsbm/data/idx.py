"""Grey images in four IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

A file is a big-endian header, then the values, the last index running fastest: two zero bytes, a
byte for the type of a value (8: unsigned byte), one for the number d of dimensions, d lengths of 32
bits each. The header is not believed: what is read, and so memory, is bounded by what the file
holds.

References:
    Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms (Xiao et al.,
    2017); https://arxiv.org/abs/1708.07747
    The MNIST database of handwritten digits (LeCun et al., 1998), "File formats";
    http://yann.lecun.com/exdb/mnist/
"""

import gzip
import math
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from qcsbm.data.local import require_file, shuffled
from qcsbm.data.raw import dataset_folder
from qcsbm.data.splits import Split, Splits
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import CHUNK
from qcsbm.schema.sources import Idx

FASHION_MNIST = "fashion-mnist"
PREFIX = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 8


def idx(config: Idx) -> Splits:
    """The images and labels of ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, with or without
    ``.gz``, in random order.

    Raises:
        MissingFile: one of the files is missing.
        BadInput: one of the files is damaged or holds something else, or they do not fit.
    """
    folder = dataset_folder(config.name)
    splits = {}
    for name, prefix in PREFIX.items():
        images = _read(folder / f"{prefix}-images-idx3-ubyte", 3)
        labels = _read(folder / f"{prefix}-labels-idx1-ubyte", 1)
        splits[name] = Split(images[:, None], labels)
    return shuffled(folder, config, splits)


def _read(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array with ``ndim`` dimensions in ``path`` or, if there is none, ``path``.gz."""
    if path.is_file():
        with path.open("rb") as file:
            return _parse(file, path, ndim)
    path = path.with_name(f"{path.name}.gz")
    require_file(path, _origin(path) if path.parent.name == FASHION_MNIST else "an IDX file")
    try:
        with gzip.open(path) as file:
            return _parse(file, path, ndim)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInput(
            f"{path}: found a damaged gzip file ({error}), expected a gzipped IDX file"
        ) from None


def _origin(path: Path) -> str:
    """Which file of Fashion-MNIST ``path`` is, and where it comes from."""
    from torchvision.datasets import FashionMNIST  # takes seconds, and is not always needed

    md5 = dict(FashionMNIST.resources)[path.name]
    return f"the IDX file from {FashionMNIST.mirrors[0]}{path.name} (MD5 {md5})"


def _parse(file: BufferedIOBase, path: Path, ndim: int) -> np.ndarray:
    header = file.read(4 + 4 * ndim)
    magic = bytes([0, 0, UNSIGNED_BYTE, ndim])
    if len(header) < 4 + 4 * ndim or header[:4] != magic:
        raise BadInput(
            f"{path}: found a file that begins with {header[:4].hex(' ') or 'nothing'}, expected "
            f"the header of an IDX file of unsigned bytes with {ndim} dimensions, {magic.hex(' ')} "
            "and the lengths"
        )
    shape = struct.unpack(f">{ndim}I", header[4:])
    size = math.prod(shape)
    values = bytearray()
    while len(values) <= size and (chunk := file.read(CHUNK)):
        values += chunk
    if len(values) != size:
        found = "more" if len(values) > size else str(len(values))
        raise BadInput(
            f"{path}: found {found} bytes after the header, expected {size}, as the header says "
            f"that the shape is {shape}"
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
