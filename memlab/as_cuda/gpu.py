"""What a CUDA kernel asks its device for before it decides how much memory to use."""

from __future__ import annotations

from dataclasses import dataclass

from memlab.cards import THREADS_PER_SM, Card

ASSUMED = (9, 0)  # capability of a card that is only a size
ASSUMED_SMS = 132  # an H100's
WARP = 32


@dataclass(frozen=True)
class Gpu:
    """Compute capability, streaming multiprocessors and their resident threads."""

    capability: tuple[int, int] = ASSUMED
    sms: int = ASSUMED_SMS

    @property
    def threads_per_sm(self) -> int:
        return THREADS_PER_SM.get(self.capability, 2048)


def gpu_of(card: Card) -> Gpu:
    """Return the card's device; where the card does not say, an H100's."""
    return Gpu(card.capability or ASSUMED, card.sms or ASSUMED_SMS)
