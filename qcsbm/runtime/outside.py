"""Files that enter an experiment from outside: they count by their content, not by their age.

Their times say nothing, as copies and archives keep old ones. The SHA-256 of a file is noted. The
note is believed as long as inode, size, time of modification and time of change stay the same.
Nobody can set the last of these, so that a file replaced by an older one is read again.
"""

import atexit
import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from qcsbm.runtime import files
from qcsbm.runtime.errors import BadInput

# Beside Snakemake's own notes on files; it can be deleted at any time.
NOTES = Path(".snakemake/qcsbm_sha256.json")


def sha256(path: str | Path) -> str | None:
    """The SHA-256 of the file's bytes, in hexadecimal; None if there is no such file."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    state = [facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
    noted = _notes().get(os.path.abspath(path))
    if isinstance(noted, list) and noted[:-1] == state:
        return noted[-1]
    digest = files.sha256(path)
    _notes()[os.path.abspath(path)] = [*state, digest]
    return digest


def sha256_of(paths: Iterable[Path]) -> str | None:
    """The SHA-256 of a file; of several files, of what ``sha256sum`` prints of them.

    None if there is none, or one is not there.
    """
    found = {path: sha256(path) for path in paths}
    if len(found) < 2 or None in found.values():
        return None if None in found.values() else next(iter(found.values()), None)
    lines = "".join(f"{digest}  {path.as_posix()}\n" for path, digest in found.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def require(path: str | Path, expected: str | None) -> None:
    """Refuse a file that is not the one that a job was planned with.

    Raises:
        BadInput: its SHA-256 is not ``expected``; None stands for no file.
    """
    found = sha256(path)
    if found != expected:
        raise BadInput(
            f"{path}: found SHA-256 {found}, expected {expected} as when this job was planned; run "
            "snakemake again"
        )


@cache
def _notes() -> dict[str, object]:
    """What earlier processes noted; what this one adds is written when it ends."""
    notes = None
    with suppress(OSError, ValueError):
        notes = json.loads(NOTES.read_text(encoding="utf-8"))
    notes = notes if isinstance(notes, dict) else {}
    atexit.register(_write, NOTES.absolute(), notes, dict(notes))
    return notes


def _write(path: Path, notes: dict[str, object], known: dict[str, object]) -> None:
    # It only saves time: where it cannot be written, the next process reads the files again.
    if notes != known and path.parent.is_dir():
        with suppress(OSError):
            files.write_text(path, json.dumps(notes) + "\n")
