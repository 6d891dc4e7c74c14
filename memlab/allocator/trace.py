"""A bounded record of what happened (TraceEntry, RingBuffer). Sizes and addresses are in bytes."""

from __future__ import annotations

from collections import deque
from typing import Any


class Trace:
    """The newest events. Their clock counts events instead of microseconds, so that two equal runs record the same."""

    __slots__ = ("clock", "entries")

    def __init__(self, max_entries: int) -> None:
        self.entries: deque[tuple[str, int, int, int, int]] = deque(maxlen=max_entries)
        self.clock = 0

    def record(self, action: str, address: int, size: int, stream: int) -> None:
        self.entries.append((action, address, size, stream, self.clock))
        self.clock += 1

    def dicts(self) -> list[dict[str, Any]]:
        """One of the lists in snapshot()["device_traces"]."""
        return [_entry(*entry) for entry in self.entries]


def _entry(action: str, address: int, size: int, stream: int, time: int) -> dict[str, Any]:
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
    return found
