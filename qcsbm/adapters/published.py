"""Reads NCSN++ checkpoints in the layout of score_sde and of the paper's code.

Such a file is a dictionary: "model" is a state dict with names like ``all_modules.7.Conv_0.weight``
(``module.`` in front where the network was trained in parallel), in which ``all_modules`` counts
the blocks in the order of the forward pass; "ema" holds the averaged parameters as the list
"shadow_params", without names, in the order of the model's trained parameters; "optimizer" is the
state dict of an Adam over all parameters, the untrained frequencies of the embedding included;
where score_sde wrote the file, "step" completes it. The model's ``sigmas``, the noise scales of
discrete training, are not used by a network that is conditional on log σ.

That code has two kinds of networks more, which upsample by a convolution: with ``ddpm`` blocks and
``resamp_with_conv``, and with a residual output pyramid. It cannot run them, so that no such files
exist. Networks with ``ddpm`` blocks, ``fir`` and no ``resamp_with_conv`` it can, and they are read.

References:
    https://github.com/yang-song/score_sde_pytorch (models/ncsnpp.py, models/ema.py, utils.py)
    https://github.com/chen-hao-chao/qcsbm (real_world/utils.py)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qcsbm.adapters import torch_file
from qcsbm.nets.layers import (
    Attention,
    Conv,
    DownsampleConv,
    FourierEmbedding,
    ResidualBlock,
    StridedConv,
)
from qcsbm.nets.ncsnpp import InputSkip, NCSNpp, Resampling
from qcsbm.runtime.errors import BadInput

T = TypeVar("T")


@dataclass(frozen=True)
class PublishedCheckpoint:
    """The raw and the averaged weights, Adam's moments by parameter, and the training step.

    All have the precision of the network; ``converted`` names the others that the file has tensors
    of. The moments are empty where the file has none.
    """

    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    step: int
    converted: tuple[str, ...]


def read_published(path: str | Path, network: NCSNpp) -> PublishedCheckpoint:
    """The checkpoint at ``path`` under the names of ``network``, which it must fit exactly.

    Where the file has no step, the number of updates of the average stands in for it: training
    raises both together. The frequencies of the embedding are not trained, hence not averaged.

    Raises:
        MissingFile: there is no such file.
        BadInput: the file holds more than tensors and plain values, is not in this layout, or
            has missing, unexpected or wrongly shaped tensors or values that are not finite.
    """
    contents = torch_file.load(path, "a published NCSN++ checkpoint")
    model = _entry(contents, path, dict, "model")
    shadow = _entry(contents, path, list, "ema", "shadow_params")
    step_keys = ("step",) if "step" in contents else ("ema", "num_updates")
    step = _entry(contents, path, int, *step_keys)
    if not 0 <= step < 2**63:
        raise BadInput(f"{path}: step: found another number, expected a number of steps")

    model = {str(name): tensor for name, tensor in model.items()}
    if all(name.startswith("module.") for name in model):
        model = {name.removeprefix("module."): tensor for name, tensor in model.items()}
    model = {name: tensor for name, tensor in model.items() if name != "sigmas"}
    names = published_names(network)
    shapes = {names[our]: _stored_shape(names[our], t) for our, t in network.state_dict().items()}
    dtype = next(network.parameters()).dtype
    _require(model, shapes, dtype, f"{path}: model")

    trained = [names[our] for our, _ in network.named_parameters()]
    if len(shadow) != len(trained):
        raise BadInput(
            f"{path}: ema.shadow_params has {len(shadow)} tensors, expected {len(trained)}"
        )
    averages = dict(zip(trained, shadow, strict=True))
    trained_shapes = {name: shapes[name] for name in trained}
    _require(averages, trained_shapes, dtype, f"{path}: ema.shadow_params")
    moments = _moments(contents, path, list(names.values()))
    for part, tensors in moments.items():
        if tensors:
            _require(tensors, trained_shapes, dtype, f"{path}: optimizer.state {part}")
    found = {t.dtype for part in (model, averages, *moments.values()) for t in part.values()}

    def ours(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            our: _to_ours(name, tensors[name]).to(dtype)
            for our, name in names.items()
            if name in tensors
        }

    return PublishedCheckpoint(
        model=ours(model),
        ema=ours(model | averages),
        exp_avg=ours(moments["exp_avg"]),
        exp_avg_sq=ours(moments["exp_avg_sq"]),
        step=step,
        converted=tuple(sorted(str(kind).removeprefix("torch.") for kind in found - {dtype})),
    )


def _moments(
    contents: dict[str, Any], path: str | Path, names: list[str]
) -> dict[str, dict[str, Tensor]]:
    """Both moments by published name; empty before the first step and without an optimizer.

    The state dict of an optimizer counts parameters, here ``names``, in its order.
    """
    moments: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
    if "optimizer" not in contents:
        return moments
    state = _entry(contents, path, dict, "optimizer", "state")
    for number in state:
        if type(number) is not int or number not in range(len(names)):
            raise BadInput(
                f"{path}: optimizer.state: found parameter {number}, expected numbers below "
                f"{len(names)}, the number of parameters"
            )
    for number in state:
        for part, tensors in moments.items():
            where = ("optimizer", "state", number, part)
            tensors[names[number]] = _entry(contents, path, Tensor, *where)
    return moments


def published_names(network: NCSNpp) -> dict[str, str]:
    """The published name of every entry of the network's state dict, in the published order."""
    blocks = BLOCKS | (DDPM_BLOCKS if network.resblock == "ddpm" else {})
    state = network.state_dict()
    return {
        f"{prefix}.{ours}": f"all_modules.{n}.{published}"
        for n, (prefix, block) in enumerate(_blocks(network, ""))
        for ours, published in blocks.get(type(block), {}).items()
        if f"{prefix}.{ours}" in state
    }


def _layer(ours: str, published: str) -> dict[str, str]:
    return {f"{ours}.{leaf}": f"{published}.{leaf}" for leaf in ("weight", "bias")}


def _projection(ours: str, published: str) -> dict[str, str]:
    return {f"{ours}.weight": f"{published}.W", f"{ours}.bias": f"{published}.b"}


PLAIN = {"weight": "weight", "bias": "bias"}
RESIDUAL_BLOCK = (
    _layer("norm_0", "GroupNorm_0")
    | _layer("conv_0", "Conv_0")
    | _layer("dense", "Dense_0")
    | _layer("norm_1", "GroupNorm_1")
    | _layer("conv_1", "Conv_1")
)
BLOCKS = {
    FourierEmbedding: {"frequencies": "W"},
    nn.Linear: PLAIN,
    Conv: PLAIN,
    nn.GroupNorm: PLAIN,
    ResidualBlock: RESIDUAL_BLOCK | _layer("shortcut", "Conv_2"),
    Attention: _layer("norm", "GroupNorm_0")
    | _projection("query", "NIN_0")
    | _projection("key", "NIN_1")
    | _projection("value", "NIN_2")
    | _projection("output", "NIN_3"),
    DownsampleConv: _layer("conv", "Conv2d_0"),
    StridedConv: _layer("conv", "Conv_0"),
    InputSkip: _layer("project", "Conv_0"),
}
DDPM_BLOCKS = {ResidualBlock: RESIDUAL_BLOCK | _projection("shortcut", "NIN_0")}


def _blocks(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """What ``all_modules`` counts, with our names, in order of registration: the forward order."""
    for name, child in module.named_children():
        if isinstance(child, Resampling):
            yield f"{prefix}{name}.resample", child.resample
        elif type(child) in BLOCKS:
            yield prefix + name, child
        else:
            yield from _blocks(child, f"{prefix}{name}.")


def _is_projection(published: str) -> bool:
    return ".NIN_" in published and published.endswith(".W")


def _stored_shape(published: str, ours: Tensor) -> tuple[int, ...]:
    """Projections are stored as (in, out) matrices; ours are 1 × 1 convolutions (out, in, 1, 1)."""
    return (ours.shape[1], ours.shape[0]) if _is_projection(published) else tuple(ours.shape)


def _to_ours(published: str, stored: Tensor) -> Tensor:
    return stored.T[:, :, None, None].contiguous() if _is_projection(published) else stored


def _entry(contents: object, path: str | Path, kind: type[T], *keys: str | int) -> T:
    """What the file holds under ``keys``; BadInput unless that is a ``kind``."""
    for key in keys:
        contents = contents.get(key) if isinstance(contents, dict) else None
    if type(contents) is bool or not isinstance(contents, kind):
        found = "nothing" if contents is None else type(contents).__name__
        raise BadInput(
            f"{path}: {'.'.join(map(str, keys))}: found {found}, expected {kind.__name__}"
        )
    return contents


def _require(
    tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, where: str
) -> None:
    """BadInput unless tensors have exactly the expected names and shapes, and values that are
    finite in ``dtype``."""
    found = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in tensors.items()}
    faults = {
        "missing": [name for name in shapes if name not in found],
        "unexpected": [name for name in found if name not in shapes],
        "wrong in shape": [
            f"{name} {found[name]} for {shape}"
            for name, shape in shapes.items()
            if found.get(name, shape) != shape
        ],
        "without finite floating-point numbers": [
            name
            for name, shape in shapes.items()
            if found.get(name) == shape and not _is_finite(tensors[name], dtype)
        ],
    }
    if any(faults.values()):
        raise BadInput(
            f"{where} does not fit the network: "
            + "; ".join(f"{fault}: {_some(names)}" for fault, names in faults.items() if names)
        )


def _is_finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether ``tensor`` is a dense one in memory, of numbers that are finite in ``dtype``."""
    dense = tensor.layout == torch.strided and tensor.is_cpu
    return dense and tensor.is_floating_point() and bool(tensor.to(dtype).isfinite().all())


def _some(names: list[str], shown: int = 5) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
