"""Show a saved report again, without measuring."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from memlab import options
from memlab.commands import HOLDS, NOT_ALL_HOLD, add_way, way
from memlab.options import Wrong


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", metavar="REPORT", help="a file that run --json has saved")
    add_way(parser)


def command(given: argparse.Namespace) -> int:
    from memlab import report

    show, path = way(given, sys.stdout), Path(given.report)
    try:
        with options.wrong(f"cannot show {path}"):
            found = report.load(path)
    except OSError as error:
        raise Wrong(f"cannot read {path}: {error.strerror}; memlab run --json saves reports") from None
    show(found, sys.stdout)
    return HOLDS if found.holds else NOT_ALL_HOLD
