"""The committed baselines: one JSON file a test module, in ``__memlab__`` beside it. Imports no torch.

A file reads, and differs, line by line: tests, checks, devices and torch versions are sorted keys, and each line of a
bill is one line of text. Only what ran is rewritten; a file that is damaged or newer is never overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memlab.guard import bill
from memlab.guard.bill import Entry
from memlab.report import LARGEST_FILE, write_atomically
from memlab.units import format_bytes

FOLDER = "__memlab__"
_FORMAT, _VERSION = "memlab baseline", 1

Key = tuple[str, str, str, str]
"""Test id within its module, check's name, kind of device, torch's minor version."""


class NotABaseline(ValueError):
    """A file that is not a baseline of this memlab; the text is a sentence that names it."""


@dataclass(frozen=True)
class Measured:
    """What one check compares: peaks in bytes, and the bill that ``saved`` was made of.

    ``storages`` is None where the watch did not look at storages.
    """

    saved: int
    storages: int | None
    lines: list[Entry] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        lines = [bill.to_json(entry) for entry in self.lines]
        return {"saved peak": self.saved, "storages peak": self.storages, "lines": lines}

    @classmethod
    def from_json(cls, content: Any) -> Measured:
        saved, storages = content["saved peak"], content["storages peak"]
        if type(saved) is not int or not (storages is None or type(storages) is int):
            raise ValueError("a peak of it is no whole number")
        return cls(saved, storages, [bill.from_json(line) for line in content["lines"]])


def path_of(module: Path) -> Path:
    """Return where the baselines of a test module are: ``__memlab__/<module>.json`` beside it."""
    return module.parent / FOLDER / f"{module.stem}.json"


def load(path: Path) -> dict[Key, Measured]:
    """Return what the file holds; nothing where there is no file.

    Raises:
        NotABaseline: it cannot be read, is damaged or from a newer memlab.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise NotABaseline(f"{path}: cannot read it: {error.strerror}") from None
    if len(text) > LARGEST_FILE:
        raise NotABaseline(f"{path}: it is larger than {format_bytes(LARGEST_FILE)}, which no baseline is")
    try:
        content = json.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise NotABaseline(f"{path}: it is not JSON ({error}); restore it from version control") from None
    return _read(path, content)


def _read(path: Path, content: Any) -> dict[Key, Measured]:
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise NotABaseline(f"{path}: it is no baseline of memlab; move it away")
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise NotABaseline(f"{path}: it is damaged: it has no version; restore it from version control")
    if version > _VERSION:
        raise NotABaseline(f"{path}: it has format {version}, newer than the {_VERSION} of this memlab; upgrade memlab")
    try:
        return {key: Measured.from_json(each) for key, each in _leaves(content["tests"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotABaseline(f"{path}: it is damaged ({error}); restore it from version control") from None


def _leaves(tests: Any) -> Iterator[tuple[Key, Any]]:
    for test, checks in tests.items():
        for name, devices in checks.items():
            for device, versions in devices.items():
                for version, content in versions.items():
                    yield (test, name, device, version), content


def update(path: Path, changed: dict[Key, Measured]) -> bool:
    """Write ``changed`` over what the file holds, atomically; tell whether the file's text is another now.

    Raises:
        NotABaseline: the file there is damaged or newer; it stays as it is.
    """
    held = load(path)
    text = to_text(held | changed)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, text)
    return True


def to_text(entries: dict[Key, Measured]) -> str:
    """Return the file's text: sorted, with one line of text for each line of a bill."""
    tests: dict[str, Any] = {}
    for (test, name, device, version), measured in sorted(entries.items()):
        tests.setdefault(test, {}).setdefault(name, {}).setdefault(device, {})[version] = measured.to_json()
    return "\n".join(_pretty({"format": _FORMAT, "version": _VERSION, "tests": tests}, "")) + "\n"


def _pretty(value: Any, indent: str) -> Iterator[str]:
    """Yield JSON with one key or one list item a line; what is in a list stays on its line."""
    if isinstance(value, dict) and value:
        yield "{"
        for last, (key, each) in _with_last(value.items()):
            first, *rest = _pretty(each, indent + " ")
            yield from _comma([f"{indent} {json.dumps(key, ensure_ascii=False)}: {first}", *rest], last)
        yield f"{indent}}}"
    elif isinstance(value, list) and value:
        yield "["
        for last, each in _with_last(value):
            yield from _comma([f"{indent} {json.dumps(each, ensure_ascii=False)}"], last)
        yield f"{indent}]"
    else:
        yield json.dumps(value, ensure_ascii=False)


def _with_last(values: Iterable[Any]) -> Iterator[tuple[bool, Any]]:
    items = list(values)
    for index, each in enumerate(items):
        yield index == len(items) - 1, each


def _comma(lines: list[str], last: bool) -> list[str]:
    return lines if last else [*lines[:-1], f"{lines[-1]},"]
