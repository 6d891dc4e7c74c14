"""An explanation in words: what a tensor keeps, who holds it, what to do; for terminals, notebooks and logs."""

from __future__ import annotations

import html as escaping
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from memlab.show import _card, _owners
from memlab.show._columns import width_of
from memlab.show._pages import BAD, FAINT, HEADING, INSET, Text, folded, groups, write
from memlab.show._words import clean
from memlab.tracing.explanation import Explanation
from memlab.tracing.trace import OUTSIDE
from memlab.units import format_bytes

WIDTH = 100
TOP = 5
UNKNOWN = "unknown"
# Notebooks give a pre in their outputs the font of their prose, and break its lines.
PAGE = "white-space:pre;overflow-x:auto;line-height:1.3;font-family:Menlo,'DejaVu Sans Mono',Consolas,monospace"


def lines(found: Explanation, width: int | None) -> Iterator[Text]:
    """Yield the explanation of one tensor."""
    yield from folded(clean(found.what), width, HEADING)
    reached = f"in a graph of {found.nodes:,} node{'' if found.nodes == 1 else 's'}"
    yield from folded(f"keeps {format_bytes(found.moment.saved)} for backward, {reached}", width)
    yield from _groups(found, ("module", "line", "node", "class"), width)
    yield from _unseen(found, width)
    yield from _held(found, width)


def _groups(found: Explanation, kinds: tuple[str, ...], width: int | None) -> Iterator[Text]:
    for what in kinds:
        sizes = found.moment.by(what)
        if sizes and not (what in ("module", "line") and len(sizes) == 1 and not _tells(sizes)):
            yield from groups(f"by {what}", sizes, width, TOP)


def _tells(sizes: Mapping[str, int]) -> bool:
    return next(iter(sizes)) not in (UNKNOWN, OUTSIDE)


def _unseen(found: Explanation, width: int | None) -> Iterator[Text]:
    if found.unseen:
        names = ", ".join(f"{clean(name)} ({count})" for name, count in found.unseen.items())
        verb = "keeps" if sum(found.unseen.values()) == 1 else "keep"
        yield from folded(f"  not seen: what {names} {verb}", width, FAINT)


def _held(found: Explanation, width: int | None) -> Iterator[Text]:
    yield Text("")
    if found.owners:
        yield Text("held by", HEADING)
        yield from _owners.owners(found.owners, width, oom=bool(found.error))
    else:
        yield from folded("held by nothing that Python code can see", width)


def show_oom(found: Explanation, out: TextIO) -> None:
    """Write what is known at an OutOfMemoryError."""
    write(oom_lines(found, width_of(out)), out)


def oom_lines(found: Explanation, width: int | None) -> Iterator[Text]:
    """Yield what filled the memory, by class and by line, and who holds it."""
    yield from folded("memlab: out of memory", width, BAD)
    yield from folded(_card.first_sentences(found.error), width, inset=INSET)
    for device, nbytes in found.devices.items():
        yield from folded(f"{device}: {format_bytes(nbytes)} allocated by torch", width, inset=INSET)
    kept = f"{format_bytes(found.moment.saved)} saved for backward"
    live = f"{format_bytes(found.moment.live)} in all tensors that Python code can reach"
    yield from folded(f"{kept}, {live}", width, inset=INSET)
    yield from groups("filled by", found.moment.classes, width, TOP)
    yield from _groups(found, ("module", "line", "node"), width)
    yield from _held(found, width)
    if not _tells(found.moment.by("line") or {UNKNOWN: 0}):
        yield from folded("  source lines are known under memlab.watch(births=True) or memlab trace", width, FAINT)


def rich(found: Explanation) -> Any:
    """Return what rich prints, folded to its console."""
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text as Rich

    class Page:
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for line in lines(found, options.max_width):
                yield Rich(line.text, line.style, no_wrap=True, overflow="ellipsis")

    return Page()


def html(found: Explanation) -> str:
    """Return the explanation for a notebook."""
    styles = {HEADING: "font-weight:bold", FAINT: "opacity:0.6", BAD: "font-weight:bold;color:#c00"}
    spans = [
        f'<span style="{styles[line.style]}">{escaping.escape(line.text)}</span>'
        if line.style in styles
        else escaping.escape(line.text)
        for line in lines(found, WIDTH)
    ]
    return f'<pre style="{PAGE}">{chr(10).join(spans)}</pre>'
