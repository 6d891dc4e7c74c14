"""What was found: one `Finding` for each arm, and the `Report` that carries them with the machine they hold for."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from memlab.units import format_bytes

HOLDS, REFUTED, SKIPPED, FAILED = "holds", "refuted", "skipped", "failed"
STATUSES = (HOLDS, SKIPPED, FAILED, REFUTED)
"""Every status, best first."""
LARGEST_FILE = 256 << 20
"""Bytes that are read of a file at most: a device may have no end."""
_FORMAT, _VERSION = "memlab report", 1


class NotAReport(ValueError):
    """A file that is not a report of this memlab; the text says why."""


@dataclass
class Finding:
    """One arm: what was expected, what was measured, and whether the claim holds.

    Attributes:
        experiment, arm, title, claim: names and first lines, for people.
        status: ``holds``, ``refuted``, ``skipped`` (it cannot be measured here) or ``failed`` (its process died).
        reason: why it is not ``holds``, in a sentence; empty otherwise.
        device, sizes, steps, seed: what it was run with.
        rows: one mapping per step of everything measured, in bytes unless the name says otherwise.
        expected: one mapping per step of what the closed form says for ``saved``, ``storages`` and ``allocated``.
        bill: the closed form's lines at the last step: ``{probe: {what: [count, bytes of each]}}``.
        sources: ``{column: "measured" | "simulated" | why it is missing}``.
        card: bytes of the card, None without a limit.
        base: absolute bytes before the first step: ``allocated``, ``reserved``, ``active`` and ``inactive_split`` after
            the setup, ``workspaces`` (what libraries had allocated before it), and on CUDA NVML's ``nvml_used``,
            ``nvml_total``, ``nvml_process``.
        predicted, died: the step of the OutOfMemoryError by the closed form, and in fact.
        oom: the error's text; filled: what the card held then, ``{source line: bytes}``; held: the path from the
            variable that kept most of it, where this torch shows what nodes hold.
        left: bytes still saved after the arm ended.
        seconds: how long the arm ran.
    """

    experiment: str
    arm: str
    title: str = ""
    claim: str = ""
    status: str = SKIPPED
    reason: str = ""
    device: str = "cpu"
    sizes: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    seed: int = 0
    rows: list[dict[str, int]] = field(default_factory=list)
    expected: list[dict[str, int]] = field(default_factory=list)
    bill: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    card: int | None = None
    base: dict[str, int] = field(default_factory=dict)
    predicted: int | None = None
    died: int | None = None
    oom: str = ""
    filled: dict[str, int] = field(default_factory=dict)
    held: str = ""
    left: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.experiment}:{self.arm}"


@dataclass
class Report:
    """Findings and the machine they hold for; JSON both ways."""

    machine: dict[str, str]
    findings: list[Finding]

    @property
    def holds(self) -> bool:
        """True only when every claim was measured and holds."""
        return bool(self.findings) and all(finding.status == HOLDS for finding in self.findings)

    def count(self, status: str) -> int:
        return sum(finding.status == status for finding in self.findings)

    def by_experiment(self) -> Iterator[tuple[str, list[Finding]]]:
        """Yield each experiment's name with its findings, in the order of measurement."""
        for name in dict.fromkeys(finding.experiment for finding in self.findings):
            yield name, [finding for finding in self.findings if finding.experiment == name]

    def to_json(self) -> str:
        content = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report in ``text``. Raises `NotAReport` with a sentence for anything else."""
        return cls.from_content(parsed(text))

    @classmethod
    def from_content(cls, content: Any) -> Report:
        """As `from_json`, of what `parsed` has returned."""
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise NotAReport("it is JSON, but not a memlab report")
        if content.get("version") != _VERSION:
            raise NotAReport(f"it is a report of format {content.get('version')!r}; this memlab reads {_VERSION}")
        try:
            findings = [_finding(each) for each in content["findings"]]
            machine = {str(key): str(value) for key, value in content["machine"].items()}
        except KeyError as error:
            raise NotAReport(f"it is damaged: it has no {error}") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise NotAReport(f"it is damaged: {error}") from None
        return cls(machine, findings)

    def save(self, path: Path) -> None:
        """Write the report to ``path``, whole or not at all."""
        write_atomically(path, self.to_json())


def _finding(content: dict[str, Any]) -> Finding:
    unknown = set(content) - {each.name for each in fields(Finding)}
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    finding = Finding(**content)
    for each in fields(Finding):
        if not _SHAPES[str(each.type)](getattr(finding, each.name)):
            raise ValueError(f"the finding {finding.name} has no valid {each.name}")
    if finding.status not in STATUSES:
        raise ValueError(f"the finding {finding.name} has no valid status")
    return finding


def whole(value: object) -> bool:
    """Tell an integer that every reader can hold."""
    return isinstance(value, int) and abs(value) < 1 << 63


def _mapping(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(holds(each) for each in value.values())


def _counted(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(whole, value))


_SHAPES: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": whole,
    "int | None": lambda value: value is None or whole(value),
    "float": lambda value: isinstance(value, (int, float)) and abs(value) < 1e12,
    "dict[str, int]": lambda value: _mapping(value, whole),
    "dict[str, str]": lambda value: _mapping(value, lambda each: isinstance(each, str)),
    "dict[str, dict[str, list[int]]]": lambda value: _mapping(value, lambda each: _mapping(each, _counted)),
    "list[dict[str, int]]": lambda value: isinstance(value, list) and all(_mapping(each, whole) for each in value),
}
"""What a field of `Finding` may hold, by the text of its type."""


def load(path: Path) -> Report:
    """Return the report saved at ``path``. Raises `NotAReport` with a sentence, OSError when it cannot be read."""
    return Report.from_json(read_text(path))


def read_text(path: Path) -> str:
    """Return the text of a file from anywhere. Raises `NotAReport` where it has no end or is not text, and OSError."""
    with path.open("rb") as file:
        text = file.read(LARGEST_FILE + 1)
    if len(text) > LARGEST_FILE:
        raise NotAReport(f"it is larger than {format_bytes(LARGEST_FILE)}, which no report is")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise NotAReport("it is not text") from None


def parsed(text: str, refusal: type[ValueError] = NotAReport) -> Any:
    """Return what JSON says. Raises ``refusal`` with a sentence where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refusal(f"it is not JSON ({error})") from None


def format_of(content: Any) -> str:
    """Return what a saved file's content says that it is; empty for anything that is not one."""
    return str(content.get("format", "")) if isinstance(content, dict) else ""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` through a temporary file beside it: readers see the old file or the new, whole.

    A link is followed; a device or a pipe, which nothing can replace, is written to.
    """
    path, data = path.resolve(), content.encode("utf-8") if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
