"""Reads a ledger's numbers as lines: what is saved now, by whom, and who shares it.

An entry is a storage's key with the step it was first saved in and the index of its `Origin`; every further saved
tensor on the storage has a token, the key with a number of its own above it, and an origin, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from memlab import origins
from memlab.lines import UNREAD, Line, Origin, Saving
from memlab.modules import ModuleNames

STEP_BITS = 32  # an entry is its step above these bits and its origin's index below
INDEX_MASK = (1 << STEP_BITS) - 1
KEY_BITS = 64
KEY_MASK = (1 << KEY_BITS) - 1


class Reading:
    """Makes `Line` objects of a ledger's entries, as they are at one time.

    Args:
        known: the origins, by index.
        entries: the storages, by key.
        shares: origins' indices of the saved tensors beyond a storage's first, by token.
        first_gone: keys of storages whose first saved tensor is no longer kept.
        tensors_of: counts the tensors that share the storage with a key.
    """

    def __init__(
        self,
        known: Sequence[Origin],
        entries: Mapping[int, int],
        shares: Mapping[int, int],
        first_gone: AbstractSet[int],
        tensors_of: Callable[[int], int],
    ) -> None:
        self._known, self._entries, self._shares, self._first_gone = known, entries, shares, first_gone
        self._tensors_of = tensors_of
        self._names = ModuleNames(origin.place for origin in list(known))
        self._others: dict[int, list[int]] = {}
        for token in list(shares):
            self._others.setdefault(token & KEY_MASK, []).append(token)
        self._given: dict[int, str] | None = None

    def line(self, token: int, savings: Mapping[int, Saving] | None = None) -> Line:
        """Return the `Line` of one storage; ``savings`` is what a walk read of its saved tensors, by their tokens.

        It tells of the saved tensor that was saved first: of those in ``savings``, if there are any.
        """
        key, savings = token & KEY_MASK, savings or {}
        tokens = [] if key in self._first_gone else [key]
        tokens += self._others.get(key, [])
        first = min(savings) if savings else tokens[0]
        shared = (self._origin(each).sharing(savings.get(each, UNREAD)) for each in tokens if each != first)
        return self._origin(first).line(
            self._names,
            savings.get(first, UNREAD),
            kind=self._kind(key),
            step=self._entries[key] >> STEP_BITS,
            saved=len(tokens),
            exclusive=self._tensors_of(key) == len(tokens),
            shared=tuple(dict.fromkeys(shared)),
        )

    def _origin(self, token: int) -> Origin:
        accounts = self._shares if token > KEY_MASK else self._entries
        return self._known[accounts[token] & INDEX_MASK]

    def _kind(self, key: int) -> str:
        kind = self._known[self._entries[key] & INDEX_MASK].kind
        if kind != "input":
            return kind
        if self._given is None:
            self._given = origins.module_storages()
        return self._given.get(key, kind)
