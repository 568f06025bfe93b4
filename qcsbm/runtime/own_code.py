"""Classes and functions of one's own, in Python files in the working directory.

``module:name`` is one in ``module.py``, ``package.module:name`` one in a module of a package.
Jobs do not have the working directory on Python's path, and nothing here puts it there: of what
lies in it only that file can be imported, or, of a package, every module. The SHA-256 of these
files is therefore that of all code which a class brings along, installed packages apart. Data that
the code reads by itself are not in it.
"""

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import FileFinder, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from qcsbm.runtime import outside
from qcsbm.runtime.errors import BadInput, MissingFile


def files(name: str) -> list[Path]:
    """The file that ``name`` is in, or all modules of its package; none where it is missing."""
    parts = name.partition(":")[0].split(".")
    top = Path(parts[0])
    alone = top.with_suffix(".py")
    # In this order Python itself looks for them.
    if alone.is_file() and not (top / "__init__.py").is_file():
        found = [alone]
    else:
        # Others, such as those in hidden folders, cannot be imported.
        modules = (path for path in top.rglob("*.py") if _is_module(path))
        found = sorted(modules)
    return found if _own_file(name) in found else []


def _is_module(path: Path) -> bool:
    return all(part.isidentifier() for part in path.with_suffix("").parts)


def _own_file(name: str) -> Path:
    """Where what is called ``name`` has to be defined or imported."""
    path = Path(*name.partition(":")[0].split("."))
    package = path / "__init__.py"
    return package if package.is_file() else path.with_suffix(".py")


def sha256(name: str) -> str | None:
    """The SHA-256 of the file; of a package, of what ``sha256sum`` prints of its modules.

    None if there is no such module.
    """
    return outside.sha256_of(files(name))


def require(name: str, expected: str | None) -> None:
    """Refuse code that is not what a job was planned with.

    Raises:
        BadInput: its SHA-256 is not ``expected``.
    """
    found = sha256(name)
    if found != expected:
        raise BadInput(
            f"{name}: found code with SHA-256 {found}, expected {expected} as when this job was "
            "planned; run snakemake again"
        )


def is_taken(name: str) -> bool:
    """Whether Python or an installed package has a module of the name that ``name`` begins with."""
    top = name.partition(":")[0].partition(".")[0]
    here = Path.cwd().resolve()
    elsewhere = [entry for entry in sys.path if entry and Path(entry).resolve() != here]
    found = PathFinder.find_spec(top, elsewhere)
    # A folder without __init__.py gives way to any module of its name.
    return top in sys.stdlib_module_names or (found is not None and found.origin is not None)


def load(name: str) -> type:
    """The class ``name``.

    Its module is executed, anew if its files have changed since.

    Raises:
        BadInput: there is no such module or no such class in it, or the module cannot be imported.
    """
    found = _attribute(name)
    if not isinstance(found, type):
        raise BadInput(_unexpected(name, found, "a class"))
    return found


def function(name: str) -> Callable[..., Any]:
    """The function ``name``, or anything else that can be called; see `load`.

    Raises:
        BadInput: there is no such module or no such function in it, or the module cannot be
            imported.
    """
    found = _attribute(name)
    if isinstance(found, type) or not callable(found):
        raise BadInput(_unexpected(name, found, "a function"))
    return found


def _attribute(name: str) -> object:
    module, _, attribute = name.partition(":")
    if not files(name):
        raise MissingFile(f"{name}: found no {_own_file(name)} in {Path.cwd()}, expected a module")
    with errors_located(name, "a module that can be imported"):
        imported = _imported(module, sha256(name))
    if Path(imported.__file__ or "").resolve() != _own_file(name).resolve():
        raise BadInput(
            f"{name}: found the module {imported.__file__}, expected {_own_file(name)} under a "
            "name that no other module has"
        )
    return getattr(imported, attribute, None)


def _unexpected(name: str, found: object, expected: str) -> str:
    what = "nothing" if found is None else f"an object of type {type(found).__name__}"
    return f"{name}: found {what} under that name in {_own_file(name)}, expected {expected}"


@contextmanager
def errors_located(name: str, expected: str) -> Iterator[None]:
    """Within, an error in the code of what is called ``name`` is bad input.

    Raises:
        BadInput: one occurred; it says where, and what was ``expected``.
    """
    try:
        yield
    except Exception as error:
        own = {path.resolve(): path for path in files(name)}
        frames = traceback.extract_tb(error.__traceback__)
        calls = [(Path(frame.filename).resolve(), frame.lineno) for frame in frames]
        places = [f" ({own[path]}, line {line})" for path, line in calls if path in own]
        place = places[-1] if places else ""
        raise BadInput(
            f"{name}: found {type(error).__name__}: {error}{place}, expected {expected}"
        ) from error


# By the first part of their names, the directory and the SHA-256 of modules that were imported.
_known: dict[str, tuple[Path, str | None]] = {}


def _imported(module: str, digest: str | None) -> ModuleType:
    top = module.partition(".")[0]
    state = Path.cwd(), digest
    if _known.get(top, state) != state:
        for name in [name for name in sys.modules if name.partition(".")[0] == top]:
            del sys.modules[name]
    _known[top] = state
    finder = _Finder(top)
    sys.meta_path.insert(0, finder)
    try:
        # No code of this package, whose imports are followed by name.
        __import__(module)
        return sys.modules[module]
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    """Finds the modules in the working directory whose names begin with ``top``, and no others."""

    def __init__(self, top: str):
        self.top, self.root = top, Path.cwd()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top, *inner = name.split(".")
        if top != self.top:
            return None
        folder = self.root.joinpath(top, *inner[:-1]) if inner else self.root
        return FileFinder(str(folder), (_Source, [".py"])).find_spec(name)


class _Source(SourceFileLoader):
    """Compiles the file itself: bytecode counts as that of a file of the same size and second."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)
