"""An order of feature vectors that is as good as random and does not depend on that of the rows."""

from hashlib import blake2b

import numpy as np


def by_content(features: np.ndarray) -> np.ndarray:
    """The rows of ``features`` (N, D) in the order of a hash of what they hold; indices (N,)."""
    return np.array(sorted(range(len(features)), key=lambda i: _hash(features[i])))


def _hash(row: np.ndarray) -> bytes:
    return blake2b(row.tobytes()).digest()
