"""Features of images on disk, with the checksums of what they were made from."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.npy import read_array, write_arrays


@dataclass(frozen=True)
class Features:
    """Features (N, F) and class logits (N, C) of N images, float32.

    The extractor recognises the share ``extractor_accuracy`` of the dataset's test images; NaN for
    one that did not learn its classes. ``code`` has the digests of the code that computed them,
    with spaces between them, see `qcsbm.runtime.source_code`.
    """

    features: np.ndarray
    logits: np.ndarray
    extractor_sha256: str
    images_sha256: str
    extractor_accuracy: float = math.nan
    code: str = ""


def write(path: str | Path, features: Features) -> None:
    """Write ``features`` as .npz, atomically."""
    write_arrays(path, **asdict(features))


def read(path: str | Path) -> Features:
    """Read what `write` wrote; BadInput if the file holds anything else."""
    features, logits = read_array(path, "features"), read_array(path, "logits")
    accuracy = read_array(path, "extractor_accuracy")
    if accuracy.dtype != np.float64 or accuracy.ndim:
        raise BadInput(
            f"{path}: found an accuracy of {accuracy.dtype} and shape {accuracy.shape}, expected a "
            "float64 number"
        )
    extractor, images, code = (
        str(read_array(path, name)) for name in ("extractor_sha256", "images_sha256", "code")
    )
    found = Features(features, logits, extractor, images, float(accuracy), code)
    for name in ("features", "logits"):
        array = getattr(found, name)
        if array.dtype != np.float32 or array.ndim != 2 or not np.isfinite(array).all():
            raise BadInput(
                f"{path}: found {name} of {array.dtype} and shape {array.shape}, expected finite "
                "float32 numbers in a row per image"
            )
    if len(found.features) != len(found.logits):
        raise BadInput(
            f"{path}: found features of {len(found.features)} images and logits of "
            f"{len(found.logits)}, expected as many of both"
        )
    return found
