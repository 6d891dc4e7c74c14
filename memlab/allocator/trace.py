"""A bounded record of what happened (TraceEntry, RingBuffer). Sizes and addresses are in bytes."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol


class Context(Protocol):
    """Where an allocation comes from, as whoever calls the allocator knows it."""

    def describe(self) -> dict[str, Any]:
        """Return what entries and blocks say of it: frames, and more if it is known."""


class Trace:
    """The newest events. Their clock counts events instead of microseconds, so that two equal runs record the same.

    Attributes:
        context: where the next allocation comes from; set before malloc by those who know.
        live: the contexts of what is allocated now, by address.
    """

    __slots__ = ("clock", "context", "entries", "live")

    def __init__(self, max_entries: int) -> None:
        self.entries: deque[tuple[str, int, int, int, int, Context | None]] = deque(maxlen=max_entries)
        self.clock = 0
        self.context: Context | None = None
        self.live: dict[int, Context] = {}

    def record(self, action: str, address: int, size: int, stream: int) -> None:
        context = self.context
        if action == "alloc":
            if context is not None:
                self.live[address] = context
        elif action == "free_requested":
            context = self.live.get(address)
        elif action == "free_completed":
            context = self.live.pop(address, None)
        self.entries.append((action, address, size, stream, self.clock, context))
        self.clock += 1

    def dicts(self) -> list[dict[str, Any]]:
        """One of the lists in snapshot()["device_traces"]."""
        return [_entry(*entry) for entry in self.entries]


def _entry(action: str, address: int, size: int, stream: int, time: int, context: Context | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "action": action,
        "device_free" if action == "oom" else "addr": address,  # no address where nothing was given: the bytes left
        "size": size,
        "stream": stream,
        "time_us": time,
        "compile_context": "N/A",
        "user_metadata": "",
        "pool_id": (0, 0),
    }
    if action != "snapshot":
        found["frames"] = []
        if context is not None:
            found |= context.describe()
    return found
