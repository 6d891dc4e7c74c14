"""Show a saved report, trace or memory snapshot again, or the code of a pattern to copy.

memlab show REPORT.json            what run --json or trace --json saved, without measuring
memlab show SNAPSHOT.pickle        a memory snapshot, whoever wrote it
memlab show pattern                the known patterns of growth, and the arm that shows each cure
memlab show pattern NAME[:ARM]     the code of an experiment's arm, plain PyTorch, ready to run

A file called pattern is shown as ./pattern.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from memlab import options
from memlab.commands import HOLDS, NOT_ALL_HOLD, _snapshots, add_way, way
from memlab.options import Wrong

PATTERN = "pattern"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "report", metavar="REPORT", help="a file that --json or --snapshot has saved; or the word pattern"
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="after pattern: an experiment, experiment:arm, or pattern"
    )
    parser.add_argument("--copy", metavar="FILE", help="write the pattern's code to this new file")
    _snapshots.add_options(parser)
    add_way(parser)


def command(given: argparse.Namespace) -> int:
    if given.report == PATTERN:
        return _pattern(given)
    if given.name is not None or given.copy is not None:
        raise Wrong(f"NAME and --copy belong to memlab show {PATTERN} NAME; a report is shown by its file alone")
    return _file(given, Path(given.report))


def _file(given: argparse.Namespace, path: Path) -> int:
    from memlab import report
    from memlab.tracing import trace

    try:
        if _snapshots.is_one(path):
            return _snapshots.show(given, path)
        if given.replay or given.card:
            raise Wrong(f"{path} is no memory snapshot; --replay and --card are for those")
        show = way(given, sys.stdout)
        with options.wrong(f"cannot show {path}"):
            content = report.parsed(report.read_text(path))
            if report.format_of(content) == trace.FORMAT:
                from memlab.show import _trace

                _trace.show(trace.Trace.from_content(content), sys.stdout, given.show)
                return HOLDS
            found = report.Report.from_content(content)
    except OSError as error:
        raise Wrong(f"cannot read {path}: {error.strerror}; memlab run --json saves reports") from None
    show(found, sys.stdout)
    return HOLDS if found.holds else NOT_ALL_HOLD


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
