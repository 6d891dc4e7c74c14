"""Where storages are created, in the user's code: for what memory holds that no graph has saved.

A record of it hangs on the storage itself, as a weak reference: whoever meets the storage can ask. It goes with the
storage, or with the ledger.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter, defaultdict
from functools import cached_property
from types import CodeType
from typing import Any

import torch

from memlab import origins
from memlab.storage_ledger import Made, StorageLedger

Place = tuple[CodeType | None, int]  # code and instruction, as `origins.user_code` returns them
NOWHERE: Place = (None, -1)


class BirthLedger(StorageLedger):
    """A `StorageLedger` that remembers the source line of each storage."""

    def _enter(self, storage: torch.UntypedStorage, key: int, sequence: int, op: Any) -> None:
        super()._enter(storage, key, sequence, op)
        self._live[key].origin = origins.user_code(sys._getframe(2))


def birth(storage: torch.UntypedStorage) -> Place:
    """Return where a storage was created, if a ledger that remembers it saw that; else `NOWHERE`."""
    for each in weakref.getweakrefs(storage):
        if type(each) is Made:
            place: Place = getattr(each, "origin", NOWHERE)
            if place[0] is not None:
                return place
    return NOWHERE


class Births:
    """Where the storages of several holders were created; holders are bits of a mask."""

    def __init__(self) -> None:
        self._storages: dict[int, tuple[Place, int, int]] = {}  # place, new bytes, bytes
        self._masks: defaultdict[int, int] = defaultdict(int)

    def add(self, storage: torch.UntypedStorage, mask: int, new: int) -> None:
        """Note who holds a storage; ``new`` bytes of it are those that are asked about first."""
        key = storage._cdata
        self._masks[key] |= mask
        if key not in self._storages:
            self._storages[key] = birth(storage), new, storage.nbytes()

    @cached_property
    def _totals(self) -> dict[tuple[int, Place], tuple[int, int]]:
        """New bytes and bytes, by set of holders and place."""
        found: dict[tuple[int, Place], tuple[int, int]] = {}
        for key, (place, new, nbytes) in self._storages.items():
            alike = self._masks[key], place
            before = found.get(alike, (0, 0))
            found[alike] = before[0] + new, before[1] + nbytes
        return found

    def of(self, bit: int) -> str:
        """Return ``file:line`` where most of what a holder holds was created: most new bytes, then most bytes.

        ``unknown`` where no ledger that remembers it saw most of it. To be asked once all storages are noted.
        """
        new: Counter[Place] = Counter()
        total: Counter[Place] = Counter()
        for (mask, place), sizes in self._totals.items():
            if mask & bit:
                new[place] += sizes[0]
                total[place] += sizes[1]
        return origins.describe(*max(total, key=lambda place: (new[place], total[place]), default=NOWHERE))
