"""Show a saved report, trace, prediction or memory snapshot again, or the code of a pattern to copy.

memlab show REPORT.json            what run, trace or predict --json saved, without measuring
memlab show SNAPSHOT.pickle        a memory snapshot, whoever wrote it
memlab show pattern                the known patterns of growth, and the arm that shows each cure
memlab show pattern NAME[:ARM]     the code of an experiment's arm, plain PyTorch, ready to run

A file called pattern is shown as ./pattern.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlab import options
from memlab import show as showing
from memlab.commands import HOLDS, NOT_ALL_HOLD, _snapshots, add_way, check_way, way
from memlab.options import Wrong

PATTERN = "pattern"
WAYS = ("json", "plain", "table")  # of a trace and a prediction; the latter two are one

if TYPE_CHECKING:
    from memlab.prediction import Prediction
    from memlab.tracing.trace import Trace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "report", metavar="REPORT", help="a file that --json or --snapshot has saved; or the word pattern"
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="after pattern: an experiment, experiment:arm, or pattern"
    )
    parser.add_argument("--copy", metavar="FILE", help="write the pattern's code to this new file")
    _snapshots.add_options(parser)
    add_way(parser, "; html of a snapshot")


def command(given: argparse.Namespace) -> int:
    if given.report == PATTERN:
        return _pattern(given)
    if given.name is not None or given.copy is not None:
        raise Wrong(f"NAME and --copy belong to memlab show {PATTERN} NAME; a report is shown by its file alone")
    return _file(given, Path(given.report))


def _file(given: argparse.Namespace, path: Path) -> int:
    from memlab import prediction, report
    from memlab.tracing import trace

    try:
        if _snapshots.is_one(path):
            return _snapshots.show(given, path)
        if given.replay or given.card:
            raise Wrong(f"{path} is no memory snapshot; --replay and --card are for those")
        with options.wrong(f"cannot show {path}"):
            content = _content(report.read_text(path))
            if report.format_of(content) == trace.FORMAT:
                return _trace(given, trace.Trace.from_content(content))
            if report.format_of(content) == prediction.FORMAT:
                return _prediction(given, prediction.Prediction.from_content(content))
            found = report.Report.from_content(content)
        if given.show in _snapshots.WAYS:
            check_way(given, "a report", showing.ways())
        show = way(given, sys.stdout)
    except OSError as error:
        raise Wrong(f"cannot read {path}: {error.strerror}; memlab run --json saves reports") from None
    show(found, sys.stdout)
    return HOLDS if found.holds else NOT_ALL_HOLD


def _content(text: str) -> Any:
    """Return what JSON says. Raises ValueError with a sentence for what is none, and not meant to be."""
    from memlab import report

    if not text.strip():
        raise ValueError("it is empty")
    if text.lstrip()[0] not in "{[":
        raise ValueError("it is not JSON, as memlab saves it, nor a pickle of protocol 2 or later, as torch does")
    return report.parsed(text)


def _trace(given: argparse.Namespace, found: Trace) -> int:
    from memlab.show import _trace

    check_way(given, "a trace", WAYS)
    _trace.show(found, sys.stdout, given.show)
    return HOLDS


def _prediction(given: argparse.Namespace, found: Prediction) -> int:
    from memlab.show import _prediction

    check_way(given, "a prediction", WAYS)
    if given.show == "json":
        sys.stdout.write(found.to_json())
    else:
        _prediction.show(found, sys.stdout)
    return HOLDS if found.fits else NOT_ALL_HOLD


def _pattern(given: argparse.Namespace) -> int:
    from memlab import excerpt, patterns
    from memlab.show import _patterns

    if given.name is None:
        _patterns.show(patterns.KNOWN, sys.stdout)
        return HOLDS
    with options.wrong():
        code = excerpt.excerpt(given.name)
    if given.copy is None:
        sys.stdout.write(code)
        return HOLDS
    path = options.destination(given.copy, "--copy")
    if path is None or path.exists():
        raise Wrong(f"--copy {given.copy}: that file is there already and stays as it is; name a new one")
    from memlab.report import write_atomically

    try:
        write_atomically(path, code)
    except OSError as error:
        raise Wrong(f"--copy {path}: cannot write it: {error.strerror}") from None
    sys.stdout.write(f"{path}\n")
    return HOLDS
