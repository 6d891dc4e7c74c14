"""torch's own snapshot of a real device, with what memlab saw of its allocations.

torch knows every event and no frames for those of the backward pass; memlab knows the operators' storages. A storage
belongs to the last allocation at its address before it was seen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from memlab.allocator.trace import Context

UNKNOWN = "unknown"
BLOCK_ACTIONS = ("alloc", "free_requested", "free_completed")
CLOCKS = 50  # microseconds that two clocks may differ by


class Seen(Protocol):
    """A storage that was seen on a real device: microseconds since 1970, device, address, bytes, origin."""

    @property
    def time_us(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def birth(self) -> Context: ...


def merge(
    snapshot: dict[str, Any], seen: Iterable[Seen], is_ours: Callable[[str], bool] = lambda filename: False
) -> dict[str, Any]:
    """Return torch's snapshot, changed in place: categories for all events, our frames where we saw the storage.

    An event that no sighting fits keeps torch's frames, in the category ``unknown``. ``is_ours`` tells the files whose
    frames are not the program's, for memlab stands between it and the allocator.
    """
    traces = snapshot["device_traces"]
    _leave_out(snapshot, is_ours)
    allocs: dict[tuple[int, int], list[tuple[int, dict[str, Any]]]] = {}
    for device, events in enumerate(traces):
        for event in events:
            event["category"] = UNKNOWN
            if event["action"] == "alloc":
                allocs.setdefault((device, event["addr"]), []).append((event.get("time_us", 0), event))
    origins: dict[int, Context] = {}
    for each in seen:
        candidates = allocs.get((each.device, each.address), [])
        index = bisect_right(candidates, each.time_us + CLOCKS, key=lambda candidate: candidate[0]) - 1
        if index >= 0 and candidates[index][1]["size"] == each.nbytes:
            origins[id(candidates[index][1])] = each.birth
    for device, events in enumerate(traces):
        _spread(snapshot, device, events, origins)
    return snapshot


def _spread(snapshot: dict[str, Any], device: int, events: list[dict[str, Any]], origins: dict[int, Context]) -> None:
    """Tell an allocation's origin to its free events and to its block, if it is still there."""
    live: dict[int, Context] = {}
    for event in events:
        address = event.get("addr", 0)
        if event["action"] == "alloc":
            origin = origins.get(id(event))
            if origin is None:
                live.pop(address, None)
            else:
                live[address] = origin
        if event["action"] in BLOCK_ACTIONS and address in live:
            told = live[address].describe()
            event["category"] = told["category"]
            event["user_metadata"] = event.get("user_metadata") or told["user_metadata"]
            event["frames"] = told["frames"]
        if event["action"] == "free_completed":
            live.pop(address, None)
    for segment in snapshot["segments"]:
        if segment["device"] == device:
            for block in segment["blocks"]:
                origin = live.get(block["address"])
                if origin is not None:
                    block["frames"] = origin.describe()["frames"]


def _leave_out(snapshot: dict[str, Any], is_ours: Callable[[str], bool]) -> None:
    left: dict[int, list[Any]] = {}  # many events share a list of frames, and the file holds it once
    events = [event for events in snapshot["device_traces"] for event in events]
    segments = snapshot["segments"]
    for each in [*events, *segments, *(block for segment in segments for block in segment["blocks"])]:
        frames = each.get("frames")
        if frames:
            if id(frames) not in left:
                left[id(frames)] = [frame for frame in frames if not is_ours(frame["filename"])]
            each["frames"] = left[id(frames)]


def settle_categories(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot, changed in place, whose categories the page takes: it wants one to be ``unknown``.

    Segments have no category of their own.
    """
    named = [event for events in snapshot["device_traces"] for event in events if "category" in event]
    for event in named:
        if event["action"] not in BLOCK_ACTIONS:
            event["category"] = UNKNOWN
    if named and all(event["category"] != UNKNOWN for event in named):
        last = next(events for events in snapshot["device_traces"] if events)
        last.append({**last[-1], "action": "snapshot", "addr": 0, "size": 0, "frames": [], "category": UNKNOWN})
    return snapshot
