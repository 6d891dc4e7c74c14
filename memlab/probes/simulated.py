"""A simulated card: the CUDA caching allocator's model, fed with the storages that a CPU run creates."""

from __future__ import annotations

from memlab import cards, versions
from memlab.allocator import Allocator
from memlab.cards import Card
from memlab.probes import Unavailable
from memlab.probes.cuda import numbers, since
from memlab.probes.storages import Storages


def card_of(card: str | int | Card | Allocator) -> Allocator:
    """Return the allocator of a simulated card.

    ``card`` is a size such as ``"24 GiB"``, bytes, a name such as ``"rtx4090"``, a JSON file, a `Card`, or an allocator
    as it is.

    Raises:
        ValueError: a sentence about a card that is not known or cannot be read.
    """
    return card if isinstance(card, Allocator) else cards.find(card).allocator(**versions.allocator())


class Simulated:
    """A simulated card's allocator in bytes, as `Cuda` reads a device's. Each number is simulated, none is a device's.

    The card sees what the `Storages` probe sees that feeds it. It cannot see what CUDA would do differently:
    other saved tensors, workspaces of cuBLAS and cuDNN, temporaries inside kernels, the context.

    Args:
        storages: the probe that was given the card.
    """

    name = "simulated"

    def __init__(self, storages: Storages) -> None:
        card = storages.ledger.card
        if card is None:
            raise Unavailable("these storages are not on a card")
        self.card, self._storages = card, storages

    def __enter__(self) -> Simulated:
        self._start = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self) -> dict[str, int]:
        """Return what the `Cuda` probe reads of a device, in bytes, since the probe was opened."""
        return since(self._start, self._now())

    def _now(self) -> dict[str, int]:
        self._storages.ledger.settle()
        return numbers(self.card.memory_stats())
