"""A model by its name, as the command line has it."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qcsbm.adapters.diffusers import from_diffusers
from qcsbm.adapters.field import Field
from qcsbm.adapters.functions import from_function
from qcsbm.adapters.score_sde import from_score_sde
from qcsbm.runtime.errors import BadInput, MissingFile

EXPECTED = (
    "the folder of a model of diffusers, a published checkpoint .pth of score_sde, or "
    "module:function for a function in module.py in the working directory"
)
PICKLES = (".pkl", ".pickle", ".pt", ".ckpt", ".bin", ".joblib")


def load(model: str, **settings: Any) -> Field:
    """The field that ``model`` names; ``settings`` are those of its adapter.

    A folder is one of diffusers (`from_diffusers`), a file that ends in ``.pth`` one of score_sde
    (`from_score_sde`), and ``module:function`` a function of one's own (`from_function`).

    Raises:
        BadInput: it is none of these, or has other settings; or see its adapter.
    """
    path = Path(model)
    adapter: Callable[..., Field]
    if path.is_dir():
        adapter = from_diffusers
    elif path.suffix == ".pth":
        adapter = from_score_sde
    elif ":" in model and not path.exists():
        adapter = from_function
    elif path.suffix in PICKLES:
        raise BadInput(
            f"{model}: found a file that may hold code, expected none, as nothing is unpickled: "
            "where you trust it, save its state_dict() with safetensors, and name a function "
            "module:function that builds the model and loads that file"
        )
    elif not path.exists():
        raise MissingFile(f"{model}: found nothing of that name, expected {EXPECTED}")
    else:
        raise BadInput(f"{model}: found a file, expected {EXPECTED}")
    known = list(inspect.signature(adapter).parameters)[1:]
    for name in settings:
        if name not in known:
            raise BadInput(
                f"{model}: found the setting {name}, expected some of {', '.join(known)} for a "
                "model of this sort"
            )
    return adapter(model, **settings)
