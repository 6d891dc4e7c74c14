"""What tests of the allocator share: sizes, and how they look into its statistics."""

from __future__ import annotations

from memlab.allocator import Allocator

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def stat(card: Allocator, *keys: str) -> list[int]:
    stats = card.memory_stats()
    return [stats[key] for key in keys]
