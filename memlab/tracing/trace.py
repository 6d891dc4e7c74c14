"""What was recorded of one run: plain data, JSON both ways."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from memlab.report import NotAReport, parsed, read_text, whole, write_atomically

FORMAT, VERSION = "memlab trace", 1
FINISHED, STOPPED, EXITED, INTERRUPTED = "finished", "stopped", "exited", "interrupted"
OUT_OF_MEMORY, FAILED = "out of memory", "failed"
ENDS = (FINISHED, STOPPED, EXITED, INTERRUPTED, OUT_OF_MEMORY, FAILED)
OUTSIDE = "outside of modules"
WARMUP = 3  # steps that are not judged: lazily created state, caches that fill once
ENOUGH = 6  # points after them that a verdict on growth needs


@dataclass
class Row:
    """Saved tensors that share a source line, a module, a class and a node: ``bytes`` of ``count`` storages."""

    line: str
    module: str
    module_class: str
    kind: str
    node: str
    bytes: int
    count: int


def module_text(row: Row) -> str:
    """Name a row's module with its class; empty outside of modules."""
    if row.module and row.module != row.module_class:
        return f"{row.module} ({row.module_class})"
    return row.module_class


@dataclass
class Moment:
    """What was alive at one moment.

    Attributes:
        step: steps that had ended by then.
        saved: bytes saved for backward; ``rows`` itemise them and add up to this.
        live: bytes of all tensor storages created by the run.
        classes: ``{class: bytes}`` of everything alive; they add up to ``live``. Empty where only rows were read.
    """

    step: int
    saved: int = 0
    live: int = 0
    rows: list[Row] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=dict)

    def by(self, what: str) -> dict[str, int]:
        """Return `saved` grouped by module, line, class or node, largest first."""
        totals: Counter[str] = Counter()
        for row in self.rows:
            totals[_group(row, what)] += row.bytes
        return dict(totals.most_common())


def _group(row: Row, what: str) -> str:
    if what == "module":
        return module_text(row) or OUTSIDE
    return {"line": row.line, "class": row.kind, "node": row.node}[what]


@dataclass
class Held:
    """An owner as it was found: who keeps graphs or tensors alive, how much only it pins, since when, and what to do.

    Attributes:
        path, name, where, kind: the path of references, and the name at its beginning with its place.
        bytes, exclusive, tensors, nodes, holds: as in `memlab.Owner`.
        born: where the tensors at its end were made; ``source`` is the text of that line.
        kept: where that is unknown or in a library, the only statement that stores into the name, if there is one
            (`kept_at`); ``kept_source`` is its text.
        per_step: bytes that it grew by in each step, of what is saved or of all that it pins, whichever is more; 0 when
            it did not grow or was seen once.
        pattern, fix, cure: the known pattern it is, in a word; what to do, in a sentence; the experiment's arm.
        step: steps that had ended when it was seen.
        elements: how many tensors it holds.
        pinned: bytes of storages that it keeps, saved or not, and that are new since the run's warm-up.
        complete: whether its graphs were read to their ends; if not, the numbers are at least what they say.
        carrier: the name that carries on the state that this one, made anew in every step, leads to; else empty.
    """

    path: str
    name: str
    where: str = ""
    kind: str = ""
    bytes: int = 0
    exclusive: int = 0
    tensors: int = 0
    nodes: int = 0
    holds: str = "graph"
    born: str = ""
    source: str = ""
    kept: str = ""
    kept_source: str = ""
    per_step: int = 0
    pattern: str = ""
    fix: str = ""
    cure: str = ""
    step: int = 0
    complete: bool = True
    elements: int = 0
    pinned: int = 0
    carrier: str = ""

    @property
    def places(self) -> list[tuple[str, str, str]]:
        """Return where what it holds was made and what stores it, as far as known: label, place, text of the line."""
        born = [("born at", self.born, self.source)] if self.born not in ("", "unknown") else []
        return [*born, *([("kept at", self.kept, self.kept_source)] if self.kept else [])]

    @property
    def place(self) -> str:
        """Return the last of `places`, with its label; empty where there is none."""
        return " ".join(self.places[-1][:2]) if self.places else ""


@dataclass
class Trace:
    """One run of a script under memlab.

    Attributes:
        machine: what the numbers hold for.
        command: the script or module and its arguments.
        ended, reason, code: how it ended, in a word and in a sentence, and the exit code.
        source: what ended its steps, the line where one was named; empty when nothing did.
        steps: how many ended.
        stride: each of ``points`` stands for so many steps.
        points: ``{"step", "saved", "peak", "live"}`` at the ends of steps, in bytes.
        peak: what was saved when most was; ``live_peak`` the most that was alive.
        last: what was alive at the end.
        moments: what was saved at the ends of a few steps.
        grows, per_step: whether steps leave more and more bytes behind, and how many each.
        nodes_per_step: autograd nodes that each step leaves behind, 0 where they do not pile up.
        owners: who keeps graphs alive, and who lets plain tensors pile up; those that grow fastest first.
        card: bytes of the card, None without a limit; ``simulated`` tells whether a model counts it.
        card_numbers: what the card's allocator says at the end, since the beginning: allocated, reserved, active,
            requested and inactive split bytes, their peaks, retries and OOMs; empty without a simulated card.
        oom: the text of the OutOfMemoryError.
        blind: sentences about what was met and not seen.
        seconds: how long the script ran, and how long of that memlab looked for owners.
    """

    machine: dict[str, str]
    command: list[str]
    ended: str = FINISHED
    reason: str = ""
    code: int = 0
    source: str = ""
    steps: int = 0
    stride: int = 1
    points: list[dict[str, int]] = field(default_factory=list)
    peak: Moment = field(default_factory=lambda: Moment(0))
    live_peak: int = 0
    last: Moment = field(default_factory=lambda: Moment(0))
    moments: list[Moment] = field(default_factory=list)
    grows: bool = False
    per_step: int = 0
    nodes_per_step: int = 0
    owners: list[Held] = field(default_factory=list)
    card: int | None = None
    simulated: bool = False
    card_numbers: dict[str, int] = field(default_factory=dict)
    oom: str = ""
    blind: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def at(self, step: int | None) -> Moment:
        """Return what was saved at the end of ``step``, or at the peak. Raises ValueError where it was not recorded."""
        if step is None:
            return self.peak
        for moment in self.moments:
            if moment.step == step:
                return moment
        known = ", ".join(str(moment.step) for moment in self.moments) or "none"
        raise ValueError(f"what step {step} kept was not recorded; there are {known}")

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Return the trace in ``text``. Raises `NotAReport` with a sentence for anything else."""
        return cls.from_content(parsed(text))

    @classmethod
    def from_content(cls, content: Any) -> Trace:
        """As `from_json`, of what `memlab.report.parsed` has returned."""
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise NotAReport("it is JSON, but not a memlab trace")
        version = content.pop("version", None)
        if version != VERSION:
            raise NotAReport(f"it is a trace of format {version!r}; this memlab reads {VERSION}")
        try:
            trace: Trace = _made(cls, content)
            if trace.ended not in ENDS:
                raise ValueError("the trace has no valid ended")
        except (TypeError, ValueError) as error:
            raise NotAReport(f"it is damaged: {error}") from None
        return trace

    def save(self, path: Path) -> None:
        """Write the trace to ``path``, whole or not at all."""
        write_atomically(path, self.to_json())


def load(path: Path) -> Trace:
    """Return the trace saved at ``path``. Raises `NotAReport` with a sentence, OSError when it cannot be read."""
    return Trace.from_json(read_text(path))


def _made(kind: type[Any], content: object) -> Any:
    """Return a ``kind`` of what JSON says, each field checked. Raises ValueError or TypeError."""
    if not isinstance(content, dict):
        raise ValueError(f"a {kind.__name__.lower()} is no mapping")
    unknown = set(content) - {each.name for each in fields(kind)}
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    return kind(
        **{each.name: _field(kind, each.name, str(each.type), content) for each in fields(kind) if each.name in content}
    )


def _field(kind: type[Any], name: str, shape: str, content: dict[str, Any]) -> Any:
    value = content[name]
    if shape == "Moment":
        return _made(Moment, value)
    if shape in _LISTS and isinstance(value, list):
        return [_made(_LISTS[shape], each) for each in value]
    if not _SHAPES.get(shape, _never)(value):
        raise ValueError(f"the {kind.__name__.lower()} has no valid {name}")
    return value


def _never(value: object) -> bool:
    return False


def _text(value: object) -> bool:
    return isinstance(value, str)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e12


def _mapping(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(holds, value.values()))


def _list(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


_LISTS: dict[str, type[Any]] = {"list[Row]": Row, "list[Moment]": Moment, "list[Held]": Held}
_SHAPES: dict[str, Callable[[object], bool]] = {
    "str": _text,
    "int": whole,
    "bool": lambda value: isinstance(value, bool),
    "int | None": lambda value: value is None or whole(value),
    "dict[str, int]": _mapping(whole),
    "dict[str, str]": _mapping(_text),
    "dict[str, float]": _mapping(_number),
    "list[str]": _list(_text),
    "list[dict[str, int]]": _list(_mapping(whole)),
}
"""What a field may hold, by the text of its type."""
