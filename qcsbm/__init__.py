"""Is a vector field conservative, and does it matter? An audit of any field, and the benchmark.

The modules follow "On Investigating the Conservative Property of Score-Based Generative
Models" (Chao, Sun, Cheng, Lee; ICML 2023; https://arxiv.org/abs/2209.12753), called
"the paper" throughout.

The names in ``__all__`` are the public interface. They are imported when they are first used, so
that ``import qcsbm`` itself takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcsbm.adapters.azula import from_azula
    from qcsbm.adapters.diffusers import from_diffusers
    from qcsbm.adapters.edm import from_edm
    from qcsbm.adapters.field import Field
    from qcsbm.adapters.functions import from_function, from_numpy
    from qcsbm.adapters.score_sde import from_score_sde
    from qcsbm.score.schedules import EDM, Discrete, RectifiedFlow
    from qcsbm.score.sde import VE, VP

__version__ = "0.1.0"

# By name, the module that it is defined in.
_PUBLIC = {
    "Discrete": "score.schedules",
    "EDM": "score.schedules",
    "Field": "adapters.field",
    "RectifiedFlow": "score.schedules",
    "VE": "score.sde",
    "VP": "score.sde",
    "from_azula": "adapters.azula",
    "from_diffusers": "adapters.diffusers",
    "from_edm": "adapters.edm",
    "from_function": "adapters.functions",
    "from_numpy": "adapters.functions",
    "from_score_sde": "adapters.score_sde",
}
__all__ = [
    "Discrete",
    "EDM",
    "Field",
    "RectifiedFlow",
    "VE",
    "VP",
    "from_azula",
    "from_diffusers",
    "from_edm",
    "from_function",
    "from_numpy",
    "from_score_sde",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qcsbm' has no attribute {name!r}")
    return getattr(import_module(f"qcsbm.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
