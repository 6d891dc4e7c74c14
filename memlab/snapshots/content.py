"""What a snapshot says: segments, blocks and events as plain values, whichever version of torch wrote it.

Nothing here trusts the file: every value has a type that is looked at, and no list is gone through twice because the
file refers to it twice. Frames stay as they are until somebody asks for a few of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from memlab.snapshots import pickles
from memlab.snapshots.pickles import NotASnapshot

ALLOC, FREE_REQUESTED, FREE_COMPLETED, OOM = "alloc", "free_requested", "free_completed", "oom"
SEGMENT_ALLOC, SEGMENT_FREE, SEGMENT_MAP, SEGMENT_UNMAP = (
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
)
ALLOCATED, PENDING, INACTIVE = "active_allocated", "active_pending_free", "inactive"
STATES = {ALLOCATED: ALLOCATED, PENDING: PENDING, "active_awaiting_free": PENDING, INACTIVE: INACTIVE}
LARGEST = 1 << 62  # an address or a size that is more than this is none
_DEEPEST = 100  # frames that are looked at
_MOST_DEVICES = 128

# What torch 2.13 writes; other versions lack some of it.
_SNAPSHOT = ("device_traces", "allocator_settings", "external_annotations")
_SEGMENT = ("requested_size", "segment_pool_id", "is_expandable", "frames")
_BLOCK = ("address", "requested_size", "frames")
_EVENT = ("time_us", "compile_context", "user_metadata", "pool_id")


class Block(NamedTuple):
    address: int
    size: int
    requested: int
    state: str
    frames: Any

    @property
    def active(self) -> bool:
        return self.state != INACTIVE


class Segment(NamedTuple):
    device: int
    address: int
    size: int
    stream: int
    small: bool
    expandable: bool
    blocks: list[Block]


class Event(NamedTuple):
    """One entry of a history; ``address`` is the bytes that were free on the device where the action is ``oom``."""

    action: str
    address: int
    size: int
    stream: int
    frames: Any


class Snapshot(NamedTuple):
    """A snapshot; ``histories`` by device; ``missing`` is what torch 2.13 would have written besides."""

    segments: list[Segment]
    histories: dict[int, list[Event]]
    settings: str
    missing: list[str]

    @property
    def devices(self) -> list[int]:
        """The devices that it says anything of."""
        used = {segment.device for segment in self.segments}
        return sorted(used | {device for device, events in self.histories.items() if events})

    def of(self, device: int) -> list[Segment]:
        return [segment for segment in self.segments if segment.device == device]


class Frame(NamedTuple):
    filename: str
    line: int
    name: str


def load(file: BinaryIO) -> Snapshot:
    """Return the snapshot in a file from anywhere.

    Raises:
        NotASnapshot: it is something else; the text is a sentence.
        OSError: it cannot be read.
    """
    return parse(pickles.load(file))


def parse(content: Any) -> Snapshot:
    """Return what plain data says: a snapshot, or the list of segments that torch.cuda.memory_snapshot() gives.

    Raises:
        NotASnapshot: it is something else.
    """
    if isinstance(content, list) and all(isinstance(each, dict) for each in content):
        content = {"segments": content}
    if not isinstance(content, dict) or "segments" not in content:
        raise NotASnapshot("it is a pickle, but not a memory snapshot: it has no segments")
    reading = _Reading(content)
    segments = [reading.segment(each) for each in reading.each(content["segments"], "segment")]
    histories = {}
    for device, events in enumerate(_list(content.get("device_traces", []), "device_traces")):
        if device == _MOST_DEVICES:
            raise NotASnapshot(f"it is damaged: it has more than {_MOST_DEVICES} devices")
        histories[device] = [reading.event(each) for each in reading.each(events, "event")]
    settings = content.get("allocator_settings")
    conf = settings.get("PYTORCH_CUDA_ALLOC_CONF") if isinstance(settings, dict) else None
    return Snapshot(segments, histories, conf if isinstance(conf, str) else "", list(reading.missing))


def frames(raw: Any) -> Iterator[Frame]:
    """Yield the frames of an event or a block, innermost first; what is not a frame is left out."""
    for each in raw[:_DEEPEST] if isinstance(raw, list) else ():
        if isinstance(each, dict):
            filename, line, name = each.get("filename"), each.get("line"), each.get("name")
            if isinstance(filename, str) and isinstance(line, int) and isinstance(name, str):
                yield Frame(filename[:1000], line, name[:1000])


def _integer(content: dict[str, Any], name: str, default: int | None = None) -> int:
    value = content.get(name, default)
    if not isinstance(value, int) or not -LARGEST < value < LARGEST:
        raise NotASnapshot(f"it is damaged: {name} is no whole number that an address or a size can be")
    return value


def _size(content: dict[str, Any], name: str, default: int | None = None) -> int:
    value = _integer(content, name, default)
    if value < 0:
        raise NotASnapshot(f"it is damaged: {name} is negative")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise NotASnapshot(f"it is damaged: {what} is no list")
    return value


class _Reading:
    """Reads each dict of one file once, and remembers what was missing."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.missing: dict[str, None] = {}
        self._seen: set[int] = set()
        self._note(content, _SNAPSHOT, "")

    def _note(self, content: dict[str, Any], names: tuple[str, ...], of: str) -> None:
        for name in names:
            if name not in content:
                self.missing[f"{of}{name}"] = None

    def each(self, value: Any, what: str) -> Iterator[dict[str, Any]]:
        """Yield the dicts of a list; a file that refers to one of them twice could say more than it holds."""
        for content in _list(value, f"what should list each {what}"):
            if not isinstance(content, dict) or id(content) in self._seen:
                raise NotASnapshot(f"it is damaged: something is listed twice as {what}, or is none")
            self._seen.add(id(content))
            yield content

    def segment(self, content: dict[str, Any]) -> Segment:
        self._note(content, _SEGMENT, "segment.")
        address = at = _size(content, "address")
        blocks = []
        for each in self.each(content.get("blocks"), "block"):
            blocks.append(self._block(each, at))
            at += blocks[-1].size
        size = _size(content, "total_size")
        if at != address + size:
            raise NotASnapshot(f"it is damaged: the blocks of the segment at {address:#x} do not make up its size")
        stream, small = _integer(content, "stream", 0), content.get("segment_type") == "small"
        expandable = content.get("is_expandable") is True
        return Segment(_size(content, "device", 0), address, size, stream, small, expandable, blocks)

    def _block(self, content: dict[str, Any], at: int) -> Block:
        self._note(content, _BLOCK, "block.")
        history = content.get("history")  # of torch 2.0: the last allocation of the block
        old = history[0] if isinstance(history, list) and history and isinstance(history[0], dict) else {}
        size, state = _size(content, "size"), content.get("state")
        if not isinstance(state, str) or state not in STATES or size == 0 or _size(content, "address", at) != at:
            raise NotASnapshot(f"it is damaged: the block at {at:#x} has no valid state, address or size")
        requested = _size(content, "requested_size", _size(old, "real_size", size))
        return Block(at, size, requested, STATES[state], content.get("frames", old.get("frames")))

    def event(self, content: dict[str, Any]) -> Event:
        self._note(content, _EVENT, "event.")
        action = content.get("action")
        if not isinstance(action, str):
            raise NotASnapshot("it is damaged: an event has no action")
        address = _integer(content, "device_free" if action == OOM else "addr", 0)
        return Event(action, address, _size(content, "size", 0), _integer(content, "stream", 0), content.get("frames"))
