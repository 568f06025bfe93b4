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
    from qcsbm.adapters.ase import from_calculator
    from qcsbm.adapters.azula import from_azula
    from qcsbm.adapters.diffusers import from_diffusers
    from qcsbm.adapters.edm import from_edm
    from qcsbm.adapters.field import Field
    from qcsbm.adapters.functions import from_function, from_numpy
    from qcsbm.adapters.images import from_denoiser
    from qcsbm.adapters.score_sde import from_score_sde
    from qcsbm.auditing.audit import asymmetry, audit
    from qcsbm.auditing.compare import compare
    from qcsbm.auditing.force_report import ForceReport
    from qcsbm.auditing.forces import audit_forces
    from qcsbm.auditing.guidance import audit_guidance
    from qcsbm.auditing.guidance_report import GuidanceReport
    from qcsbm.auditing.report import Report
    from qcsbm.conservativeness.regulariser import quasi_conservative_loss
    from qcsbm.score.schedules import EDM, Discrete, RectifiedFlow
    from qcsbm.score.sde import VE, VP

__version__ = "0.2.0"

# By name, the module that it is defined in.
_PUBLIC = {
    "Discrete": "score.schedules",
    "EDM": "score.schedules",
    "Field": "adapters.field",
    "ForceReport": "auditing.force_report",
    "GuidanceReport": "auditing.guidance_report",
    "RectifiedFlow": "score.schedules",
    "Report": "auditing.report",
    "VE": "score.sde",
    "VP": "score.sde",
    "asymmetry": "auditing.audit",
    "audit": "auditing.audit",
    "audit_forces": "auditing.forces",
    "audit_guidance": "auditing.guidance",
    "compare": "auditing.compare",
    "from_azula": "adapters.azula",
    "from_calculator": "adapters.ase",
    "from_denoiser": "adapters.images",
    "from_diffusers": "adapters.diffusers",
    "from_edm": "adapters.edm",
    "from_function": "adapters.functions",
    "from_numpy": "adapters.functions",
    "from_score_sde": "adapters.score_sde",
    "quasi_conservative_loss": "conservativeness.regulariser",
}
__all__ = [
    "Discrete",
    "EDM",
    "Field",
    "ForceReport",
    "GuidanceReport",
    "RectifiedFlow",
    "Report",
    "VE",
    "VP",
    "asymmetry",
    "audit",
    "audit_forces",
    "audit_guidance",
    "compare",
    "from_azula",
    "from_calculator",
    "from_denoiser",
    "from_diffusers",
    "from_edm",
    "from_function",
    "from_numpy",
    "from_score_sde",
    "quasi_conservative_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qcsbm' has no attribute {name!r}")
    return getattr(import_module(f"qcsbm.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
