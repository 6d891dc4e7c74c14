"""Counter tracks for Perfetto and chrome://tracing: Trace Event Format, one process for each arm.

Steps are slices of one millisecond each, for nobody measured how long they took: the axis counts steps. A counter has
its value from the end of a step, where it was measured, to the end of the next. Every counter is in bytes.

    memlab run NAME --perfetto trace.json, then open it at ui.perfetto.dev
"""

from __future__ import annotations

import json
from typing import Any, TextIO

from memlab.report import Finding, Report
from memlab.show._words import SIMULATED, clean, machine

STEP = 1000  # microseconds
TRACKS = ("allocated", "reserved", "allocated_peak", "saved", "saved_peak", "storages", "storages_peak", "nvml_process")
_ABSOLUTE = {"allocated": "allocated", "allocated_peak": "allocated", "reserved": "reserved"}

Event = dict[str, Any]


def show(report: Report, out: TextIO) -> None:
    """Write a JSON object with ``traceEvents``; the machine and what is simulated stand in ``otherData``."""
    events: list[Event] = []
    for pid, finding in enumerate(report.findings, start=1):
        events += _process(pid, finding)
    content = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "machine": machine(report),
            "time": f"{STEP} microseconds are one step, whatever it took",
            "simulated": ", ".join(sorted({name for each in report.findings for name in _simulated(each)})),
        },
    }
    out.write(json.dumps(content, separators=(",", ":")) + "\n")


def _simulated(finding: Finding) -> list[str]:
    return [name for name, source in finding.sources.items() if source == SIMULATED]


def _process(pid: int, finding: Finding) -> list[Event]:
    events = [_meta(pid, "process_name", clean(finding.name)), _meta(pid, "thread_name", "steps")]
    for track in TRACKS:
        base = finding.base.get(_ABSOLUTE.get(track, ""), 0)
        if any(track in row for row in finding.rows):
            if track in _ABSOLUTE:
                events.append(_counter(pid, track, 0, base))
            events += [
                _counter(pid, track, STEP * index, base + row[track])
                for index, row in enumerate(finding.rows, start=1)
                if track in row
            ]
    events += [
        {"name": f"step {row.get('step', index)}", "cat": "step", "ph": "X", "ts": STEP * (index - 1), "dur": STEP}
        | {"pid": pid, "tid": 1, "args": row}
        for index, row in enumerate(finding.rows, start=1)
    ]
    if finding.died is not None:
        at = STEP * (finding.died - 1)
        events.append(
            {"name": "out of memory", "ph": "i", "s": "p", "ts": at, "pid": pid, "tid": 1}
            | {"args": {"text": clean(finding.oom)}}
        )
    return events


def _meta(pid: int, name: str, value: str) -> Event:
    return {"name": name, "ph": "M", "ts": 0, "pid": pid, "tid": 1, "args": {"name": value}}


def _counter(pid: int, track: str, at: int, nbytes: int) -> Event:
    return {"name": track, "cat": "memory", "ph": "C", "ts": at, "pid": pid, "tid": 1, "args": {"bytes": nbytes}}
