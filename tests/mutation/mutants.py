"""Small mistakes in Python source and in the rules of the workflow, each an edit of one place.

Docstrings, annotations, f-strings, the messages of errors and of logs, and help texts stay as they
are: a test that saw them change would be none of behaviour.
"""

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
# The bound moved by one, and the opposite.
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
BOOLEAN = {ast.And: ast.Or, ast.Or: ast.And}
SAID = re.compile(r"print|_say|logging\.\w+|progress\.set_postfix_str")
SAID_BY = {"help", "description", "metavar", "prog", "desc", "mininterval", "initial", "total"}
SAID_BY |= {"disable", "strict"}  # `zip` says, by an error, what never happens
OTHER_WORDS = {"train": "test", "test": "train", "ema": "raw", "raw": "ema"}
RULE = re.compile(
    r"^( *)(?:rule ?(\w*)|wildcard_constraints|scattergather):\n((?:(?:\1 +.*)?\n)+)", re.M
)
SECTION = re.compile(r"^( +)(input|output|params):\n((?:\1 +.*\n)+)", re.M)


@dataclass(frozen=True)
class Mutant:
    """``source[start:end]`` of ``path`` becomes ``new``; ``scope`` names the function around it."""

    path: str
    scope: str
    lines: tuple[int, int]
    start: int
    end: int
    old: str
    new: str

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) or "nothing" for text in (self.old, self.new))
        return f"{self.path} {self.scope}: {old} -> {new}"

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]


def mutants(root: Path, path: str) -> list[Mutant]:
    """All mutants of the file at ``path`` below ``root``."""
    source = (root / path).read_bytes()
    text, found = source.decode(), []
    for rule in RULE.finditer(text) if path.endswith(".smk") else ():
        for section in SECTION.finditer(text, *rule.span(3)):
            # What stands below `input:` are the arguments of a call.
            call = ast.parse(f"_(\n{section[3]})").body[0].value
            shift = text.count("\n", 0, section.start(3)) - 1
            found += _of_tree(path, source, call, shift, f"{rule[2]}.{section[2]}")
    if path.endswith(".smk"):
        text = RULE.sub(lambda rule: f"{rule[1]}pass" + "\n" * rule[0].count("\n"), text)
        # A handler holds statements; the two words are of one length.
        text = re.sub(r"^onstart:", "if True:", text, flags=re.M)
    return [*found, *_of_tree(path, source, ast.parse(text), 0, "")]


def _of_tree(path: str, source: bytes, tree: ast.AST, shift: int, scope: str) -> list[Mutant]:
    starts = [0, *(match.end() for match in re.finditer(b"\n", source))]
    found = {}
    for node, new, inner in _edits(tree, scope):
        first, last = node.lineno + shift, node.end_lineno + shift
        start, end = starts[first - 1] + node.col_offset, starts[last - 1] + node.end_col_offset
        if isinstance(node, ast.keyword):  # with the comma behind it
            end += len(re.match(rb"\s*,?", source[end:])[0])
        old = source[start:end].decode()
        found.setdefault(
            (start, end, new), Mutant(path, inner, (first, last), start, end, old, new)
        )
    return sorted(found.values(), key=lambda mutant: (mutant.start, mutant.end, mutant.new))


def _edits(node: ast.AST, scope: str) -> Iterator[tuple[ast.AST, str, str]]:
    """Nodes of the tree, the text that takes their place, and the function around them."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope = f"{scope}.{node.name}" if scope else node.name
    for old, new in _of_node(node):
        text = ast.unparse(new) if isinstance(new, ast.AST) else new
        yield old, f"({text})" if isinstance(new, ast.expr) else text, scope
    for child in _children(node):
        yield from _edits(child, scope)


def _children(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.JoinedStr | ast.Raise) or _is_said(node):
        return []
    left_out = {"annotation", "returns", "decorator_list"}
    fields = [value for name, value in ast.iter_fields(node) if name not in left_out]
    children = [
        item for field in fields for item in (field if isinstance(field, list) else [field])
    ]
    return [c for c in children if isinstance(c, ast.AST) and not _is_docstring(c)]


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_said(node: ast.AST) -> bool:
    node = node.value if isinstance(node, ast.Expr) else node
    if isinstance(node, ast.keyword):
        return node.arg in SAID_BY
    return isinstance(node, ast.Call) and bool(SAID.fullmatch(ast.unparse(node.func)))


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    node = copy.copy(node)
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _of_node(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | str]]:
    """What may stand in the place of ``node``, or of a part of it."""
    if _is_said(node):
        return
    match node:
        case ast.BinOp(op=op) if type(op) in BINARY:
            yield node, _changed(node, op=BINARY[type(op)]())
        case ast.BoolOp(op=op):
            yield node, _changed(node, op=BOOLEAN[type(op)]())
        case ast.Compare(ops=[op]):
            for other in COMPARISONS[type(op)]:
                yield node, _changed(node, ops=[other()])
        case ast.UnaryOp(operand=operand):
            yield node, operand
        case ast.Constant(value=value):
            yield from ((node, repr(new)) for new in _constants(value))
        case ast.JoinedStr():
            text = ast.unparse(node)
            if (other := _other_word(text)) != text:
                yield node, other
        case ast.IfExp(body=body, orelse=orelse):
            yield node, _changed(node, body=orelse, orelse=body)
        case ast.If(test=test):
            yield test, "False"
            yield test, "True"
        case ast.comprehension(ifs=ifs):
            yield from ((test, "True") for test in ifs)
        case ast.Slice(lower=lower, upper=upper):
            yield from ((bound, "") for bound in (lower, upper) if bound is not None)
        case ast.Dict(keys=keys, values=[a, b, *_]) if None not in keys[:2]:
            values = [b, a, *node.values[2:]]
            yield node, _changed(node, values=values)
        case ast.Call(func=func, args=args, keywords=keywords):
            yield from ((k, "") for k in keywords if k.arg and k.arg not in SAID_BY)
            if len(args) > 1 and ast.dump(args[0]) != ast.dump(args[1]):
                yield node, _changed(node, args=[args[1], args[0], *args[2:]])
            if isinstance(func, ast.Attribute) and not args and not keywords:
                yield node, func.value
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield value, "None"
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
            yield node, "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "pass"
        case ast.FunctionDef(decorator_list=decorators):
            # Called as a function it does nothing.
            yield from ((d, "(lambda f: f)") for d in decorators if isinstance(d, ast.Call))


def _constants(value: object) -> list:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1] if isinstance(value, int) else [value * 2 or 1.0]
    # What has blanks is read by people.
    if isinstance(value, str) and re.fullmatch(r"\S+", value):
        other = _other_word(value)
        return [other if other != value else value + "_"]
    return []


def _other_word(text: str) -> str:
    return re.sub(r"(?<![a-z])(train|test|ema|raw)(?![a-z])", lambda m: OTHER_WORDS[m[0]], text)
