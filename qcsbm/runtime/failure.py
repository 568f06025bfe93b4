"""What stands in place of a result that could not be computed: a file that says why.

A computation that diverges will diverge again with the same configuration and seed, so that this is
a result like any other. The stage writes the reason into each of its outputs and ends well; a stage
that is given such a file passes it on; tables show the reason in place of a number.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import write_text

KEY = "failure"
# How such a file begins, whatever format its name promises.
MARK = b'{"failure": "'


class Told(Protocol):
    """What a stage is told, see `qcsbm.schema.specifications.Specification`."""

    def document(self) -> dict[str, Any]: ...

    def columns(self) -> dict[str, Any]: ...


def write(paths: Iterable[Path], reason: str, spec: Told) -> None:
    """Put ``reason`` in place of every output of a stage with this specification.

    The same JSON object serves as the record of the stage: it has no metrics.
    """
    specification = spec.document()
    identity = ("dataset", "method", "seed")
    facts = {key: specification[key] for key in identity if key in specification}
    document = {
        KEY: reason,
        **facts,
        "specification": specification,
        "stage": KEY,
        "metrics": [],
        "protocol": spec.columns(),
    }
    for path in paths:
        write_text(path, json.dumps(document) + "\n")


def read(path: Path) -> str | None:
    """The reason that stands in place of the file ``path``, None if the file is what it should be.

    Raises:
        BadInput: the file begins as one with a reason does and is damaged.
    """
    with open(path, "rb") as file:
        if file.read(len(MARK)) != MARK:
            return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))[KEY]
    except (ValueError, RecursionError):
        raise BadInput(f"{path}: found half of a reason, expected a file or a reason") from None


def first(paths: Iterable[Path]) -> str | None:
    """The first reason that stands in place of one of the files ``paths``, if any."""
    return next((reason for path in paths if path.is_file() and (reason := read(path))), None)
