"""What an IPython shell keeps of the outputs of cells: one owner, in however many places it lies.

``Out``, the names ``_``, ``_3`` and their like, the shell's list of names to hide, its display hook and the record of
the last cell each hold the same tensors. ``del _3`` frees nothing, ``%reset -f out`` empties all of them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from memlab.ownership import look

NAME, WHERE = "Out", "IPython's history of outputs; %reset -f out empties it"


@dataclass(frozen=True)
class Shell:
    """The places of the shell that runs us; none where none does.

    Attributes:
        names: the ``id()`` of the dict in which cells' variables lie.
        outputs: ``id()`` of what holds outputs and nothing that another owner should be named for.
        last: pairs (id of the last cell's record, id of its output); the record holds its error, too.
    """

    names: int = 0
    outputs: frozenset[int] = frozenset()
    last: frozenset[tuple[int, int]] = frozenset()

    @cached_property
    def places(self) -> frozenset[int]:
        """The shell's own places for outputs."""
        return self.outputs | {place for place, _ in self.last}

    def keeps(self, holder: int, held: int) -> bool:
        """Whether what such a place holds is an output."""
        return holder in self.outputs or (holder, held) in self.last

    def is_output(self, space: int, name: str) -> bool:
        """Whether a variable is one that the shell binds to outputs."""
        return space == self.names and (name in ("Out", "_oh", "_", "__", "___") or _is_number(name))


def _is_number(name: str) -> bool:
    return name[:1] == "_" and name[1:].isdecimal()


def find() -> Shell:
    """Find the shell as everything here is found: none of its code runs."""
    names = _dict_of(sys.modules.get("__main__"))
    kind: Any = _dict_of(sys.modules.get("IPython.core.interactiveshell")).get("InteractiveShell")
    shell = look.class_dict(kind).get("_instance") if look.is_a(kind, type) else None
    if shell is None or "_oh" not in names:
        return Shell()
    state = _attributes(shell)
    outputs = (names["_oh"], state.get("user_ns_hidden"), *_with_dict(state.get("displayhook")))
    result = state.get("last_execution_result")
    last = _attributes(result).get("result")
    return Shell(
        id(names),
        frozenset(id(each) for each in outputs if each is not None),
        frozenset((id(each), id(last)) for each in _with_dict(result) if last is not None),
    )


def _dict_of(thing: Any) -> dict[Any, Any]:
    return {} if thing is None else _as_dict(look.dict_of(thing))


def _as_dict(thing: Any) -> dict[Any, Any]:
    return thing if look.is_a(thing, dict) else {}


def _attributes(thing: Any) -> dict[Any, Any]:
    """Return an object's attributes, those that traitlets keep among them."""
    own = _dict_of(thing)
    return own | _as_dict(own.get("_trait_values"))


def _with_dict(thing: Any) -> tuple[Any, ...]:
    """Return an object and its ``__dict__``: where attributes lie depends on the version of Python."""
    return () if thing is None else (thing, look.dict_of(thing))
