"""Why an arm does not hold: the sentence, and what was expected beside what was measured."""

from __future__ import annotations

from memlab.report import FAILED, HOLDS, REFUTED, SKIPPED, Finding
from memlab.show._columns import Block
from memlab.show._words import MARKS, SIMULATED, clean, expected, measured
from memlab.units import format_exact

_VERBS = {REFUTED: "is refuted: ", SKIPPED: "was skipped: ", FAILED: ""}  # a failure's reason is a whole phrase


def blocks(findings: list[Finding]) -> list[Block]:
    """Return a block for each reason: the sentence, and of a refuted arm its bill beside what was measured."""
    said: dict[tuple[str, str], list[Finding]] = {}
    for index, finding in enumerate(findings):
        if finding.status != HOLDS:
            alone = str(index) if finding.status == REFUTED else ""
            said.setdefault((finding.status + alone, finding.reason), []).append(finding)
    return [Block(sentence(each), beside(each[0]), right=(1, 2), status=each[0].status) for each in said.values()]


def sentence(findings: list[Finding]) -> str:
    """Say which arms, their verdict and the reason that they share."""
    one, why = findings[0], clean(findings[0].reason) or "no reason was given"
    names = clean(one.name)
    if len(findings) > 1:
        names += f" and {len(findings) - 1} more"
    verb = _VERBS[one.status] if len(findings) == 1 else _VERBS[one.status].replace("was", "were")
    return f"{MARKS[one.status]} {names} {verb}{why}"


def beside(finding: Finding) -> list[tuple[str, ...]]:
    """Return the expected bill of the last step, itemised, with the measured bytes beside it, if these differ."""
    if not finding.expected or all(expected(finding, each) == measured(finding, each) for each in finding.bill):
        return []
    rows: list[tuple[str, ...]] = [(f"at step {len(finding.expected)}", "expected", "measured")]
    for column, lines in finding.bill.items():
        rows += _bill(finding, column, lines)
    return rows


def _bill(finding: Finding, column: str, lines: dict[str, list[int]]) -> list[tuple[str, ...]]:
    total, found = finding.expected[-1].get(column, 0), measured(finding, column)
    name = f"{column} ({SIMULATED})" if finding.sources.get(column) == SIMULATED else column
    rows = [(name, format_exact(total), format_exact(found[-1]) if found else "-")]
    rows += [(f"  {clean(what)}", _times(count, each), "") for what, (count, each) in lines.items()]
    exact = sum(count * each for count, each in lines.values())
    return [*rows, ("  rounding up to 512 B each", format_exact(total - exact), "")] if total != exact else [*rows]


def _times(count: int, each: int) -> str:
    return format_exact(each) if count == 1 else f"{count} x {format_exact(each)}"
