"""Which function or class of a file binds a name, and in which file a module or a class is: from syntax alone."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from memlab import places
from memlab.ownership import look

_GLOBAL = re.compile(r"global of (?P<module>[\w.]+)$")
_ATTRIBUTE = re.compile(r"attribute of (?:class )?(?P<kind>[\w.]+)(?:;|$)")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES = (*FUNCTIONS, ast.ClassDef)
_INNER = (*_SCOPES, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)  # with variables of their own


class Scopes:
    """Which function of a file binds a name, as Python's own rules have it."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self._around: dict[ast.AST, ast.AST] = {}
        waiting: list[ast.AST] = [tree]
        for node in waiting:  # grows meanwhile
            for child in ast.iter_child_nodes(node):
                self._around[child] = node if isinstance(node, (*_SCOPES, ast.Module)) else self._around[node]
                waiting.append(child)

    def at(self, line: int) -> ast.AST:
        """Return the innermost function around a line, its decorators included; the module if there is none."""
        inside = [each for each in self._around if isinstance(each, FUNCTIONS) and line in lines_of(each)]
        return min(inside, key=lambda each: len(lines_of(each)), default=self.tree)

    def home(self, name: str, node: ast.AST) -> ast.AST | None:
        """Return the function, or class, in which a name that stands at ``node`` is bound; None for the module."""
        scope = node if isinstance(node, FUNCTIONS) else self._around.get(node)
        first = scope
        while scope is not None and not isinstance(scope, ast.Module):
            if isinstance(scope, FUNCTIONS) or scope is first:  # a class's names are not seen from its methods
                bound, is_global, is_free = _bindings(scope, name)
                if is_global:
                    return None
                if bound and not is_free:
                    return scope
            scope = self._around.get(scope)
        return None

    def method(self, node: ast.AST) -> tuple[str, str]:
        """Return the class, and the first argument, of the method that a statement is in; else empty texts."""
        function = self._around[node]
        owner = self._around.get(function)
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) or not isinstance(owner, ast.ClassDef):
            return "", ""
        arguments = [*function.args.posonlyargs, *function.args.args]
        return owner.name, arguments[0].arg if arguments else ""


@functools.lru_cache(maxsize=16)
def scopes_of(file: str) -> Scopes:
    return Scopes(tree_of(file))


def lines_of(node: Any) -> range:
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
    return range(first, (node.end_lineno or node.lineno) + 1)


def _bindings(scope: Any, name: str) -> tuple[bool, bool, bool]:
    """Tell whether a scope binds a name, and whether it says that the name is global, or another function's."""
    bound = isinstance(scope, FUNCTIONS) and any(
        each.arg == name for each in ast.walk(scope.args) if isinstance(each, ast.arg)
    )
    is_global = is_free = False
    for node in _own_nodes(scope.body if isinstance(scope.body, list) else [scope.body]):
        if isinstance(node, ast.Global):
            is_global |= name in node.names
        elif isinstance(node, ast.Nonlocal):
            is_free |= name in node.names
        else:
            bound |= _binds(node, name)
    return bound, is_global, is_free


def _own_nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield what is in a scope and not in one inside it."""
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, _INNER):
            waiting.extend(ast.iter_child_nodes(node))


def _binds(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Name):
        return node.id == name and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.alias):
        return (node.asname or node.name.partition(".")[0]) == name
    if isinstance(node, ast.Lambda):
        return False
    return name in (getattr(node, "name", None), getattr(node, "rest", None))  # def, class, except, match


@functools.lru_cache(maxsize=16)
def tree_of(file: str) -> ast.Module:
    return ast.parse(places.text_of(file))


def file_of_global(where: str) -> str | None:
    """Return the file of the module whose global an owner at ``where`` is, or whose global leads to it."""
    found = _GLOBAL.search(where)
    return None if found is None else _file(sys.modules.get(found["module"]))


def class_of(where: str) -> tuple[str, str] | None:
    """Return name and file of the class whose attribute an owner at ``where`` is; None if several may be meant."""
    found = _ATTRIBUTE.search(where)
    if found is None:
        return None
    kind = found["kind"]
    files = {file for module in list(sys.modules.values()) if (file := _defines(module, kind)) is not None}
    return (kind, files.pop()) if len(files) == 1 else None


def _defines(module: Any, kind: str) -> str | None:
    """Return the file of a module that defines a class of this name at its top."""
    space = look.dict_of(module) if look.is_a(module, ModuleType) else None
    found = (space or {}).get(kind)
    if space is None or found is None or not look.is_a(found, type):
        return None
    return _file(module) if look.class_dict(found).get("__module__") == space.get("__name__") else None


def _file(module: Any) -> str | None:
    space = look.dict_of(module) if look.is_a(module, ModuleType) else None
    file = (space or {}).get("__file__")
    return str(Path(file).absolute()) if type(file) is str else None
