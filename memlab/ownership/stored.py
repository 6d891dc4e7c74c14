"""The storages of the tensors that a look was asked about: their bytes by the sets of owners that hold them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from memlab.births import Place, birth
from memlab.ownership.masks import by_owner

_storage: Any = torch._C.TensorBase.untyped_storage


class Stored:
    """Storages by their keys, and which tensors lie in which.

    Args:
        tensors: those that were asked about.
        made: ``{storage key: bytes}`` of the storages that count as new.

    Attributes:
        keys: the storage key of each tensor that has a storage, by the tensor's ``id()``.
    """

    def __init__(self, tensors: list[Tensor], made: Mapping[int, int]) -> None:
        self._made = made
        self.keys: dict[int, int] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}
        for each, storage in storages(tensors):
            key = self.keys[id(each)] = storage._cdata
            self._storages[key] = storage
        self._bytes = {key: storage.nbytes() for key, storage in self._storages.items()}

    def masks(self, holders: Mapping[int, int]) -> dict[int, int]:
        """Return for each storage the owners, as bits, of all the tensors in ``holders`` that lie in it."""
        keys = list(map(self.keys.__getitem__, holders))
        found = dict(zip(keys, holders.values(), strict=True))
        if len(found) < len(keys):  # some tensors share a storage
            for key, mask in zip(keys, holders.values(), strict=True):
                found[key] |= mask
        return found

    def alone(self, holders: Mapping[int, int], graphs: Collection[int]) -> dict[int, Counter[int]]:
        """For each owner's bit: bytes of storages of tensors that are not in ``graphs``, by the set of their owners."""
        nbytes: Counter[int] = Counter()
        for key, mask in self.masks({each: holders[each] for each in self.keys if each not in graphs}).items():
            nbytes[mask] += self._bytes[key]
        found: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for bit, masks in by_owner(nbytes).items():
            found[bit].update({mask: nbytes[mask] for mask in masks})
        return found

    def pinned(self, masks: Mapping[int, int], in_graphs: Mapping[int, int]) -> Counter[int]:
        """Return the bytes of new storages by the set of owners that hold or reach them."""
        nbytes: Counter[int] = Counter()
        reached = {key: mask | masks.get(key, 0) for key, mask in in_graphs.items()}
        for key, mask in ({**masks, **reached} if reached else masks).items():
            if key in self._made:
                nbytes[mask] += self._made[key]
        return nbytes

    def births(self, masks: Mapping[int, int]) -> Iterator[tuple[int, Place, int, int]]:
        """Yield of each storage its owners, where it was created, its new bytes and all its bytes."""
        for key, mask in masks.items():
            yield mask, birth(self._storages[key]), self._made.get(key, 0), self._bytes[key]


def storages(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, torch.UntypedStorage]]:
    """Yield each tensor that has a storage, with it."""
    for each in tensors:
        try:
            yield each, _storage(each)
        except (NotImplementedError, RuntimeError):  # sparse; lazy (not yet initialised)
            continue
