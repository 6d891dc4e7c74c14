"""The one statement that stores into an owner's name: what can be said where nobody saw its tensors being made.

Read from syntax and scopes alone. It is told only where a file has a single such statement, and where by Python's rules
its name is the owner's and not another of the same spelling. Nobody watched it run, so it is no birth.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from memlab import places
from memlab.tracing.scopes import class_of, file_of_global, scopes_of
from memlab.tracing.stores import statements, statements_of_class, targets_of

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
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
    place, module = places.at_end(where), file_of_global(where)
    if place is not None:
        file, line = place
    elif module is not None:
        file, line = module, 0
    else:
        return
    scopes = scopes_of(file)
    home = scopes.home(root, scopes.at(line)) if line else None
    for node, _ in statements(scopes.tree, last):
        if name in targets_of(node) and scopes.home(root, node) is home:
            yield file, _line(node)


def _by_class(name: str, where: str) -> Iterator[Statement]:
    """Yield the statements in the file of an attribute's class that store into that of ``self`` or of the class."""
    found = class_of(where)
    if found is None:
        return
    kind, file = found
    for node, _ in statements_of_class(scopes_of(file), kind, name.rpartition(".")[2]):
        yield file, _line(node)


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))
