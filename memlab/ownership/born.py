"""Where most of what each owner holds was created."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from memlab import origins
from memlab.births import NOWHERE, Place
from memlab.ownership.masks import by_owner


class Births:
    """Where the storages of several owners were created; owners are bits of a mask.

    Args:
        storages: of each its owners, where it was created, how many bytes of it are new, and all its bytes.
    """

    def __init__(self, storages: Iterable[tuple[int, Place, int, int]]) -> None:
        places: dict[tuple[int, int], Place] = {}  # by the code's id(): hashing a code reads all of it
        self._totals: defaultdict[int, dict[tuple[int, int], tuple[int, int]]] = defaultdict(dict)
        for mask, place, new, nbytes in storages:
            line = id(place[0]), place[1]
            totals = self._totals[mask]
            before = totals.get(line)
            if before is None:
                places[line] = place
                before = 0, 0
            totals[line] = before[0] + new, before[1] + nbytes
        self._places, self._sets = places, by_owner(self._totals)

    def of(self, bit: int) -> str:
        """Return ``file:line`` where most of what an owner holds was created: most new bytes, then most bytes.

        ``unknown`` where no ledger that remembers it saw most of it.
        """
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for mask in self._sets.get(bit, ()):
            for line, (new, nbytes) in self._totals[mask].items():
                before = found.get(line, (0, 0))
                found[line] = before[0] + new, before[1] + nbytes
        if not found:
            return origins.describe(*NOWHERE)
        return origins.describe(*self._places[max(found, key=found.__getitem__)])
