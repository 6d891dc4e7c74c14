"""Where storages are created, in the user's code: for what memory holds that no graph has saved.

A record of it hangs on the storage itself, as a weak reference: whoever meets the storage can ask. It goes with the
storage, or with the ledger.
"""

from __future__ import annotations

import sys
import weakref
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
