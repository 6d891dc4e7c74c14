"""Show a saved report again, without measuring; or a memory snapshot, whoever wrote it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from memlab import options
from memlab.commands import HOLDS, NOT_ALL_HOLD, _snapshots, add_way, way
from memlab.options import Wrong


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "report", metavar="REPORT", help="a file that run --json has saved, or a memory snapshot (also: --show html)"
    )
    _snapshots.add_options(parser)
    add_way(parser)


def command(given: argparse.Namespace) -> int:
    from memlab import report

    path = Path(given.report)
    try:
        if _snapshots.is_one(path):
            return _snapshots.show(given, path)
        show = way(given, sys.stdout)
        with options.wrong(f"cannot show {path}"):
            found = report.load(path)
    except OSError as error:
        raise Wrong(f"cannot read {path}: {error.strerror}; memlab run --json saves reports") from None
    if given.replay or given.card:
        raise Wrong(f"{path} is a report; --replay and --card are for memory snapshots")
    show(found, sys.stdout)
    return HOLDS if found.holds else NOT_ALL_HOLD
