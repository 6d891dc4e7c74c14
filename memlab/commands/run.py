"""Measure experiments: every arm in a process of its own, against its closed form."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from memlab import options, show
from memlab.commands import HOLDS, NOT_ALL_HOLD, add_way, tell, way
from memlab.options import Wrong

if TYPE_CHECKING:
    from memlab.report import Report
    from memlab.show._live import View


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="an experiment, its file, or all")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda if torch can use it, else cpu)")
    parser.add_argument("--card", metavar="SIZE", help="the GPU memory to respect: '64 MiB', rtx4090, FILE.json")
    parser.add_argument("--steps", metavar="N", help="steps of each arm (default: the experiment's own)")
    parser.add_argument("--set", metavar="SIZE=N", action="append", default=[], help="change a size (repeatable)")
    parser.add_argument("--arm", metavar="ARM", action="append", default=[], help="only this arm (repeatable)")
    parser.add_argument("--seed", metavar="N", default="0", help="for torch.manual_seed (default: 0)")
    parser.add_argument("--timeout", metavar="S", default="300", help="seconds that one arm may take (default: 300)")
    parser.add_argument("--json", metavar="OUT", help="save the report here; - is stdout, with nothing else on it")
    parser.add_argument(
        "--snapshot",
        metavar="OUT.pickle",
        help="save what memory_viz and memlab show open; of several arms, OUT.EXPERIMENT.ARM.pickle each",
    )
    parser.add_argument("--perfetto", metavar="OUT", help="save counter tracks here, for ui.perfetto.dev")
    add_way(parser)


def command(given: argparse.Namespace) -> int:
    from memlab.show import _live

    show_report, destination = way(given, sys.stdout), options.destination(given.json)
    tracks = _tracks(given.perfetto)
    timeout = options.number("--timeout", given.timeout, 1, 10**9)
    device = None if given.device is None else options.device(given.device)
    card = options.card(given.card)
    plan = options.Plan(
        arms=options.arms(options.paths(given.names), given.arm),
        card=None if card is None else card.usable,
        steps=None if given.steps is None else options.number("--steps", given.steps, 1, 10**9),
        sizes=options.sizes(given.set),
        seed=options.number("--seed", given.seed, 0, options.LARGEST),
        snapshot=_snapshot(given.snapshot),
    )
    if card is not None and card.usable != card.total:
        tell(card.describe())
    with _live.watching(sys.stderr) as view:
        report = _measure(plan, device, timeout, view)
    try:
        _save(report, destination)
        _save_tracks(report, tracks)
    finally:  # a full disk must not take the findings with it
        (show.way("json") if given.json == options.STDOUT else show_report)(report, sys.stdout)
    return HOLDS if report.holds else NOT_ALL_HOLD


def _snapshot(out: str | None) -> Path | None:
    if out == options.STDOUT:
        raise Wrong("--snapshot -: a snapshot is no text; name a file")
    path = options.destination(out, "--snapshot")
    return path.absolute() if path is not None else None


def _tracks(out: str | None) -> Path | None:
    if out == options.STDOUT:
        raise Wrong("--perfetto -: name a file, or write --show perfetto")
    return options.destination(out, "--perfetto")


def _save_tracks(report: Report, path: Path | None) -> None:
    from memlab.report import write_atomically
    from memlab.show import perfetto

    if path is not None:
        perfetto.show(report, text := io.StringIO())
        try:
            write_atomically(path, text.getvalue())
        except OSError as error:
            raise Wrong(f"--perfetto {path}: cannot write it: {error.strerror}") from None


def _measure(plan: options.Plan, device: str | None, timeout: float, view: View) -> Report:
    """Measure what is planned; torch is looked at in another process, so that no context of ours is on the card."""
    from memlab import doctor, isolate
    from memlab.report import Report

    view.say("loading torch")
    isolate.prepare()
    try:
        device = device or isolate.ask(doctor.best_device)
        machine = isolate.ask(doctor.machine, device)
    except isolate.Lost as error:
        raise Wrong(f"torch does not work here: {error}; see memlab doctor") from None
    jobs = plan.jobs(device)
    with contextlib.suppress(isolate.Lost):  # a file that kills its process says so in its findings
        if complaint := isolate.ask(options.complaint, jobs):
            raise Wrong(complaint)
    view.begin(jobs)
    with options.wrong():
        return Report(machine, isolate.run(jobs, view.row, view.finding, view.text, timeout=timeout))


def _save(report: Report, path: Path | None) -> None:
    if path is not None:
        try:
            report.save(path)
        except OSError as error:
            raise Wrong(f"--json {path}: cannot write it: {error.strerror}") from None
