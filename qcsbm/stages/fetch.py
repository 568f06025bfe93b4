"""Download a dataset to where `prepare` looks for it; no other stage touches the network.

torchvision knows the addresses and compares what it got with the published checksums.
"""

import argparse
from collections.abc import Callable

from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from qcsbm.data.raw import dataset_folder
from qcsbm.data.splits import SPLITS

READERS: dict[str, list[tuple[Callable[..., object], dict[str, str]]]] = {
    "cifar10": [(CIFAR10, {})],
    "cifar100": [(CIFAR100, {})],
    "svhn": [(SVHN, {"split": split}) for split in SPLITS],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", choices=READERS, help="dataset")


def run(arguments: argparse.Namespace) -> None:
    folder = dataset_folder(arguments.source)
    folder.mkdir(parents=True, exist_ok=True)
    for reader, options in READERS[arguments.source]:
        try:
            reader(folder, download=True, **options)
        except RuntimeError as error:
            raise OSError(
                f"{folder}: found no complete download ({error}), expected the published files"
            ) from None
