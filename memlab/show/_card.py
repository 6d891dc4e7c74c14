"""An experiment that fills a card: how full it is, which step died, what filled it and why."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from memlab.report import Finding
from memlab.show._columns import Block, align
from memlab.show._words import SIMULATED, clean, curve, expected, measured
from memlab.units import format_bytes

WIDTH = 30


def fills(findings: list[Finding]) -> bool:
    """Tell whether a card limits these arms."""
    return any(each.card is not None for each in findings)


def survived(finding: Finding) -> str:
    """Say how many steps an arm survived."""
    return f"died at {finding.died}" if finding.died is not None else str(len(finding.rows) or "-")


def bar(part: int, whole: int, width: int = WIDTH) -> str:
    """Draw how much of ``whole`` is ``part``, in eighths of a character.

    >>> bar(5, 16, 8)
    '██▌░░░░░'
    """
    eighths = min(8 * width, max(0, 8 * part * width // whole)) if whole > 0 else 0
    drawn = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return drawn.ljust(width, "░")


def bar_width(width: int | None) -> int:
    """Return how wide a bar is beside its label: narrower where it would be broken; ``width`` as of `width_of`."""
    return WIDTH if width is None else max(8, min(WIDTH, width - 20))


def allocator(numbers: Mapping[str, int]) -> str:
    """Say what a caching allocator holds beyond the tensors in use; empty where that was not read."""
    if not numbers.keys() >= {"reserved", "active", "inactive_split", "alloc_retries"}:
        return ""
    active, split = format_bytes(numbers["active"]), format_bytes(numbers["inactive_split"])
    tries = numbers["alloc_retries"]
    retries = f"{tries or 'no'} {'retry' if tries == 1 else 'retries'}"
    return f"{format_bytes(numbers['reserved'])} reserved: {active} active, {split} in pieces between; {retries}"


def story(finding: Finding, width: int | None = None) -> Block | None:
    """Tell of the arm that ran out of memory: the step, the filling, torch's own words, and the arithmetic."""
    if finding.died is None or finding.card is None:
        return None
    used = [finding.base.get("allocated", 0) + value for value in measured(finding, "allocated")]
    simulated = f" ({SIMULATED})" if finding.sources.get("allocated") == SIMULATED else ""
    room = bar_width(width)
    told: list[tuple[str, ...]] = [
        ("card", f"{bar(used[-1] if used else 0, finding.card, room)} {format_bytes(finding.card)}{simulated}")
    ]
    if len(used) > 1:
        told.append(
            ("growth", f"{curve(used, finding.card, room)} from {format_bytes(used[0])} to {format_bytes(used[-1])}")
        )
    told += [("filled by" if not index else "", line) for index, line in enumerate(_filled(finding))]
    if finding.held:
        told.append(("held by", clean(finding.held)))
    last = finding.rows[-1] if finding.rows else {}
    if held := allocator({name: value + finding.base.get(name, 0) for name, value in last.items()}):
        told.append(("allocator", f"{held}, after step {finding.died - 1}"))
    told.append(("torch says", first_sentences(finding.oom)))
    told += [("why", why)] if (why := _why(finding)) else []
    return Block(f"{clean(finding.arm)} died at step {finding.died}, {_as_predicted(finding)}", told)


def _as_predicted(finding: Finding) -> str:
    if finding.predicted is None:
        return "which nothing predicted"
    return "as predicted" if finding.died == finding.predicted else f"not at step {finding.predicted}, as predicted"


def _filled(finding: Finding) -> list[str]:
    return align([(format_bytes(nbytes), clean(line)) for line, nbytes in finding.filled.items()], right=(0,))


def _why(finding: Finding) -> str:
    """Divide what the setup leaves of the card by what each step adds."""
    added = {after - before for before, after in pairwise(expected(finding, "allocated"))}
    if finding.card is None or finding.predicted is None or len(added) != 1 or min(added) <= 0:
        return ""
    free, fit = finding.card - finding.base.get("allocated", 0), finding.predicted - 1
    return (
        f"{format_bytes(free)} of the card are free after the setup; each step keeps {format_bytes(added.pop())} more: "
        f"{fit} step{' fits' if fit == 1 else 's fit'}, step {finding.predicted} does not"
    )


def first_sentences(text: str, enough: int = 30) -> str:
    """Return the beginning of torch's text, up to the first full stop after ``enough`` characters."""
    line = clean(text)
    end = line.find(". ", enough)
    return line if end < 0 else line[: end + 1]
