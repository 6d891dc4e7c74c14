"""Progress while arms are measured, for a person at a terminal; nothing at all for a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from memlab.show._card import bar
from memlab.show._columns import cells, padded
from memlab.show._terminal import given_back
from memlab.show._words import clean, curve
from memlab.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from memlab.job import Job
    from memlab.report import Finding


LEAST_BAR = 4  # characters; a shorter bar says nothing


class View:
    """What is known while measuring; shows nothing but what arms print."""

    def say(self, text: str) -> None:
        """Say what is going on now."""

    def begin(self, jobs: Sequence[Job]) -> None:
        """Say which arms there are."""

    def row(self, job: Job, row: dict[str, int]) -> None:
        """Take a row of an arm that runs."""

    def text(self, job: Job, text: str) -> None:
        """Pass on what an arm prints."""
        sys.stderr.write(text)

    def finding(self, job: Job, finding: Finding) -> None:
        """Take the finding of an arm that has ended."""


@contextmanager
def watching(err: TextIO) -> Iterator[View]:
    """Yield a view that draws on ``err`` if a person looks at it, and cleans up behind itself."""
    if not err.isatty():
        yield View()
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=err, markup=False, highlight=False, emoji=False)
    picture = _Picture()
    with Live(picture, console=console, transient=True, refresh_per_second=10) as live, given_back(live.stop):
        yield picture


@dataclass
class _Running:
    """An arm that runs: its last row, and what the card held at each row seen."""

    simulated: bool
    row: dict[str, int] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    died: int | None = None

    @property
    def card(self) -> int:
        return self.row.get("card", 0)

    def take(self, row: dict[str, int]) -> None:
        self.row = row
        self.steps.append(row.get("step", 0))
        self.held.append(row.get("base_allocated", 0) + row.get("allocated", 0))

    def line(self, name: str, width: int) -> str:
        """Return the line of this arm; bar and curve share what the numbers leave of ``width``, or are left out."""
        numbers = f"{format_bytes(self.held[-1]):>11}  {self._done():<10}"
        each = f"  {self._each():<16}"
        left = width - cells(name + numbers)
        if left < len(each) + 2 * LEAST_BAR + 4:
            each = ""
        room = min(24, (left - len(each) - 4) // 2)
        if room < LEAST_BAR:
            return f"{name}{numbers}"
        part, whole = (self.held[-1], self.card) if self.card else (self.row.get("step", 0), self.row.get("steps", 0))
        drawn = bar(part, whole, room) if whole else ""
        return f"{name}  {drawn}{numbers}{each}  {curve(self.held, self.card, room)}"

    def _done(self) -> str:
        if self.died is not None:
            return f"died at {self.died}"
        step, steps = self.row.get("step", 0), self.row.get("steps", 0)
        return f"step {step}/{steps}" if steps and not self.card else f"step {step}"

    def _each(self) -> str:
        if len(self.steps) < 2 or self.steps[-1] == self.steps[-2] or self.held[-1] == self.held[-2]:
            return ""
        added = (self.held[-1] - self.held[-2]) // (self.steps[-1] - self.steps[-2])
        return f"{'+' if added > 0 else ''}{format_bytes(added)}/step"


class _Picture(View):
    """Draws one line for each arm that runs, and keeps those that died on a card."""

    def __init__(self) -> None:
        from rich.spinner import Spinner

        self.spinner = Spinner("dots")
        self.jobs = self.ended = 0
        self.several = False
        self.running: dict[str, _Running] = {}

    def say(self, text: str) -> None:
        self.spinner.update(text=text)

    def begin(self, jobs: Sequence[Job]) -> None:
        self.jobs = len(jobs)
        self.several = len({job.path for job in jobs}) > 1
        self._count()

    def row(self, job: Job, row: dict[str, int]) -> None:
        self.running.setdefault(self._name(job), _Running(job.device == "cpu")).take(row)

    def finding(self, job: Job, finding: Finding) -> None:
        arm = self.running.pop(self._name(job), None)
        if arm is not None and finding.died is not None:
            arm.died = finding.died
            self.running[self._name(job)] = arm
        self.ended += 1
        self._count()

    def _count(self) -> None:
        self.say(f"{self.ended} of {self.jobs} arms measured")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield self.spinner
        running = dict(self.running)
        cards = {
            f"{format_bytes(arm.card)}{' (simulated)' if arm.simulated else ''}" for arm in running.values() if arm.card
        }
        if cards:
            yield Text(f"card: {', '.join(sorted(cards))}", no_wrap=True, overflow="ellipsis")
        width = max(map(cells, running), default=0)
        for name, arm in running.items():
            yield Text(arm.line(padded(name, width), options.max_width), no_wrap=True, overflow="ellipsis")

    def _name(self, job: Job) -> str:
        return clean(f"{job.path.stem}:{job.arm}" if self.several else job.arm)
