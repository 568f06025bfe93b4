"""Checkpoints: one safetensors file with raw weights, EMA weights and Adam's moments.

Tensors are named ``model.*``, ``ema.*``, ``exp_avg.*`` and ``exp_avg_sq.*`` after the parameters of
the model, and ``qc_grad.*`` where a step's gradient of L_QC counts for later steps too; the header
carries the step, the specification of the training, the digests of the code that it ran
(`qcsbm.runtime.provenance.Record`) and, as long as the training goes on, its learning curve so far
and the losses since that curve's last row. Reading one executes nothing.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import atomic
from qcsbm.schema.specifications import Measured, Run, Trained

PARTS = ("model", "ema", "exp_avg", "exp_avg_sq", "qc_grad")
HEADER = ("step", "spec", "curve", "window", "code")


@dataclass
class TrainingState:
    """All that training needs to go on from ``step``: random draws are functions of the step."""

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    spec: dict[str, Any] = field(default_factory=dict)
    curve: list[list[float | None]] = field(default_factory=list)
    window: list[list[float]] = field(default_factory=list)
    qc_grad: dict[str, Tensor] = field(default_factory=dict)
    code: dict[str, list[str]] = field(default_factory=dict)


def save(path: str | Path, state: TrainingState) -> None:
    """Write ``state`` atomically."""
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part in PARTS
        for name, tensor in getattr(state, part).items()
    }
    header = {name: getattr(state, name) for name in HEADER}
    with atomic(path) as temporary:
        write_tensors(temporary, tensors, header)


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a safetensors file with ``header`` as JSON.

    Raises:
        OSError: it could not be written.
    """
    try:
        save_file(tensors, path, metadata={"qcsbm": json.dumps(header, sort_keys=True)})
    except SafetensorError as error:
        raise OSError(error) from None


def load(path: str | Path, step: int | None = None) -> TrainingState:
    """Read a checkpoint, that of ``step`` where one is given.

    Raises:
        BadInput: the file is damaged, was not written by `save` or belongs to another step.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["qcsbm"])
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                part, _, name = key.partition(".")
                parts[part][name] = file.get_tensor(key)
        state = TrainingState(
            model=parts["model"],
            ema=parts["ema"],
            exp_avg=parts["exp_avg"],
            exp_avg_sq=parts["exp_avg_sq"],
            qc_grad=parts["qc_grad"],
            **header,
        )
    except (
        SafetensorError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise BadInput(
            f"{path}: found no usable checkpoint ({error}), expected one that training or "
            "import-checkpoint wrote"
        ) from None
    if step is not None and state.step != step:
        raise BadInput(f"{path}: found a checkpoint at step {state.step}, expected step {step}")
    return state


def code(path: str | Path) -> dict[str, list[str]]:
    """Which code made a checkpoint that `load` can read, as `qcsbm.runtime.provenance.Record` has
    it."""
    return _header(path).get("code", {})


def require_trained(path: str | Path, spec: Measured, trained: Trained) -> None:
    """Refuse a checkpoint of another training than ``trained``, of the measurement ``spec``.

    Nothing is known of files from outside.

    Raises:
        BadInput: dataset, method, seed, model or regulariser of the training are others.
    """
    require_run(path, spec, ("dataset", "method", "seed", "model"))
    found = _header(path)["spec"]
    if not found or _starts_outside(spec):
        return
    of_file = found["protocol"].get("regulariser") or {}
    expected = trained.regulariser.model_dump() if trained.regulariser else {}
    keys = ("weight", "estimator", "probes", "every", "time_sampling")
    for key in (*keys, "derivatives", "difference_step"):
        _require_same(path, f"regulariser.{key}", of_file.get(key), expected.get(key))


def require_run(path: str | Path, spec: Run, keys: Iterable[str]) -> None:
    """Refuse a checkpoint whose training had other values of ``keys`` than ``spec`` has.

    That of a network of one's own had the same code.

    Raises:
        BadInput: see above.
    """
    found = _header(path)["spec"]
    if not found or _starts_outside(spec):
        return
    expected = spec.document()
    for key in keys:
        _require_same(path, key, found.get(key), expected.get(key))
    code = found.get("outside", {}).get("network")
    _require_same(path, "code of the network with SHA-256", code, spec.outside.get("network"))


def _starts_outside(spec: Run) -> bool:
    """Whether the checkpoint that the stage starts from is a file that no job has made."""
    return not spec.outside.keys().isdisjoint(("init", "checkpoint"))


def _require_same(path: str | Path, key: str, found: object, expected: object) -> None:
    if found != expected:
        raise BadInput(
            f"{path}: found a checkpoint that was trained with {key} {found}, expected {expected}"
        )


def _header(path: str | Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["qcsbm"])


def load_weights(
    model: nn.Module, path: str | Path, weights: str, step: int | None = None
) -> nn.Module:
    """Put the ``weights`` ("ema" or "raw") of a checkpoint into ``model``, ready for evaluation.

    Raises:
        BadInput: the file is damaged, or belongs to another network or another step than
            ``step``.
    """
    state = load(path, step)
    restore(model, state.ema if weights == "ema" else state.model, path)
    return model.eval().requires_grad_(False)


def restore(model: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Load ``tensors`` into ``model``; BadInput names the first one that does not fit."""
    _require(tensors, model.state_dict(), path)
    model.load_state_dict(tensors)


def require_fit(state: TrainingState, model: nn.Module, path: str | Path) -> None:
    """Raise BadInput, naming the first tensor of ``state`` that does not fit, if one does not."""
    expected = model.state_dict()
    _require(state.model, expected, path)
    _require(state.ema, expected, path)
    trained = {name: expected[name] for name in names(model)}
    if state.exp_avg or state.exp_avg_sq:  # neither before the first step
        _require(state.exp_avg, trained, path)
        _require(state.exp_avg_sq, trained, path)
    if state.qc_grad:
        _require(state.qc_grad, trained, path)


def _require(tensors: dict[str, Tensor], expected: dict[str, Tensor], path: str | Path) -> None:
    for name in sorted(expected.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        wanted = tuple(expected[name].shape) if name in expected else "nothing"
        if found != wanted:
            raise BadInput(f"{path}: tensor {name}: found {found}, expected {wanted}")
        if tensors[name].dtype != expected[name].dtype:
            raise BadInput(
                f"{path}: tensor {name}: found {tensors[name].dtype}, expected "
                f"{expected[name].dtype}"
            )
        if not tensors[name].isfinite().all():
            raise BadInput(
                f"{path}: tensor {name}: found a value that is not finite, expected none"
            )


def names(model: nn.Module) -> list[str]:
    """The trainable parameters of ``model``, in the order of its optimiser."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def adam_moments(
    optimiser: torch.optim.Adam, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """First and second moments by parameter name; empty before the first step."""
    moments = [optimiser.state.get(p, {}) for p in optimiser.param_groups[0]["params"]]
    named = list(zip(names(model), moments, strict=True))
    return (
        {name: moment["exp_avg"] for name, moment in named if moment},
        {name: moment["exp_avg_sq"] for name, moment in named if moment},
    )


def restore_adam(optimiser: torch.optim.Adam, model: nn.Module, state: TrainingState) -> None:
    """Give ``optimiser`` the moments and the step count of ``state``."""
    for name, parameter in zip(names(model), optimiser.param_groups[0]["params"], strict=True):
        if name in state.exp_avg:
            optimiser.state[parameter] = {
                "step": torch.tensor(float(state.step)),
                "exp_avg": state.exp_avg[name].to(parameter.device),
                "exp_avg_sq": state.exp_avg_sq[name].to(parameter.device),
            }
