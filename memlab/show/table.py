"""Tables for people, fitted to the width of the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

from rich.table import Table
from rich.text import Text

from memlab.report import FAILED, HOLDS, REFUTED, SKIPPED, STATUSES, Finding, Report
from memlab.show import _card, _reconcile, _words
from memlab.show._columns import Block, align, cells, cut, fold
from memlab.show._details import blocks
from memlab.show._pages import console as console_for

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {HOLDS: "green", REFUTED: "bold red", SKIPPED: "yellow", FAILED: "bold red"}
GAP = 2
SPARKS = "▁▂▃▄▅▆▇█"
LEAST_TITLE = 24  # fewer characters of a title say nothing


@dataclass(frozen=True)
class Column:
    """A column: two lines of heading, and one cell for each arm."""

    head: tuple[str, str]
    cells: list[str]
    right: bool = False

    @property
    def width(self) -> int:
        return max(map(cells, (*self.head, *self.cells)))


Layout = Callable[[list[Finding]], list[Column]]


def show(report: Report, out: TextIO) -> None:
    """Write a table for each experiment, then reasons, notes and the count of verdicts."""
    console = console_for(out)
    for name, findings in report.by_experiment():
        _experiment(console, name, findings)
    if where := _reconcile.block(report.findings):
        _block(console, where)
    _overview(console, report)
    notes = _words.notes(report)
    if notes:
        console.print()
    for note in notes:
        _folded(console, note, "dim")
    console.print()
    _folded(console, _words.summary(report), "bold green" if report.holds else "bold red")
    _folded(console, _words.machine(report), "dim")


def _experiment(console: Console, name: str, findings: list[Finding]) -> None:
    console.print()
    console.print(Text(_words.clean(name), "bold"), no_wrap=True, overflow="ellipsis")
    _folded(console, _words.clean(findings[0].claim), "")
    console.print()
    layout, columns = fitting(findings, console.width)
    if _total(columns) <= console.width:
        console.print(_table(columns, findings))
    else:
        _list(console, columns, findings)
    for line in _legend(layout, columns):
        _folded(console, line, "dim")
    for block in blocks(findings, console.width):
        _block(console, block)


def _block(console: Console, block: Block) -> None:
    console.print()
    _folded(console, block.heading, STYLES.get(block.status, "bold"))
    for line in block.below(console.width):
        console.print(Text(line), no_wrap=True, overflow="ellipsis")


def _overview(console: Console, report: Report) -> None:
    """Print one line for each of several experiments: the last lines are the ones that are read."""
    experiments = list(report.by_experiment())
    if len(experiments) > 1:
        console.print()
        worst = [max((each.status for each in findings), key=STATUSES.index) for _, findings in experiments]
        rows = [
            (f"{_words.MARKS[status]} {_words.clean(name)}", _words.counts(findings))
            for status, (name, findings) in zip(worst, experiments, strict=True)
        ]
        for line, status in zip(align(rows), worst, strict=True):
            console.print(Text(line, STYLES[status]), no_wrap=True, overflow="ellipsis")


def fitting(findings: list[Finding], width: int) -> tuple[Layout, list[Column]]:
    """Return the fullest layout that fits into ``width`` cells, and its columns; `_merged` where none does."""
    for layout in (_full, _short, _merged, _bare):
        columns = layout(findings)
        if _total(columns) <= width:
            break
    else:
        return _merged, _merged(findings)
    left = width - _total(columns) - GAP
    if layout is _full and left >= LEAST_TITLE:
        columns.insert(1, Column(("", ""), [cut(_words.clean(each.title), left) for each in findings]))
    return layout, columns


def _legend(layout: Layout, columns: list[Column]) -> list[str]:
    """Explain what the cells of a short layout leave out."""
    told = [cell for column in columns for cell in column.cells]
    lines = []
    if layout is not _full and any(cell.startswith("+") for cell in told):
        lines.append("+ is what each step adds; a size without + is the same at every step")
    if layout in (_short, _merged) and any(cell[0] in SPARKS for cell in told):
        lines.append(f"{SPARKS[0]}{SPARKS[-1]} rises and falls over the steps, up to the size beside it")
    if layout is _merged:
        lines.append("sizes are as measured, and as expected where nothing else is said")
    return lines


def _full(findings: list[Finding], style: str = _words.FULL) -> list[Column]:
    told = [_words.cells(each, style) for each in findings]

    def column(name: str, word: str, pick: Callable[[_words.Cells], str]) -> Column:
        return Column((name, word), [pick(each) for each in told], right=True)

    return [
        Column(("", "arm"), [each.arm for each in told]),
        column("saved", "expected", lambda each: each.saved[0]),
        column("saved", _words.how(findings, "saved"), lambda each: each.saved[1]),
        column("allocated", "expected", lambda each: each.allocated[0]),
        column("allocated", _words.how(findings, "allocated"), lambda each: each.allocated[1]),
        *_steps(findings),
        Column(("", "verdict"), [each.verdict for each in told]),
    ]


def _short(findings: list[Finding]) -> list[Column]:
    return _full(findings, _words.SHORT)


def _merged(findings: list[Finding]) -> list[Column]:
    """Say the expected value only where the measured one is another."""
    told = [_words.cells(each, _words.SHORT) for each in findings]
    saved, allocated = _words.how(findings, "saved"), _words.how(findings, "allocated")
    return [
        Column(("", "arm"), [each.arm for each in told]),
        Column(("saved", saved), [_differing(*each.saved) for each in told], right=True),
        Column(("allocated", allocated), [_differing(*each.allocated) for each in told], right=True),
        *_steps(findings),
        Column(("", "verdict"), [each.verdict for each in told]),
    ]


def _bare(findings: list[Finding]) -> list[Column]:
    """Say measured sizes alone; what was expected instead stands with the reasons below."""
    told = [_words.cells(each, _words.BARE) for each in findings]
    columns = _merged(findings)
    columns[1] = replace(columns[1], cells=[each.saved[1] for each in told])
    columns[2] = replace(columns[2], cells=[each.allocated[1] for each in told])
    return columns


def _differing(expected: str, measured: str) -> str:
    return measured if measured == expected else f"{measured}, not {expected}"


def _steps(findings: list[Finding]) -> list[Column]:
    if not _card.fills(findings):
        return []
    return [Column(("", "steps"), [_card.survived(each) for each in findings], right=True)]


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def _table(columns: list[Column], findings: list[Finding]) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        head = "\n".join(column.head)
        table.add_column(head, justify="right" if column.right else "left", no_wrap=True, overflow="ellipsis")
    for index, finding in enumerate(findings):
        row = [Text(column.cells[index]) for column in columns]
        row[-1].stylize(STYLES[finding.status])
        table.add_row(*row)
    return table


def _list(console: Console, columns: list[Column], findings: list[Finding]) -> None:
    """Print the cells of each arm below its name, where no table fits."""
    arms, *numbers, verdicts = columns
    for index, finding in enumerate(findings):
        _folded(console, f"{arms.cells[index]}  {verdicts.cells[index]}", STYLES[finding.status])
        rows = [(" ".join(filter(None, each.head)), each.cells[index]) for each in numbers]
        for line in align(rows, width=console.width - GAP):
            console.print(Text(" " * GAP + line), no_wrap=True)


def _folded(console: Console, text: str, style: str) -> None:
    for line in fold(text, console.width):
        console.print(Text(line, style), no_wrap=True)
