"""PNG images of one size, grey or RGB with 8 bits per channel, in folders ``train`` and ``test``.

The value 255 of a PNG is white, whatever the number of levels is: with L of them, level k is stored
as 255 k / (L − 1), rounded as the format says.

References:
    Portable Network Graphics (W3C, 2025), "IHDR image header" and "Sample depth scaling";
    https://www.w3.org/TR/png-3/
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from qcsbm.data.local import random_order
from qcsbm.data.raw import dataset_folder
from qcsbm.data.splits import SPLITS, Split, Splits
from qcsbm.runtime.errors import BadInput, MissingFile
from qcsbm.schema.sources import Folder

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = slice(12, 16)  # where a PNG file says that its header follows
KIND = slice(24, 26)  # and where its bit depth and colour type
KINDS = (bytes([8, 0]), bytes([8, 2]))  # grey and RGB


def folder(config: Folder) -> Splits:
    """The images of both folders, sorted by name and then shuffled, without labels.

    Raises:
        MissingFile: one of the folders is missing.
        BadInput: a file is damaged, or no PNG image of the size and kind of the others, or has
            another grey value than ``config.levels`` ones.
    """
    shape, splits = None, {}
    for name in SPLITS:
        paths = _files(dataset_folder(config.name) / name)
        images = []
        for i in random_order(len(paths), getattr(config, name), name):
            pixels = _read(paths[i], shape)
            images.append(_to_levels(pixels, config.levels, paths[i]))
            shape = pixels.shape
        splits[name] = Split(np.stack(images), np.full(len(images), -1, dtype=np.int64))
    return Splits(**splits, levels=config.levels)


def _files(split: Path) -> list[Path]:
    """The PNG files in a folder, sorted by name; hidden files are passed over."""
    if not split.is_dir():
        raise MissingFile(
            f"{split}: found no such folder, expected one with PNG images; the environment "
            "variable QCSBM_DATA says where datasets are"
        )
    paths = sorted(path for path in split.iterdir() if not path.name.startswith("."))
    for path in paths:
        if path.suffix.lower() != ".png" or not path.is_file():
            raise BadInput(
                f"{path}: found something else, expected nothing but *.png files in the folder"
            )
    return paths


def _read(path: Path, expected: tuple[int, ...] | None) -> np.ndarray:
    """The pixels (C, H, W) of a PNG file, which are decoded only if their shape is ``expected``."""
    with path.open("rb") as file:
        header = file.read(KIND.stop)
    # Pillow would convert 16 bits per channel to 8 without a word.
    described = header.startswith(SIGNATURE) and header[HEADER] == b"IHDR"
    if not described or header[KIND] not in KINDS:
        raise BadInput(
            f"{path}: found another kind of file, expected a PNG image, grey or RGB, with 8 bits "
            "per channel"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                image.verify()  # after which it can only be opened again
            with Image.open(path, formats=["PNG"]) as image:
                shape = (len(image.getbands()), image.height, image.width)
                pixels = np.asarray(image) if expected in (None, shape) else None
                transparent = "transparency" in image.info
    # Damaged files lead Pillow to almost any exception.
    except Exception as error:
        raise BadInput(f"{path}: found a damaged image ({error}), expected a PNG") from None
    if transparent:
        raise BadInput(
            f"{path}: found a transparent colour (the chunk tRNS), expected an opaque image"
        )
    if pixels is None:
        raise BadInput(
            f"{path}: found an image of shape {shape}, expected {expected} like the others"
        )
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _to_levels(pixels: np.ndarray, levels: int, path: Path) -> np.ndarray:
    """The level k of each of the ``pixels``, which are 255 k / (levels − 1), rounded; uint8."""
    k = np.arange(levels)
    # ⌊x + ½⌋ in whole numbers.
    grey = (2 * 255 * k + levels - 1) // (2 * (levels - 1))
    wrong = ~np.isin(pixels, grey)
    if wrong.any():
        raise BadInput(
            f"{path}: found the pixel value {pixels[wrong][0]}, expected one of the {levels} that "
            f"data.levels says, 255 k / {levels - 1} rounded, with k from 0 to {levels - 1}"
        )
    return np.searchsorted(grey, pixels).astype(np.uint8)
