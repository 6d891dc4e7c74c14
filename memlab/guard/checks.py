"""The fixture ``memlab``: watch, growth, and checks against the committed baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from memlab.guard import baseline, bill
from memlab.guard.baseline import Key, Measured
from memlab.guard.record import Record
from memlab.units import format_exact, parse_size

if TYPE_CHECKING:
    from memlab.allocator import Allocator
    from memlab.watching import Growth, Watch

_MOST = 12  # lines of a bill's difference that are told


class Memlab:
    """What a test gets from the fixture ``memlab``."""

    def __init__(self, item: pytest.Item, record: Record, *, update: bool, strict: bool) -> None:
        self._item, self._record = item, record
        self._update, self._strict = update, strict
        self._path = baseline.path_of(item.path)
        self._root = item.config.rootpath

    def watch(self, card: str | int | Allocator | None = None) -> Watch:
        """Return `memlab.watch`, which also remembers what its peaks were made of."""
        from memlab.watching import watch

        return watch(card, keep_peak=True)

    def growth(self, step: Callable[[], object], steps: int = 10, warmup: int = 3) -> Growth:
        """Return `memlab.growth` of ``step``."""
        from memlab.watching import growth

        return growth(step, steps, warmup)

    def check(self, seen: Watch, name: str = "memory", within: str | int = 0) -> None:
        """Fail unless ``seen`` costs what the committed baseline says, to the byte or ``within`` a size.

        Compared are the peak of the bytes saved for backward and the peak of the tensor storages created. Less than the
        baseline fails, too: else the gain could be lost unseen. With ``--memlab-update`` it is recorded instead.

        Args:
            seen: a watch, open or closed.
            name: tells several checks of one test apart.
            within: tolerance, such as ``"1 KiB"``.

        Raises:
            ValueError: a name that is no text, or a tolerance that cannot be read.
            TypeError: ``seen`` is no watch.
        """
        __tracebackhide__ = True
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"a check's name is a text such as 'forward', not {name!r}")
        tolerance = parse_size(within)
        measured = _measure(seen, self._root)
        self._record.notes.extend(each for each in seen.blind if each not in self._record.notes)
        key = (test_of(self._item.nodeid), name, _device(seen), _torch())
        told = {"name": name, "key": list(key), "measured": measured.to_json()}
        if self._update:
            self._remember({**told, "outcome": "recorded"})
            return
        outcome, text = self._compare(key, measured, tolerance)
        self._remember({**told, "outcome": outcome})
        if outcome == "not checked":
            self._record.not_checked.append(f"check {name!r}: {text}")
        if outcome == "failed" or (outcome == "not checked" and self._strict):
            pytest.fail(f"check {name!r}: {text}", pytrace=False)

    def _remember(self, told: dict[str, Any]) -> None:
        known = [each for each in self._record.checks if each["key"] == told["key"]]
        if not known:
            self._record.checks.append(told)
        elif told["outcome"] == "failed":
            known[0].update(told)

    def _compare(self, key: Key, measured: Measured, tolerance: int) -> tuple[str, str]:
        try:
            held = baseline.load(self._path)
        except baseline.NotABaseline as error:
            self._record.wrong_use = True
            return "failed", str(error)
        if key in held:
            text = difference(held[key], measured, tolerance)
            return ("failed", f"{text}\n  to accept it: {self._command()}") if text else ("passed", "")
        others = sorted(version for *rest, version in held if tuple(rest) == key[:3])
        where = f"{baseline.FOLDER}/{self._path.name}"
        if others:
            return "not checked", (
                f"the baseline is for torch {' and '.join(others)}, this is torch {key[3]}; add one: {self._command()}"
            )
        devices = sorted({device for *rest, device, _ in held if tuple(rest) == key[:2]})
        there = f" for {key[2]} (there is one for {' and '.join(devices)})" if devices else ""
        return "failed", f"there is no baseline{there} in {where}; make it and commit the file:\n    {self._command()}"

    def _command(self) -> str:
        nodeid = self._item.nodeid
        quoted = f'"{nodeid}"' if set(nodeid) & set(" []$*") else nodeid
        return f"pytest {quoted} --memlab-update"


def test_of(nodeid: str) -> str:
    """Return a test's id within its module."""
    return nodeid.partition("::")[2] or nodeid


def _measure(seen: Any, root: Path) -> Measured:
    from memlab.watching import Watch

    if not isinstance(seen, Watch):
        raise TypeError(f"check() takes what memlab.watch() gave, not {type(seen).__name__}")
    storages = seen.storages.peak if seen.has_storages else None
    return Measured(seen.saved.peak, storages, bill.entries(seen.saved.peak_lines, root))


def _device(seen: Watch) -> str:
    """Return the kind of device where the watch saw tensors, an accelerator's before the CPU's."""
    kinds = seen.saved.ledger.devices()
    if seen.has_storages:
        kinds |= {device.partition(":")[0] for device in seen.storages.by_device()}
    return next((kind for kind in sorted(kinds) if kind not in ("cpu", "meta")), "meta" if kinds == {"meta"} else "cpu")


def _torch() -> str:
    from memlab import versions

    return ".".join(map(str, versions.TORCH))


def difference(before: Measured, now: Measured, tolerance: int = 0) -> str:
    """Say what costs another number of bytes than ``before``, line by line; nothing where all is within tolerance."""
    pairs = [("saved for backward", before.saved, now.saved)]
    if before.storages is not None and now.storages is not None:
        pairs.append(("of tensor storages", before.storages, now.storages))
    heads = [
        f"{format_exact(new)} {what}, {format_exact(old)} in the baseline ({_signed(new - old)})"
        for what, old, new in pairs
        if abs(new - old) > tolerance
    ]
    if not heads:
        return ""
    if tolerance:
        heads.append(f"that is beyond the tolerance of {format_exact(tolerance)}")
    changes = bill.changes(before.lines, now.lines)
    lines = [f"    {change.told()}" for change in changes[:_MOST]]
    if len(changes) > _MOST:
        lines.append(f"    and {len(changes) - _MOST} more lines")
    if all(new <= old for _, old, new in pairs):
        lines.append("  less than before is told, too: else the gain could be lost unseen")
    return "\n".join([heads[0], *(f"  {head}" for head in heads[1:]), *lines])


def _signed(nbytes: int) -> str:
    return f"{'+' if nbytes > 0 else ''}{format_exact(nbytes)}"
