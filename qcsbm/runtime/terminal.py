"""Text on terminals, and in logs, that cannot show all of its characters.

The encoding of standard output or standard error may have no "–" or "σ", as under the locale C.
Then common characters are printed as plain ASCII, and all others as backslash escapes.
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
        "Å": "A",
        "²": "^2",
        "√": "sqrt ",
    },
    **{"α": "alpha", "ε": "epsilon", "κ": "kappa", "λ": "lambda", "σ": "sigma"},
    **{"Σ": "Sigma", "∇": "grad"},
}


def show_plainly() -> None:
    """Have this process print something plain wherever the encoding lacks a character."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        # What has been put in place of either need not encode at all.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="plain")


def plain(text: str) -> str:
    """``text`` in ASCII, as it is printed where the encoding has nothing more."""
    codecs.register_error("plain", _plain)
    return text.encode("ascii", "plain").decode("ascii")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is printed instead of the characters that cannot be, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    escaped = (c.encode("ascii", "backslashreplace").decode() for c in characters)
    pairs = zip(characters, escaped, strict=True)
    return "".join(STAND_INS.get(c, escape) for c, escape in pairs), error.end
