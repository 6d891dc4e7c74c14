"""What the memory_viz page accepts: its own parser of pickles knows 30 instructions and trusts what they make.

Source: torch/utils/viz/MemoryViz.js, functions unpickle, annotate_snapshot, process_alloc_data and simulate_memory. A
file that breaks one of these rules opens as an empty page, or as a wrong picture, and says nothing.
"""

from __future__ import annotations

import pickletools
from typing import Any

from memlab.snapshots import pickles

OPCODES = {
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "EMPTY_DICT",
    "EMPTY_LIST",
    "EMPTY_TUPLE",
    "DICT",
    "LIST",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "APPEND",
    "APPENDS",
    "SETITEM",
    "SETITEMS",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "MEMOIZE",
    "BINPUT",
    "LONG_BINPUT",
    "BINGET",
    "LONG_BINGET",
}
PROTOCOLS = range(2, 5)
EXACT = 1 << 53  # from here on a JavaScript number is no longer every integer
ACTIVE = ("active_allocated", "active_pending_free")
UNKNOWN = "unknown"


def complaints(data: bytes) -> list[str]:
    """Return what in a pickled snapshot the page does not take; nothing: it opens."""
    found = _instructions(data)
    if found:
        return found
    snapshot = pickles.loads(data)
    for device, events in enumerate(snapshot["device_traces"]):
        found += _blocks(snapshot, device) + _rewind(snapshot, device, events)
    return found + _categories(snapshot)


def _instructions(data: bytes) -> list[str]:
    found: dict[str, None] = {}
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in OPCODES:
            found[f"it does not know the pickle instruction {opcode.name}"] = None
        elif opcode.name == "PROTO" and argument not in PROTOCOLS:
            found[f"it does not know the pickle protocol {argument}"] = None
        elif isinstance(argument, int) and not -EXACT < argument < EXACT and opcode.name != "FRAME":
            found[f"it cannot hold the integer {argument}"] = None
    return list(found)


def _blocks(snapshot: dict[str, Any], device: int) -> list[str]:
    """Every block is where its segment puts it, and no active one twice."""
    found, seen = [], set()
    for segment in snapshot["segments"]:
        if segment["device"] != device:
            continue
        address = segment["address"]
        for block in segment["blocks"]:
            if block["address"] != address:
                found.append(f"the block at {block['address']:#x} is drawn at {address:#x}")
            if block["state"] in ACTIVE and address in seen:
                found.append(f"two active blocks are at {address:#x}")
            seen.add(address)
            address += block["size"]
        if address != segment["address"] + segment["total_size"]:
            found.append(f"the blocks of the segment at {segment['address']:#x} do not make up its size")
    return found


def _rewind(snapshot: dict[str, Any], device: int, events: list[dict[str, Any]]) -> list[str]:
    """The page starts from the segments and takes the events back one by one."""
    live = {
        block["address"]
        for segment in snapshot["segments"]
        if segment["device"] == device
        for block in segment["blocks"]
        if block["state"] in ACTIVE
    }
    found = []
    for event in reversed(events):
        action, address = event["action"], event.get("addr")
        if action == "free_completed":
            if address in live:
                found.append(f"a block is freed at {address:#x}, where another one stays")
            live.add(address)
        elif action in ("free_requested", "alloc"):
            if address not in live:
                found.append(f"{action} at {address:#x}, where no block is")
            if action == "alloc":
                live.discard(address)
    return found


def _categories(snapshot: dict[str, Any]) -> list[str]:
    names = {event["category"] for events in snapshot["device_traces"] for event in events if "category" in event}
    if names and UNKNOWN not in names:
        return [f"there are categories and none is {UNKNOWN!r}: the page stops at a misspelt name of its own"]
    return []
