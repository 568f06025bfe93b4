"""Handwritten digits: 1 797 grey images of 8 × 8 pixels with 17 levels, shipped by scikit-learn.

References:
    Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998);
    https://doi.org/10.24432/C50P49
"""

import numpy as np

from qcsbm.data.splits import Split, Splits
from qcsbm.schema.sources import Digits


def digits(config: Digits) -> Splits:
    """A stratified split with ``config.test`` test images, the same for every seed."""
    # These take a second, and only this source needs them.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=config.test, random_state=0, stratify=labels
    )
    return Splits(Split(train_x, train_y), Split(test_x, test_y), levels=17)
