"""The sources of datasets: functions from a configuration to training and test splits."""

from collections.abc import Callable
from typing import Any

from qcsbm.data.arrays import arrays
from qcsbm.data.cifar import cifar10, cifar100
from qcsbm.data.digits import digits
from qcsbm.data.folder import folder
from qcsbm.data.idx import idx
from qcsbm.data.imagenet32 import imagenet32
from qcsbm.data.patches import patches
from qcsbm.data.splits import Splits
from qcsbm.data.svhn import svhn

SOURCES: dict[str, Callable[[Any], Splits]] = {
    "digits": digits,
    "patches": patches,
    "idx": idx,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "imagenet32": imagenet32,
    "folder": folder,
    "arrays": arrays,
}
