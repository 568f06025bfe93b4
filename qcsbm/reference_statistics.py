"""Statistics of a reference set as others publish them: an .npz file with ``mu`` and ``sigma``.

Such files come from ``pytorch-fid --save-stats`` and from the authors of the FID. How many images
they are of is not in them.

References:
    pytorch-fid: FID Score for PyTorch (Seitzer, 2020); https://github.com/mseitzer/pytorch-fid
    https://github.com/bioinf-jku/TTUR (precalculated statistics)
"""

from pathlib import Path

import numpy as np

from qcsbm.data.npy import read_array
from qcsbm.errors import BadInput, MissingFile
from qcsbm.metrics.frechet import FeatureStatistics


def read(path: str | Path) -> FeatureStatistics:
    """The mean ``mu`` (D,) and covariance ``sigma`` (D, D) in the file ``path``.

    Raises:
        MissingFile: there is no such file.
        BadInput: an array is missing, is no array of finite real numbers of that shape, or sigma
            is not symmetric.
    """
    if not Path(path).is_file():
        raise MissingFile(f"{path}: found no such file, expected one with mu and sigma")
    mu, sigma = read_array(path, "mu"), read_array(path, "sigma")
    for name, array in (("mu", mu), ("sigma", sigma)):
        if array.dtype.kind != "f":
            raise BadInput(f"{path}: found {name} of {array.dtype}, expected real numbers")
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape:
        raise BadInput(
            f"{path}: found mu of shape {mu.shape} and sigma of shape {sigma.shape}, expected (D,) "
            "and (D, D)"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise BadInput(f"{path}: found values that are not finite, expected finite ones")
    # Sums in another order may differ by rounding in the precision that the file is in.
    scale = np.abs(sigma).max(initial=0)
    asymmetry = np.abs(sigma - sigma.T).max(initial=0)
    if asymmetry > 1e3 * np.finfo(sigma.dtype).eps * scale:
        raise BadInput(
            f"{path}: found sigma that differs from its transpose by {asymmetry:.3g}, expected a "
            "symmetric matrix"
        )
    return FeatureStatistics(mu.astype(np.float64), sigma.astype(np.float64))
