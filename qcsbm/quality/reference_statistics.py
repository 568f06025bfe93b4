"""Statistics of a reference set as others publish them, in an .npz file.

``pytorch-fid --save-stats`` and the authors of the FID publish the mean ``mu`` and the covariance
``sigma`` of features, without the number of images. score_sde publishes the features themselves,
``pool_3``, one row per image, in some files with the ``logits`` beside them.

References:
    pytorch-fid: FID Score for PyTorch (Seitzer, 2020); https://github.com/mseitzer/pytorch-fid
    https://github.com/bioinf-jku/TTUR (precalculated statistics)
    https://github.com/yang-song/score_sde_pytorch (evaluation.py, load_dataset_stats)
"""

from pathlib import Path

import numpy as np

from qcsbm.quality.frechet import BLOCK, FeatureStatistics, feature_statistics
from qcsbm.runtime.errors import BadInput, MissingFile
from qcsbm.runtime.npy import array_names, read_array

EXPECTED = "mu and sigma, or pool_3"


def read(path: str | Path) -> tuple[FeatureStatistics, int | None]:
    """The statistics in the file ``path``, and the number of images where the file tells it.

    Raises:
        MissingFile: there is no such file.
        BadInput: arrays are missing, have other shapes or hold anything but finite real numbers, or
            sigma is not symmetric.
    """
    if not Path(path).is_file():
        raise MissingFile(f"{path}: found no such file, expected one with {EXPECTED}")
    names = array_names(path)
    if {"mu", "sigma"} <= set(names):
        return _of_moments(path), None
    if "pool_3" in names:
        return _of_features(path)
    found = ", ".join(names) or "none"
    raise BadInput(f"{path}: found the arrays {found}, expected {EXPECTED}")


def _of_features(path: str | Path) -> tuple[FeatureStatistics, int]:
    """From the features ``pool_3`` (N, D), and N."""
    features = _real(path, "pool_3")
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise BadInput(f"{path}: found pool_3 of shape {features.shape}, expected (N, D), N ≥ 2")
    _require_finite(path, *(features[i : i + BLOCK] for i in range(0, len(features), BLOCK)))
    return feature_statistics(features), len(features)


def _of_moments(path: str | Path) -> FeatureStatistics:
    """The mean ``mu`` (D,) and the covariance ``sigma`` (D, D)."""
    mu, sigma = _real(path, "mu"), _real(path, "sigma")
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape:
        raise BadInput(
            f"{path}: found mu of shape {mu.shape} and sigma of shape {sigma.shape}, expected (D,) "
            "and (D, D)"
        )
    _require_finite(path, mu, sigma)
    # Sums in another order may differ by rounding, in the precision of the file.
    scale = np.abs(sigma).max(initial=0)
    asymmetry = np.abs(sigma - sigma.T).max(initial=0)
    if asymmetry > 1e3 * np.finfo(sigma.dtype).eps * scale:
        raise BadInput(
            f"{path}: found sigma that differs from its transpose by {asymmetry:.3g}, expected a "
            "symmetric matrix"
        )
    return FeatureStatistics(mu.astype(np.float64), sigma.astype(np.float64))


def _real(path: str | Path, name: str) -> np.ndarray:
    array = read_array(path, name)
    if array.dtype.kind != "f":
        raise BadInput(f"{path}: found {name} of {array.dtype}, expected real numbers")
    return array


def _require_finite(path: str | Path, *arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise BadInput(f"{path}: found values that are not finite, expected finite ones")
