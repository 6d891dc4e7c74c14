"""What a step would take on a card that is not here: the `Prediction`, plain data, JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from memlab.report import parsed, write_atomically
from memlab.units import format_bytes

FITS, DIES, UNKNOWN = "fits", "dies", "unknown"
FORMAT, _VERSION = "memlab prediction", 1


class NotAPrediction(ValueError):
    """A text that is not a prediction of this memlab; it says why."""


@dataclass
class Prediction:
    """Whether a step fits a card, and what it takes there. Bytes, unless the name says otherwise.

    Attributes:
        what: the script, or the step's name.
        verdict: ``fits``, ``dies`` (of torch.OutOfMemoryError), or ``unknown`` (it could not be run to its end).
        reason: why it is unknown, in a sentence.
        card: the card in words, with what of it torch cannot have; the next three are its bytes.
        total, context, other: what the driver reports, what the CUDA context takes, what other processes take.
        device: the compute capability and multiprocessors that kernels were chosen for.
        fake: it was run on fake tensors.
        assumed: what was taken for granted of values that these do not have, in sentences.
        allocated, reserved: the peaks of torch.cuda.memory_stats(); where it dies, until then.
        bar: by how many bytes the allocated peak may be higher, for operators whose memory inside is modelled; 0 where
            all that could matter was exact. It holds where ``unknown`` is empty.
        bars: the operators it is made of, ``{operator: bytes above the peak}``, the largest first: they do not add up,
            for what a kernel takes is free when it returns.
        unknown: operators of which it is not known what they take inside, by name: the peak is at least what is said.
        high: what may be counted too high, by name: the peak is at most what is said.
        saved: the most that autograd kept for backward at a time.
        workspaces: cuBLAS's that threads keep (up to torch 2.14), among the allocated bytes.
        caught: how many OutOfMemoryErrors the code caught itself, where it fits.
        died: the user's line of the allocation that did not fit; oom: torch's text.
        filled: what was kept for backward then, ``{source line: bytes}``, largest first.
        blocks: ``{module: bytes}`` that checkpointing this top-level block would save: what is kept for backward in it,
            less its inputs.
        batches: ``{batch: verdict}`` of every batch tried; largest: the largest of them that fits, 0 if the first does
            not, None if none was looked for.
        exact, modelled, missing: sentences about what these numbers are worth.
        machine: what it was run on.
        seconds: how long it took.
    """

    what: str
    verdict: str = UNKNOWN
    reason: str = ""
    card: str = ""
    total: int = 0
    context: int = 0
    other: int = 0
    device: str = ""
    fake: bool = False
    assumed: list[str] = field(default_factory=list)
    allocated: int = 0
    reserved: int = 0
    bar: int = 0
    bars: dict[str, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    high: list[str] = field(default_factory=list)
    saved: int = 0
    workspaces: int = 0
    caught: int = 0
    died: str = ""
    oom: str = ""
    filled: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    batches: dict[str, str] = field(default_factory=dict)
    largest: int | None = None
    exact: list[str] = field(default_factory=list)
    modelled: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __repr__(self) -> str:
        peaks = f"{format_bytes(self.allocated)} allocated, {format_bytes(self.reserved)} reserved at the peak"
        return f"<Prediction: {self.what} {self.verdict}; {peaks}>"

    @property
    def fits(self) -> bool:
        return self.verdict == FITS

    @property
    def at_most(self) -> int | None:
        """The allocated peak with its bar, in bytes; None where something has no bar."""
        return None if self.unknown else self.allocated + self.bar

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": _VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Prediction:
        """Return the prediction in ``text``. Raises `NotAPrediction` with a sentence for anything else."""
        return cls.from_content(parsed(text, NotAPrediction))

    @classmethod
    def from_content(cls, content: Any) -> Prediction:
        """As `from_json`, of what `memlab.report.parsed` has returned."""
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise NotAPrediction("it is no memlab prediction")
        if (version := content.pop("version", None)) != _VERSION:
            raise NotAPrediction(f"it is a prediction of format {version!r}; this memlab reads {_VERSION}")
        kinds = {each.name: str(each.type) for each in fields(cls)}
        for name, value in content.items():
            if name not in kinds or not _SHAPES[kinds[name]](value):
                raise NotAPrediction(f"it is damaged: it has no valid {name}")
        if content.get("verdict") not in (FITS, DIES, UNKNOWN) or "what" not in content:
            raise NotAPrediction("it is damaged: it has no valid verdict")
        return cls(**content)

    def save(self, path: Path) -> None:
        """Write it to ``path``, whole or not at all."""
        write_atomically(path, self.to_json())


def _text(value: object) -> bool:
    return isinstance(value, str)


def _whole(value: object) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def _mapping(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(holds(each) for each in value.values())


_SHAPES: dict[str, Callable[[Any], bool]] = {
    "str": _text,
    "bool": lambda value: isinstance(value, bool),
    "int": _whole,
    "int | None": lambda value: value is None or _whole(value),
    "float": lambda value: isinstance(value, (int, float)) and abs(value) < 1e12,
    "dict[str, int]": lambda value: _mapping(value, _whole),
    "dict[str, str]": lambda value: _mapping(value, _text),
    "list[str]": lambda value: isinstance(value, list) and all(map(_text, value)),
}
