"""Which code computed a number: digests of the package's source.

The digest of a stage is that of its module and of all modules of this package that it imports,
directly or not. Where a setting names the module, by ``import_module(f"package.{name}")``, these
are all modules of that package. It is taken of their syntax trees without docstrings and texts
below fields, so that these, comments and layout do not count. The digest of the whole package is
taken of the bytes of its files, in milliseconds.
"""

import ast
import hashlib
import pkgutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# The environment variable in which a workflow tells its jobs the digest of the whole package.
PLANNED = "QCSBM_PLANNED_CODE"


@cache
def stage_digest(stage: str) -> str:
    """Twelve hexadecimal digits of what `qcsbm.stages.<stage>` runs."""
    digest = hashlib.sha256()
    for name in sorted(modules(f"{PACKAGE.name}.stages.{stage}")):
        digest.update(f"{name}\n".encode())
        for token in _tokens(_tree(name)):
            digest.update(f"{token}\n".encode())
    return digest.hexdigest()[:12]


def package_digest() -> str:
    """The SHA-256 of every Python file of this package."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def modules(name: str) -> set[str]:
    """``name`` and all modules of this package that it imports, directly or not."""
    found, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _imports(module)
    return found


@cache
def commit() -> dict[str, str | bool] | None:
    """The ``commit`` that this package is checked out from, and ``dirty``: whether it was changed.

    None where it was installed from elsewhere, or where there is no git.
    """
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")
        changes = _git("status", "--porcelain", "--", ".")
        return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _file(module: str) -> Path | None:
    """The file of ``module``, None if it is none of this package's."""
    top, *parts = module.split(".")
    path = PACKAGE.joinpath(*parts)
    candidates = [path.with_suffix(".py")] if parts else []
    found = [file for file in (*candidates, path / "__init__.py") if file.is_file()]
    return found[0] if top == PACKAGE.name and found else None


@cache
def _tree(module: str) -> ast.Module:
    file = _file(module)
    if file is None:
        raise ModuleNotFoundError(f"{module}: found no such module in {PACKAGE}")
    return ast.parse(file.read_bytes())


def _imports(module: str) -> Iterator[str]:
    """Those modules of this package that ``module`` itself imports, wherever in its code."""
    for node in ast.walk(_tree(module)):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(origin), level=0):
                # What is imported may be a module, or a name within one.
                names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
            case ast.ImportFrom():
                raise ImportError(f"{module}: found a relative import, expected absolute ones")
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module")):
                names = _named_by_settings(node)
            case _:
                continue
        yield from (name for name in names if _file(name))


def _named_by_settings(call: ast.Call) -> list[str]:
    """All modules that ``call``, ``import_module(f"package.{name}")``, may import."""
    match call.args:
        case [ast.JoinedStr(values=[ast.Constant(value=str(start)), ast.FormattedValue()])] if (
            start.endswith(".")
        ):
            _, *parts = start.removesuffix(".").split(".")
            found = pkgutil.iter_modules([str(PACKAGE.joinpath(*parts))])
            return [start + module.name for module in found]
    raise ValueError(
        f'found {ast.unparse(call)}, expected import_module(f"package.{{name}}"), whose modules '
        "are known"
    )


def _tokens(node: ast.AST) -> Iterator[str]:
    """The syntax tree below ``node``, without empty fields and texts.

    Texts are strings that stand by themselves: docstrings, and what is said below a field.
    Python's own `ast.dump` writes the same tree differently in its versions.
    """
    yield type(node).__name__
    for name in node._fields:
        value = getattr(node, name, None)
        for item in value if isinstance(value, list) else [value]:
            match item:
                case None | ast.Expr(value=ast.Constant(value=str())):
                    continue
                case ast.AST():
                    yield f"({name}"
                    yield from _tokens(item)
                    yield ")"
                case _:
                    yield f"{name}={item!r}"
