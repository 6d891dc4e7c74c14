"""The one statement that stores into an owner's name: what can be said where nobody saw its tensors being made.

Read from syntax and scopes alone. It is told only where a file has a single such statement, and where by Python's rules
its name is the owner's and not another of the same spelling. Nobody watched it run, so it is no birth.
"""

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
from memlab.tracing.stores import statements, tree_of

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_GLOBAL = re.compile(r"global of (?P<module>[\w.]+)$")
_ATTRIBUTE = re.compile(r"attribute of (?:class )?(?P<kind>[\w.]+)(?:;|$)")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES = (*_FUNCTIONS, ast.ClassDef)
_INNER = (*_SCOPES, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)  # with variables of their own
Statement = tuple[str, int]


def kept_at(name: str, where: str) -> str:
    """Return the place of the only statement that stores into the name, of an owner that lives at ``where``.

    Empty where there is none, or several, or the name cannot be followed: one that is reached by an index, say.
    """
    if not _DOTTED.fullmatch(name):
        return ""
    try:
        found = {*_by_name(name, where), *_by_class(name, where)}
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ""
    if len(found) != 1:
        return ""
    ((file, line),) = found
    return places.place(file, line)


def _by_name(name: str, where: str) -> Iterator[Statement]:
    """Yield the statements in the file of the name's root that store into just this name."""
    root, last = name.partition(".")[0], name.rpartition(".")[2]
    place, module = places.at_end(where), _GLOBAL.search(where)
    if place is not None:
        file, line = place
    elif module is not None and (found := _file(sys.modules.get(module["module"]))) is not None:
        file, line = found, 0
    else:
        return
    scopes = scopes_of(file)
    home = scopes.home(root, scopes.at(line)) if line else None
    for node, _ in statements(scopes.tree, last):
        if name in _targets(node) and scopes.home(root, node) is home:
            yield file, _line(node)


def _by_class(name: str, where: str) -> Iterator[Statement]:
    """Yield the statements in the file of an attribute's class that store into that of ``self`` or of the class."""
    found = _ATTRIBUTE.search(where)
    if found is None:
        return
    files = {file for module in list(sys.modules.values()) if (file := _defines(module, found["kind"])) is not None}
    if len(files) != 1:
        return
    (file,) = files
    scopes, last = scopes_of(file), name.rpartition(".")[2]
    for node, _ in statements(scopes.tree, last):
        owner, own = scopes.method(node)
        of_self = owner == found["kind"] and f"{own}.{last}" in _targets(node)
        of_class = f"{found['kind']}.{last}" in _targets(node) and scopes.home(found["kind"], node) is None
        if of_self or of_class:
            yield file, _line(node)


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


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def _targets(node: ast.AST) -> list[str]:
    """Return what a storing statement stores into, as text: ``self.seen`` of ``self.seen[step].append(y)``."""
    if isinstance(node, ast.Assign):
        return [text for target in node.targets for text in _texts(target)]
    if isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        return list(_texts(node.target))
    return list(_texts(node.func.value)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else []


def _texts(target: ast.expr) -> Iterator[str]:
    while isinstance(target, (ast.Subscript, ast.Starred)):
        target = target.value
    if isinstance(target, (ast.Tuple, ast.List)):
        for each in target.elts:
            yield from _texts(each)
    elif isinstance(target, (ast.Name, ast.Attribute)):
        yield ast.unparse(target)


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
        inside = [each for each in self._around if isinstance(each, _FUNCTIONS) and line in _lines(each)]
        return min(inside, key=lambda each: len(_lines(each)), default=self.tree)

    def home(self, name: str, node: ast.AST) -> ast.AST | None:
        """Return the function, or class, in which a name that stands at ``node`` is bound; None for the module."""
        scope = node if isinstance(node, _FUNCTIONS) else self._around.get(node)
        first = scope
        while scope is not None and not isinstance(scope, ast.Module):
            if isinstance(scope, _FUNCTIONS) or scope is first:  # a class's names are not seen from its methods
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


def _lines(node: Any) -> range:
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
    return range(first, (node.end_lineno or node.lineno) + 1)


def _bindings(scope: Any, name: str) -> tuple[bool, bool, bool]:
    """Tell whether a scope binds a name, and whether it says that the name is global, or another function's."""
    bound = isinstance(scope, _FUNCTIONS) and any(
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
