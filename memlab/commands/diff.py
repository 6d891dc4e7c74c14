"""Compare two traces, or two steps: which lines of code save more, less, or for the first time.

memlab diff before.json after.json       what was saved at the peak of each, and which names hold more
memlab diff run.json@10 run.json@100     what was saved at the ends of two steps
"""

from __future__ import annotations

import argparse
import sys

from memlab import options
from memlab.commands import HOLDS, NOT_ALL_HOLD
from memlab.options import Wrong
from memlab.units import parse_size


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", metavar="BEFORE", help="a file that trace --json has saved, or FILE@STEP")
    parser.add_argument("after", metavar="AFTER", help="another one")
    parser.add_argument("--limit", metavar="SIZE", help="exit with 1 if more than this is added, such as '1 MiB'")


def command(given: argparse.Namespace) -> int:
    from memlab.show import _diff
    from memlab.tracing import compare

    with options.wrong("--limit"):
        limit = None if given.limit is None else parse_size(given.limit)
    sides = []
    for name in (given.before, given.after):
        try:
            with options.wrong(f"cannot compare {name}"):
                sides.append(compare.read(name))
        except OSError as error:
            raise Wrong(f"cannot read {name}: {error.strerror}; memlab trace --json saves traces") from None
    found = compare.compare(*sides)
    _diff.show(found, sys.stdout, limit)
    return NOT_ALL_HOLD if limit is not None and found.bytes > limit else HOLDS
