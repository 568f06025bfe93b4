"""Features of images on disk, with the checksums of what they were made from."""

from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from qcsbm.files import atomic


@dataclass(frozen=True)
class Features:
    """Features (N, F) and class logits (N, C) of N images, float32."""

    features: np.ndarray
    logits: np.ndarray
    extractor_sha256: str
    images_sha256: str


def write(path: str | Path, features: Features) -> None:
    """Write ``features`` as .npz, atomically."""
    with atomic(path) as temporary:
        np.savez(temporary, allow_pickle=False, **asdict(features))


def read(path: str | Path) -> Features:
    """Read what `write` wrote; ValueError if the file holds anything else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Features(
                arrays["features"],
                arrays["logits"],
                str(arrays["extractor_sha256"]),
                str(arrays["images_sha256"]),
            )
    except (ValueError, KeyError, EOFError, BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: found no features ({error}), expected an .npz of them") from None
