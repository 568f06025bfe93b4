"""Samples for an audit: arrays, prepared datasets and folders of images, as the command has them.

Whole numbers from 0 to 255 become [0, 1], and then the range that the model was trained on, where
that is known; floats stay as they are.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qcsbm.adapters.field import Field
from qcsbm.data import splits
from qcsbm.runtime.errors import BadInput, MissingFile
from qcsbm.runtime.npy import array_names, read_array
from qcsbm.runtime.seeding import permutation

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def samples(path: str | Path, field: Field, n: int, seed: int) -> Tensor:
    """``n`` samples (n, ...), or all if there are fewer, for an audit of ``field``.

    ``path`` is a .npy or .npz file with one array, the folder of a prepared dataset, whose test
    images are taken, or a folder of images of one size. Which samples, ``seed`` decides.

    Raises:
        BadInput: it is none of these, or its content does not fit.
        MissingFile: there is nothing.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFile(f"{path}: found nothing there, expected a file or folder of samples")
    levels = 256
    if (path / "data.json").is_file():
        levels = splits.describe(path).levels
        array = splits.open_images(path / "test.npy")
        chosen = _chosen(len(array), n, seed)
        x = array[chosen]
    elif path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)
        if not files:
            raise BadInput(
                f"{path}: found no images and no data.json, expected a folder of images or that of "
                "a prepared dataset"
            )
        x = _images([files[i] for i in _chosen(len(files), n, seed)], field.shape)
    else:
        array = _array(path)
        x = array[_chosen(len(array), n, seed)]
    if x.dtype == np.uint8:
        return _scaled(torch.from_numpy(x).float() / (levels - 1), field.data_range)
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _chosen(available: int, n: int, seed: int) -> np.ndarray:
    """The order of files often says what is in them: a random part, in its own order."""
    return np.sort(permutation(available, seed, "samples")[:n])


def _array(path: Path) -> np.ndarray:
    if path.suffix == ".npz":
        names = array_names(path)
        if len(names) != 1:
            raise BadInput(
                f"{path}: found arrays {', '.join(names) or 'of no name'}, expected one of samples"
            )
        array = read_array(path, names[0])
    elif path.suffix == ".npy":
        array = read_array(path)
    else:
        raise BadInput(f"{path}: found the suffix {path.suffix!r}, expected .npy or .npz")
    if array.ndim < 2 or not len(array) or array.dtype not in (np.uint8, np.float32, np.float64):
        raise BadInput(
            f"{path}: found {array.dtype} of shape {array.shape}, expected at least one sample, "
            "(n, ...), of uint8, float32 or float64"
        )
    return array


def _images(files: list[Path], shape: tuple[int, ...] | None) -> np.ndarray:
    """Images (n, C, H, W), grey where the model's are or, if that is not known, the first is."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise BadInput(
            "Pillow: found no such package, expected it for images; pip install 'qcsbm[figures]'"
        ) from None
    mode = None if shape is None else {1: "L", 3: "RGB"}.get(shape[0])
    images: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as image:
                mode = mode or ("L" if image.mode in ("1", "L") else "RGB")
                pixels = np.asarray(image.convert(mode))
        except (UnidentifiedImageError, OSError) as error:
            raise BadInput(f"{file}: found no image ({error}), expected one") from None
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if images and pixels.shape != images[0].shape:
            raise BadInput(
                f"{file}: found an image of shape {pixels.shape}, expected {images[0].shape} like "
                "the others"
            )
        images.append(pixels)
    return np.stack(images)


def _scaled(x: Tensor, data_range: tuple[float, float] | None) -> Tensor:
    low, high = data_range or (0.0, 1.0)
    return low + (high - low) * x
