"""Optional libraries, imported when they are first used."""

import sys
from typing import Any

from qcsbm.runtime.errors import BadInput


def library(name: str) -> Any:
    """The package ``name``, which the extra of that name of this package brings.

    Raises:
        BadInput: it is not installed.
    """
    try:
        # No code of this package, whose imports are followed by name.
        __import__(name)
        return sys.modules[name]
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise BadInput(
            f"{name}: found no such package, expected it for models of that library: pip install "
            f"'qcsbm[{name}]'"
        ) from None
