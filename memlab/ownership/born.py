"""Where most of what each owner holds was created."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

import torch

from memlab import origins
from memlab.births import NOWHERE, Place, birth
from memlab.ownership.assign import bits


class Births:
    """Where the storages of several holders were created; holders are bits of a mask."""

    def __init__(self) -> None:
        self._storages: dict[int, tuple[Place, int, int]] = {}  # place, new bytes, bytes
        self._masks: dict[int, int] = {}

    def add(self, storage: torch.UntypedStorage, mask: int, new: int) -> None:
        """Note who holds a storage; ``new`` bytes of it are those that are asked about first."""
        key = storage._cdata
        known = self._masks.get(key)
        self._masks[key] = mask if known is None else known | mask
        if known is None:
            self._storages[key] = birth(storage), new, storage.nbytes()

    @cached_property
    def _totals(self) -> dict[int, dict[Place, tuple[int, int]]]:
        """New bytes and bytes by place, for each holder's bit."""
        alike: defaultdict[tuple[int, Place], list[int]] = defaultdict(lambda: [0, 0])
        for key, (place, new, nbytes) in self._storages.items():
            sizes = alike[self._masks[key], place]
            sizes[0] += new
            sizes[1] += nbytes
        found: defaultdict[int, dict[Place, tuple[int, int]]] = defaultdict(dict)
        for (mask, place), (new, nbytes) in alike.items():
            for bit in bits(mask):
                before = found[bit].get(place, (0, 0))
                found[bit][place] = before[0] + new, before[1] + nbytes
        return found

    def of(self, bit: int) -> str:
        """Return ``file:line`` where most of what a holder holds was created: most new bytes, then most bytes.

        ``unknown`` where no ledger that remembers it saw most of it. To be asked once all storages are noted.
        """
        totals = self._totals.get(bit, {})
        return origins.describe(*max(totals, key=lambda place: totals[place], default=NOWHERE))
