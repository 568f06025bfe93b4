"""Work of one measurement, split over jobs by whole batches of its protocol.

A shard is called "2-of-5", as Snakemake's scatter calls it. Draws are functions of the batch, so
that the results do not depend on the number of shards. There may be any number of them, even more
than batches.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.npy import read_array


def share(shard: str, batches: int) -> range:
    """The numbers of the batches, of ``batches`` in all, that belong to ``shard``.

    Raises:
        BadInput: ``shard`` is no "i-of-n" with 1 ≤ i ≤ n.
    """
    found = re.fullmatch(r"(\d+)-of-(\d+)", shard)
    i, n = map(int, found.groups()) if found else (0, 0)
    if not 1 <= i <= n:
        raise BadInput(f"shard: found {shard!r}, expected one such as '2-of-5'")
    return range((i - 1) * batches // n, i * batches // n)


def join(paths: Iterable[Path], names: Iterable[str]) -> list[np.ndarray]:
    """The arrays ``names`` of all shards, one after the other.

    Raises:
        BadInput: a file does not hold them, or they do not fit those of the others.
    """
    paths = list(paths)
    arrays = []
    for name, parts in zip(names, zip(*read(paths, names), strict=True), strict=True):
        try:
            arrays.append(np.concatenate(parts))
        except ValueError as error:
            raise BadInput(
                f"{paths[0]} and the other shards: found {name} that do not fit ({error}), "
                "expected parts of one array"
            ) from None
    return arrays


def read(paths: Iterable[Path], names: Iterable[str]) -> Iterator[tuple[np.ndarray, ...]]:
    """The arrays ``names`` of every shard's .npz, one shard at a time.

    Raises:
        BadInput: a file does not hold them.
    """
    for path in paths:
        yield tuple(read_array(path, name) for name in names)
