"""A simulated card: the CUDA caching allocator's model, fed with the storages that a CPU run creates."""

from __future__ import annotations

from memlab.allocator import Allocator
from memlab.probes import Unavailable
from memlab.probes.storages import Storages
from memlab.units import parse_size


def card_of(size: str | int | Allocator) -> Allocator:
    """Return the simulated card that ``size`` names: a text such as ``"24 GiB"``, bytes, or an allocator as it is.

    Raises:
        ValueError: a sentence about a size that cannot be read.
    """
    return size if isinstance(size, Allocator) else Allocator(total=parse_size(size))


class Simulated:
    """Allocated, reserved and peak bytes of a simulated card. Every number from it is simulated, none is a device's.

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
        self._allocated, self._reserved = self.card.allocated, self.card.reserved
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self) -> dict[str, int]:
        self._storages.ledger.settle()
        return {
            "allocated": self.card.allocated - self._allocated,
            "allocated_peak": self.card.peak_allocated - self._allocated,
            "reserved": self.card.reserved - self._reserved,
        }
