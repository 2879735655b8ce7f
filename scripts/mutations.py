"""Small changes to Python source, one at a time: what a slip of the hand or of the mind would make of it."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import TypeAlias

Slot: TypeAlias = "tuple[ast.AST, str, int | None]"
"""Where a node hangs: its parent, the field, and the place in the field's list."""

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
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
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any"}
UNORDERED = {*OPPOSITES, "dict.fromkeys"}
"""Functions to which the order of things is all the same."""
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "bases", "format_spec"}
PASSED_OVER = (ast.Import, ast.ImportFrom, ast.Assert)


@dataclass(frozen=True)
class Change:
    """A change for people: the function it is in, its line (number and text), and what becomes what."""

    where: str
    number: int
    line: str
    text: str


def changes(source: str, enums: str = "") -> Iterator[tuple[Change, CodeType]]:
    """Every change of `source`, and its code; the members of enumerations are also looked for in `enums`."""
    tree = ast.parse(source)
    lines = source.splitlines()
    members = _members(ast.parse(enums)) | _members(tree)
    for where, slot in _slots(tree, ""):
        old = _get(slot)
        for new in _replacements(old, slot, members):
            ast.copy_location(new, old)
            ast.fix_missing_locations(new)
            _set(slot, new)
            code = compile(tree, "mutant", "exec", dont_inherit=True)
            _set(slot, old)
            text = _described(old, new)
            number = getattr(old, "lineno", 0) or old.iter.lineno
            yield Change(where, number, lines[number - 1].strip(), text), code


def _described(old: ast.AST, new: ast.AST) -> str:
    if isinstance(old, ast.Call) and isinstance(new, ast.Call):
        if missing := [keyword.arg for keyword in old.keywords if keyword not in new.keywords]:
            return f"{ast.unparse(old.func)}(...) without {missing[0]}"
        old, new = ast.Tuple(old.args, ast.Load()), ast.Tuple(new.args, ast.Load())
    if isinstance(old, ast.Tuple) and isinstance(new, ast.Tuple):
        one, other = (ast.unparse(a) for a, b in zip(old.elts, new.elts, strict=True) if a is not b)
        return f"{one} and {other} exchanged"
    return f"{ast.unparse(old)} left out" if isinstance(new, ast.Pass) else f"{ast.unparse(old)} -> {ast.unparse(new)}"


def _members(tree: ast.AST) -> dict[str, list[str]]:
    """The members of each enumeration, in order."""
    return {
        node.name: [
            target.id for s in node.body if isinstance(s, ast.Assign) and isinstance(target := s.targets[0], ast.Name)
        ]
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Enum") for base in node.bases)
    }


def _get(slot: Slot) -> ast.AST:
    parent, field, index = slot
    value = getattr(parent, field)
    return value if index is None else value[index]


def _set(slot: Slot, node: ast.AST) -> None:
    parent, field, index = slot
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _slots(node: ast.AST, where: str) -> Iterator[tuple[str, Slot]]:
    """Where something may be changed: nothing of imports, annotations, decorators, docstrings and inside of texts."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        where = f"{where}.{node.name}".lstrip(".")
    for field, value in ast.iter_fields(node):
        if field in SKIPPED_FIELDS:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, PASSED_OVER) or _is_for_the_reader(child):
                continue
            if isinstance(child, (ast.expr, ast.stmt, ast.comprehension)):
                yield where, (node, field, index)
            if not isinstance(child, ast.JoinedStr):
                yield from _slots(child, where)


def _is_for_the_reader(node: ast.AST) -> bool:
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.annotation) == "TypeAlias"
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.keyword):
        return node.arg == "strict"  # of zip: a check, which ruff asks for
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _replacements(node: ast.AST, slot: Slot, members: dict[str, list[str]]) -> Iterator[ast.AST]:
    yield from _of_conditions(node, slot)
    if slot[1] != "iter" and not (isinstance(slot[0], ast.Call) and ast.unparse(slot[0].func) in UNORDERED):
        yield from _of_lists(node)
    match node:
        case ast.Constant():
            yield from _of_constant(node)
        case ast.JoinedStr():
            yield ast.Constant("")
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.BinOp() | ast.AugAssign() if type(node.op) in COMPUTED:
            yield _with(node, op=COMPUTED[type(node.op)]())
        case ast.Attribute(value=ast.Name(id=name), attr=attr) if attr in members.get(name, ()):
            names = members[name]
            yield _with(node, attr=names[(names.index(attr) + 1) % len(names)])
        case ast.Name(id=name) if name in OPPOSITES:
            yield _with(node, id=OPPOSITES[name])
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Delete() | ast.Expr():
            yield ast.Pass()
        case (
            ast.AnnAssign(target=ast.Attribute() | ast.Subscript())
            | ast.Break()
            | ast.Continue()
            | ast.Return(value=None)
        ):
            yield ast.Pass()


def _of_conditions(node: ast.AST, slot: Slot) -> Iterator[ast.AST]:
    """Borders moved, operands left out, tests turned round."""
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            for other in COMPARED[type(op)]:
                yield _with(node, ops=[*node.ops[:index], other(), *node.ops[index + 1 :]])
    elif isinstance(node, ast.BoolOp):
        for index in range(len(node.values)):
            rest = node.values[:index] + node.values[index + 1 :]
            yield rest[0] if len(rest) == 1 else _with(node, values=rest)
    elif slot[1] == "test" and not (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
        yield ast.UnaryOp(ast.Not(), node)
    if isinstance(node, ast.comprehension) and node.ifs:
        yield _with(node, ifs=[])


def _of_lists(node: ast.AST) -> Iterator[ast.AST]:
    """Neighbours exchanged, elements and named arguments left out."""
    if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load):
        yield from (_with(node, elts=elts) for elts in _exchanged(node.elts))
    if isinstance(node, ast.Set):
        yield from (
            _with(node, elts=node.elts[:i] + node.elts[i + 1 :]) for i in range(len(node.elts) if node.elts[1:] else 0)
        )
    if isinstance(node, ast.Call):
        if ast.unparse(node.func) not in UNORDERED:
            yield from (_with(node, args=args) for args in _exchanged(node.args))
        yield from (_with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :]) for i in range(len(node.keywords)))


def _exchanged(nodes: list[ast.expr]) -> Iterator[list[ast.expr]]:
    for i in range(len(nodes) - 1):
        if ast.dump(nodes[i]) != ast.dump(nodes[i + 1]):
            yield [*nodes[:i], nodes[i + 1], nodes[i], *nodes[i + 2 :]]


def _of_constant(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 2 or 1.0)
    elif isinstance(value, str):
        yield ast.Constant("" if value else "XX")
    elif isinstance(value, bytes):
        yield ast.Constant(b"" if value else b"XX")


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new
