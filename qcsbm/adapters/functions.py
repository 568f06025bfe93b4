"""Functions of one's own as fields: of tensors, of NumPy arrays, or in a Python file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qcsbm.adapters.field import Field
from qcsbm.runtime import files as disk
from qcsbm.runtime import own_code
from qcsbm.runtime.errors import BadInput, MissingFile
from qcsbm.score.kinds import Kind
from qcsbm.score.schedules import Schedule


def from_function(
    name: str,
    kind: Kind | None = None,
    schedule: Schedule | None = None,
    *,
    data_range: tuple[float, float] | None = None,
    files: Sequence[str | Path] = (),
) -> Field:
    """What ``module:name`` stands for in ``module.py`` in the working directory.

    That is a `Field`, which says by itself what it is, or a function of tensors or
    `torch.nn.Module`: of x (B, ...) and t (B,) where there is a ``schedule``, and of x alone where
    there is none. Of the working directory nothing but this module, or its whole package, can be
    imported. ``files`` are what the code reads by itself, such as weights: they are not read here,
    but their SHA-256 is noted beside that of the code.

    Raises:
        BadInput: there is no such function, it cannot be imported, or it is a `Field` and something
            is said about it here too.
        MissingFile: there is no such module, or one of ``files`` is missing.
    """
    found = own_code.function(name)
    noted = {}
    for path in [*own_code.files(name), *files]:
        if not Path(path).is_file():
            raise MissingFile(f"{path}: found no such file, expected one that {name} reads")
        noted[str(path)] = disk.sha256(path)
    if isinstance(found, Field):
        if (kind, schedule, data_range) != (None, None, None):
            raise BadInput(
                f"{name}: found a Field, which has a kind, schedule and range of data, expected "
                "none of these beside it"
            )
        return replace(found, files=found.files | noted)
    return Field(
        _of_x_and_t(found, schedule),
        kind or "score",
        schedule,
        name,
        data_range=data_range,
        module=found if isinstance(found, nn.Module) else None,
        files=noted,
    )


def from_numpy(
    function: Callable[..., Any],
    kind: Kind = "score",
    schedule: Schedule | None = None,
    *,
    data_range: tuple[float, float] | None = None,
    name: str = "function",
) -> Field:
    """A ``function`` of NumPy arrays, which nothing is known of but its values.

    It maps x (B, ...) and, where there is a ``schedule``, t (B,) to an array like x.

    >>> import numpy as np, torch
    >>> field = from_numpy(lambda x: np.flip(x, axis=-1))
    >>> field(torch.tensor([[1.0, 2.0]]), torch.zeros(1))
    tensor([[2., 1.]])
    """
    of_arrays = _of_x_and_t(function, schedule)

    def of_tensors(x: Tensor, t: Tensor) -> Tensor:
        value = of_arrays(*(tensor.detach().cpu().numpy() for tensor in (x, t)))
        return torch.from_numpy(np.ascontiguousarray(value)).to(x.device)

    return Field(of_tensors, kind, schedule, name, data_range=data_range, differentiable=False)


def _of_x_and_t(function: Callable[..., Any], schedule: Schedule | None) -> Callable[..., Any]:
    return function if schedule is not None else lambda x, t: function(x)
