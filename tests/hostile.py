"""Files that are no snapshots: pickles that would run code, fill the memory, never end or are damaged."""

import os
import pickle
import struct
from functools import cache

MARK = "executed"
"""What a file that is run leaves behind, in the working directory."""


class Runs:
    """Pickled, it makes the reader create a file."""

    def __reduce__(self):
        return os.mkdir, (MARK,)


class Built:
    def __init__(self):
        self.x = 1


PROTO = b"\x80\x04"
CALL = b"cos\nmkdir\n"
ARGUMENT = b"X" + struct.pack("<I", len(MARK)) + MARK.encode()
EMPTY = pickle.dumps({"segments": [], "device_traces": [[]]}, 4)

CODE = {
    "reduce": pickle.dumps(Runs(), 2),
    "reduce, protocol 5, inside a snapshot": pickle.dumps({"segments": [Runs()]}, 5),
    "protocol 0": pickle.dumps(Runs(), 0),
    "global": PROTO + CALL + b".",
    "stack global": PROTO + b"\x8c\x02os\x8c\x05mkdir\x93.",
    "global and call": PROTO + CALL + ARGUMENT + b"\x85R.",
    "inst": PROTO + b"(" + ARGUMENT + b"ios\nmkdir\n.",
    "obj": PROTO + b"(" + CALL + ARGUMENT + b"o.",
    "newobj": PROTO + CALL + ARGUMENT + b"\x85\x81.",
    "newobj ex": PROTO + CALL + ARGUMENT + b"\x85}\x92.",
    "build": pickle.dumps(Built(), 2),
    "build on a dict": PROTO + b"}}b.",
    "persistent id": PROTO + b"Pmkdir\n.",
    "binary persistent id": PROTO + ARGUMENT + b"Q.",
    "extension code of one byte": PROTO + b"\x82\x01.",
    "extension code of two bytes": PROTO + b"\x83\x01\x00.",
    "extension code of four bytes": PROTO + b"\x84\x01\x00\x00\x00.",
    "next buffer": PROTO + b"\x97.",
    "set": pickle.dumps({1, 2}, 4),
    "frozen set": pickle.dumps(frozenset([1]), 4),
    "bytes": pickle.dumps(b"1", 4),
    "old text opcodes": PROTO + b"I1\n.",
}

HUGE = {
    "text of 2^60 bytes": PROTO + b"\x8d" + struct.pack("<Q", 1 << 60) + b"a.",
    "bytes of 2^60 bytes": PROTO + b"\x8e" + struct.pack("<Q", 1 << 60) + b"a.",
    "bytearray of 2^60 bytes": PROTO + b"\x96" + struct.pack("<Q", 1 << 60) + b"a.",
    "text of 2^32 bytes": PROTO + b"X" + struct.pack("<I", (1 << 32) - 1) + b"a.",
    "integer of 2^31 bytes": PROTO + b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"1.",
    "integer of 255 bytes": PROTO + b"\x8a\xff" + b"1" * 255 + b".",
    "memo index of 2^32": PROTO + b"Nr" + struct.pack("<I", (1 << 32) - 1) + b".",
    "marks": PROTO + b"(" * 2_000_000 + b".",
    "nested lists": PROTO + b"]" * 200_000 + b"a" * 199_999 + b".",
    "nested tuples": PROTO + b")" + b"\x85" * 200_000 + b".",
    "a nested tuple as a key": PROTO + b"})" + b"\x85" * 200_000 + b"Ns.",
    "many dicts": PROTO + b"(" + b"}" * 700_000 + b"l.",
    "many references": PROTO + b"]\x94(" + b"h\x00" * 700_000 + b"l.",
}


def laughs(levels=24):
    """A list of two lists of two lists of two lists ..., each written once."""
    inner = []
    for _ in range(levels):
        inner = [inner, inner]
    return inner


def itself():
    segments = []
    segments.append(segments)
    return segments


def segment(**changed):
    known = {"device": 0, "address": 1 << 21, "total_size": 1 << 21, "stream": 0, "segment_type": "small"}
    block = {"address": 1 << 21, "size": 1 << 21, "requested_size": 9, "state": "active_allocated", "frames": []}
    return {**known, "blocks": [block], **changed}


def event(**changed):
    return {"action": "alloc", "addr": 1 << 21, "size": 9, "stream": 0, **changed}


def _shared_blocks():
    blocks = segment()["blocks"]
    return [segment(blocks=blocks), segment(blocks=blocks)]


CONTENT = {
    "a text": "segments",
    "a number": 7,
    "no segments": {"device_traces": []},
    "segments of another type": {"segments": {}},
    "billion laughs": {"segments": laughs()},
    "billion laughs as segments": laughs(),
    "a list in itself": {"segments": itself()},
    "a segment twice": {"segments": [segment()] * 2},
    "a million times one segment": {"segments": [segment()] * 1_000_000},
    "blocks of two segments": {"segments": _shared_blocks()},
    "an event twice": {"segments": [], "device_traces": [[event()] * 2]},
    "a million devices": {"segments": [], "device_traces": [[]] * 1_000_000},
    "blocks that are no list": {"segments": [segment(blocks=7)]},
    "no blocks": {"segments": [segment(blocks=[])]},
    "a size that is no number": {"segments": [segment(total_size="2 MiB")]},
    "a negative size": {"segments": [segment(total_size=-1)]},
    "a size of 2^70": {"segments": [segment(total_size=1 << 70)]},
    "a deep list for a size": {"segments": [segment(total_size=laughs())]},
    "a deep list for a state": {"segments": [segment(blocks=[segment()["blocks"][0] | {"state": laughs()}])]},
    "a block of nothing": {"segments": [segment(blocks=[segment()["blocks"][0] | {"size": 0}] * 1)]},
    "a block elsewhere": {"segments": [segment(blocks=[segment()["blocks"][0] | {"address": 1}])]},
    "an event without action": {"segments": [], "device_traces": [[event(action=None)]]},
    "an event of a negative size": {"segments": [], "device_traces": [[event(size=-1)]]},
    "keys that are numbers": {"segments": [], 1: 2},
    "a tuple of lists": {"segments": ([],)},
}

DAMAGED = {
    "empty": b"",
    "only a head": b"\x80",
    "protocol 6": b"\x80\x06N.",
    "no end": PROTO + b"N",
    "stop at once": PROTO + b".",
    "nothing to append to": PROTO + b"Na.",
    "nothing to mark": PROTO + b"u.",
    "a reference to nothing": PROTO + b"h\x07.",
    "half a dict": PROTO + b"}(Nu.",
    "append to a dict": PROTO + b"}Na.",
    "set items of a list": PROTO + b"](NNu.",
    "a tuple of too few": PROTO + b"N\x87.",
    "text": b"segments",
    "zeros": bytes(1000),
}


@cache
def files():
    """Return ``{name: bytes}`` of all of them."""
    content = {name: pickle.dumps(each, 4) for name, each in CONTENT.items()}
    return {**CODE, **HUGE, **content, **DAMAGED}
