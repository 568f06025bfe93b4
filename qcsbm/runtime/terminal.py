"""Text on terminals, and in logs, that cannot show all of its characters.

Where the encoding of standard output or standard error has no "–" or "σ", as under the locale C,
plain ASCII takes the place of what is commonly printed, and a backslash escape that of the rest.
"""

import codecs
import sys
from io import TextIOWrapper

STAND_INS = {
    **dict.fromkeys("–—−", "-"),
    **{
        "→": "->",
        "±": "+-",
        "×": "x",
        "·": "*",
        "…": "...",
        "≥": ">=",
        "≤": "<=",
        "⁺": "+",
        "‖": "||",
        "é": "e",
    },
    **{"ε": "epsilon", "κ": "kappa", "λ": "lambda", "σ": "sigma", "Σ": "Sigma", "∇": "grad"},
}


def show_plainly() -> None:
    """Let nothing that this process prints fail for want of a character."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        # What has been put in place of either need not encode at all.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is printed instead of the characters that cannot be, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    escaped = (c.encode("ascii", "backslashreplace").decode() for c in characters)
    pairs = zip(characters, escaped, strict=True)
    return "".join(STAND_INS.get(c, escape) for c, escape in pairs), error.end
