"""PNG images of one size, grey or RGB with 8 bits per channel, in folders ``train`` and ``test``.

References:
    Portable Network Graphics (W3C, 2025), Section 11.2.1, "IHDR image header";
    https://www.w3.org/TR/png-3/
"""

from pathlib import Path

import numpy as np
from PIL import Image

from qcsbm.config import Folder
from qcsbm.data.local import LEVELS, dataset_folder, random_order
from qcsbm.data.splits import SPLITS, Split, Splits

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KIND = slice(24, 26)  # where a PNG file says its bit depth and colour type
KINDS = (bytes([8, 0]), bytes([8, 2]))  # grey and RGB


def folder(config: Folder) -> Splits:
    """The images of both folders, sorted by name and then shuffled, without labels.

    Raises:
        FileNotFoundError: one of the folders is missing.
        ValueError: a file is damaged, or no PNG image of the size and kind of the others.
    """
    shape, splits = None, {}
    for name in SPLITS:
        paths = _files(dataset_folder(config.name) / name)
        images = []
        for i in random_order(len(paths), getattr(config, name), name):
            image = _read(paths[i])
            shape = shape or image.shape
            if image.shape != shape:
                raise ValueError(
                    f"{paths[i]}: found an image of shape {image.shape}, expected {shape} like the "
                    "others"
                )
            images.append(image)
        splits[name] = Split(np.stack(images), np.full(len(images), -1, dtype=np.int64))
    return Splits(**splits, levels=LEVELS)


def _files(split: Path) -> list[Path]:
    """The PNG files in a folder, sorted by name; hidden files are passed over."""
    if not split.is_dir():
        raise FileNotFoundError(
            f"{split}: found no such folder, expected one with PNG images; the environment "
            "variable QCSBM_DATA says where datasets are"
        )
    paths = sorted(path for path in split.iterdir() if not path.name.startswith("."))
    for path in paths:
        if path.suffix.lower() != ".png":
            raise ValueError(
                f"{path}: found another name, expected nothing but *.png in the folder"
            )
    return paths


def _read(path: Path) -> np.ndarray:
    """The pixels (C, H, W) of a PNG file."""
    with path.open("rb") as file:
        header = file.read(KIND.stop)
    # Pillow would convert 16 bits per channel to 8 without a word.
    if not header.startswith(SIGNATURE) or header[KIND] not in KINDS:
        raise ValueError(
            f"{path}: found another kind of file, expected a PNG image, grey or RGB, with 8 bits "
            "per channel"
        )
    try:
        with Image.open(path, formats=["PNG"]) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: found a damaged image ({error}), expected a PNG") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
