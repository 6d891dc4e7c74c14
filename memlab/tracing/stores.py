"""The lines of a file that store into a name: read from its text, for people and for recognising patterns."""

from __future__ import annotations

import ast
import functools
import linecache
import re
from collections.abc import Iterator
from pathlib import Path

_PLACE = re.compile(r"(?:^|, |at |\s)(?P<file>[^,\s][^,]*?\.\w+):(?P<line>\d+)$")
_FUNCTION = re.compile(r"of (?:\w+\.)*(?P<name>\w+)\(\)")
_ADDING = {
    "append",
    "extend",
    "add",
    "insert",
    "update",
    "appendleft",
    "setdefault",
    "push",
    "put",
    "add_",
    "mul_",
    "lerp_",
}


def source(place: str) -> str:
    """Return the text of the line at ``file:line``; empty where it cannot be read."""
    file, _, line = place.rpartition(":")
    if not file or not line.isdigit():
        return ""
    return linecache.getline(str(Path(file).absolute()), int(line)).strip()


def stored(name: str, where: str) -> list[tuple[str, str]]:
    """Return ``(file:line, text)`` of what stores into ``name`` where it lives, such as ``losses.append(loss)``."""
    place = _PLACE.search(where)
    if place is None:
        return []
    file = Path(place["file"])
    try:
        tree = _tree(file.absolute())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    function, last = _FUNCTION.search(where), re.sub(r"\[.*", "", name).rpartition(".")[2]
    scopes: list[ast.AST] = [tree]
    if function is not None and "." not in name:
        scopes = [each for each in ast.walk(tree) if _is_function(each, function["name"])] or [tree]
    lines = {line: text for scope in scopes for line, text in _lines(scope, last)}
    return [(f"{file}:{line}", lines[line] or source(f"{file}:{line}")) for line in sorted(lines)]


@functools.lru_cache(maxsize=16)
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


def _is_function(node: ast.AST, name: str) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name


def _lines(scope: ast.AST, name: str) -> Iterator[tuple[int, str]]:
    """Yield what puts something new into the name; what only empties it, or gives it a constant, does not count."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from _put(node, target, node.value, name)
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)) and node.value is not None:
            yield from _put(node, node.target, node.value, name)
        elif isinstance(node, ast.Call) and _adds_to(node.func, name):
            yield node.lineno, ""  # the whole line, which may say that this is a hook


def _put(statement: ast.stmt, target: ast.expr, value: ast.expr, name: str) -> Iterator[tuple[int, str]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for one, each in zip(target.elts, value.elts, strict=True):
            for line, _ in _put(statement, one, each, name):
                yield line, f"{ast.unparse(one)} = {ast.unparse(each)}"
    elif _is_name(target, name) and not _is_empty(value):
        yield statement.lineno, ast.unparse(statement)


def _adds_to(function: ast.expr, name: str) -> bool:
    return isinstance(function, ast.Attribute) and function.attr in _ADDING and _is_name(function.value, name)


def _is_name(node: ast.expr, name: str) -> bool:
    if isinstance(node, (ast.Tuple, ast.List)):
        return any(_is_name(each, name) for each in node.elts)
    while isinstance(node, (ast.Subscript, ast.Starred)):
        node = node.value
    return (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)


def _is_empty(value: ast.expr) -> bool:
    if isinstance(value, ast.Constant):
        return True
    if isinstance(value, (ast.List, ast.Tuple, ast.Set)):
        return not value.elts
    if isinstance(value, ast.Dict):
        return not value.keys
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id in {"list", "dict", "set", "deque", "defaultdict"}
    )
