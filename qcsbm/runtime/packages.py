"""Where other packages are installed, for the sake of the files that they ship."""

from importlib.util import find_spec
from pathlib import Path


def folder(package: str) -> Path:
    """The folder of ``package``, which is not imported, as that may take seconds.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No package named {package!r}")
    return Path(spec.origin).parent
