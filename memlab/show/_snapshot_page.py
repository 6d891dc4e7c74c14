"""A memory snapshot as one page of HTML: no network, no script; how full the device was, by source line."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TextIO

from memlab.show._words import clean
from memlab.snapshots.timeline import Timeline
from memlab.units import format_bytes

WIDTH, HEIGHT, LEFT, BELOW = 960, 360, 84, 24
COLORS = ("#4e79a7", "#f28e2c", "#e15759", "#76b7b2", "#59a14f", "#edc949", "#af7aa1", "#ff9da7", "#9c755f", "#bab0ab")
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
       color: #222; background: #fff; }
svg { width: 100%; height: auto; } td { padding: 0 .8rem 0 0; vertical-align: top; overflow-wrap: anywhere; }
td:nth-child(2) { white-space: nowrap; text-align: right; }
i { display: inline-block; width: .8rem; height: .8rem; }
"""


def show(name: str, devices: dict[int, Timeline | str], out: TextIO) -> None:
    """Write a page with a chart for each device; a text instead of a timeline says why there is none."""
    title = escape(clean(name))
    out.write(f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n')
    out.write(f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n")
    for device, told in devices.items():
        out.write(f"<h2>device {device}</h2>\n")
        out.write(f"<p>{escape(clean(told))}</p>\n" if isinstance(told, str) else _chart(told) + _legend(told))
    out.write("</body></html>\n")


def _chart(told: Timeline) -> str:
    top = max([*told.reserved, *told.allocated, 1])

    def x(moment: int) -> float:
        return LEFT + (WIDTH - LEFT) * moment / max(told.events, 1)

    def y(nbytes: int) -> float:
        return HEIGHT - (HEIGHT - 10) * nbytes / top

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT + BELOW}" role="img" font-size="11">']
    for part in range(5):
        level = top * part // 4
        parts.append(f'<path d="M{LEFT} {y(level):.1f}H{WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{format_bytes(level)}</text>')
    below = [0] * len(told.moments)
    for color, (line, values) in zip(COLORS, told.lines.items(), strict=False):
        above = [low + value for low, value in zip(below, values, strict=True)]
        edge = [(x(m), y(v)) for m, v in zip(told.moments, above, strict=True)]
        edge += [(x(m), y(v)) for m, v in zip(reversed(told.moments), reversed(below), strict=True)]
        parts.append(f'<polygon points="{_points(edge)}" fill="{color}"><title>{_name(line)}</title></polygon>')
        below = above
    edge = [(x(m), y(v)) for m, v in zip(told.moments, told.reserved, strict=True)]
    parts.append(f'<polyline points="{_points(edge)}" fill="none" stroke="#222"><title>reserved</title></polyline>')
    for oom in told.ooms[:100]:
        parts.append(f'<path d="M{x(oom):.1f} 10V{HEIGHT}" stroke="#c00" stroke-dasharray="3 3"/>')
    failed = "; a dashed line is a request that failed" if told.ooms else ""
    words = f"{told.events:,} events; the black line is what is reserved{failed}"
    return "\n".join([*parts, f'<text x="{LEFT}" y="{HEIGHT + 16}">{words}</text></svg>\n'])


def _points(edge: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)


def _name(line: str) -> str:
    return escape(clean(line))


def _legend(told: Timeline) -> str:
    """Say what each colour is, and how much it is when the device is fullest."""
    allocated = told.allocated
    peak = allocated.index(max(allocated))
    rows = [
        f'<tr><td><i style="background:{color}"></i></td><td>{format_bytes(values[peak])}</td>'
        f"<td>{_name(line)}</td></tr>"
        for color, (line, values) in zip(COLORS, told.lines.items(), strict=False)
    ]
    full = f"at event {told.moments[peak]:,}: {format_bytes(allocated[peak])} allocated"
    return f"<p>Fullest {full}, {format_bytes(told.reserved[peak])} reserved.</p>\n<table>{''.join(rows)}</table>\n"
