"""Run a script or a module under memlab: what it saves, whether it grows, and who holds it.

memlab trace train.py --its --args
memlab trace -m package.train --its --args

The script runs unchanged: its output, its exit code and its tracebacks are its own. The report comes on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from memlab import commands, options
from memlab.commands import Interrupted
from memlab.options import Wrong

if TYPE_CHECKING:
    from memlab.cards import Card
    from memlab.tracing.script import Script
    from memlab.tracing.trace import Trace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "memlab trace [options] SCRIPT|-m MODULE [its arguments]"
    parser.add_argument("--steps", metavar="N", help="stop after this many steps, with exit code 0")
    parser.add_argument("--step-at", metavar="FILE:LINE", help="a step ends whenever this line is about to run")
    parser.add_argument("--card", metavar="CARD", help="a simulated card: '8 GiB', rtx4090, FILE.json")
    parser.add_argument("--json", metavar="OUT", help="save the trace here, for memlab show and memlab diff")
    parser.add_argument(
        "-m", dest="module", metavar="MODULE", nargs=argparse.REMAINDER, help="a module, and its arguments"
    )
    parser.add_argument("script", metavar="SCRIPT", nargs=argparse.REMAINDER, help="a script, and its arguments")


def command(given: argparse.Namespace) -> int:
    from memlab.tracing import script as running

    target = _target(given)
    steps = None if given.steps is None else options.number("--steps", given.steps, 1, 10**12)
    card, at = options.card(given.card), _place(given.step_at)
    if given.json == options.STDOUT:
        raise Wrong("--json -: stdout belongs to the script; name a file")
    destination = options.destination(given.json)
    running.prepare_path(target)
    with options.wrong():
        found = target.find()
    if card is not None and card.usable != card.total:
        commands.tell(card.describe())
    commands.give_streams_back()
    return _run(target, found, (card, at, steps), destination)


def _target(given: argparse.Namespace) -> Script:
    from memlab.tracing.script import Script

    if given.module is not None:
        if not given.module:
            raise Wrong("-m takes a module and its arguments")
        return Script(given.module[0], tuple(given.module[1:]), module=True)
    named = [each for each in given.script if each != "--"][:1] and given.script[given.script[0] == "--" :]
    if not named:
        raise Wrong("name a script to run, or a module with -m; see memlab trace --help")
    return Script(named[0], tuple(named[1:]))


def _place(text: str | None) -> tuple[Path, int] | None:
    from memlab.tracing import code_lines

    if text is None:
        return None
    file, _, line = text.rpartition(":")
    if not file or not Path(file).is_file():
        raise Wrong(f"--step-at takes a file that is there and a line, such as train.py:37, not {text!r}")
    path, number = Path(file).resolve(), options.number("--step-at", line, 1, 10**9)
    with options.wrong(f"--step-at {text}"):
        code_lines.check(path, number)
    return path, number


def _run(
    target: Script, found: object, how: tuple[Card | None, tuple[Path, int] | None, int | None], path: Path | None
) -> int:
    from memlab import doctor
    from memlab.show import _trace_live
    from memlab.tracing import script as running
    from memlab.tracing import tracebacks
    from memlab.tracing.recorder import Recorder

    card, at, steps = how
    with _trace_live.watching(sys.stderr) as seen, Recorder(card=card, at=at, stop_after=steps, seen=seen) as recorder:
        ended = running.run(target, found)  # type: ignore[arg-type]
    code = running.exit_code(ended)
    if ended is not None:
        tracebacks.hide_ourselves(ended)
    try:
        if recorder.here:
            command = [target.target, *target.arguments]
            _report(recorder.finish(ended, doctor.machine("cpu"), command, code), path)
    finally:
        running.last_words(ended)
    if isinstance(ended, KeyboardInterrupt):
        raise Interrupted
    return code


def _report(trace: Trace, path: Path | None) -> None:
    from memlab.show import _trace

    with contextlib.suppress(OSError, ValueError, AttributeError):  # of a script's stdout Python itself will complain
        sys.stdout.flush()
    try:
        _save(trace, path)
    finally:  # a full disk must not take the findings with it
        _trace.show(trace, sys.stderr)


def _save(trace: Trace, path: Path | None) -> None:
    if path is not None:
        try:
            trace.save(path)
        except OSError as error:
            raise Wrong(f"--json {path}: cannot write it: {error.strerror}") from None
