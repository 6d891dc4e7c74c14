"""The subcommands of the command line, one file each: a new file is a new command, and nothing else is edited.

A command's module has a docstring, whose first line is its help; ``add_options(parser)``; and ``command(given)``, which
returns the exit code. Importing it imports neither torch nor rich.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import Protocol, TextIO

from memlab import show as showing  # this package has a module called show
from memlab.options import Wrong, wrong
from memlab.show._columns import fold, width_of

HOLDS, NOT_ALL_HOLD, WRONG_USE, INTERRUPTED, NOBODY_READS = 0, 1, 2, 130, 141


class Interrupted(Exception):
    """A script that ran under memlab was interrupted, and all is said: the process is to end as Python ends it."""


stream_errors: dict[str, str] = {}
"""How stdout and stderr treated characters that they lack, before the command line made them forgiving; empty when they
are not its own any more."""


def give_streams_back() -> None:
    """Let stdout and stderr be as Python had opened them: a script that runs under memlab must not see a difference."""
    for name, errors in stream_errors.items():
        getattr(sys, name).reconfigure(errors=errors)
    stream_errors.clear()


def tell(sentence: str) -> None:
    """Write a sentence to stderr; a terminal gets lines that it need not break within a word."""
    text = f"memlab: {' '.join(sentence.split())}"
    width = width_of(sys.stderr)
    if width is not None:  # a path longer than that stays whole, to be copied
        text = "\n".join(fold(text, width, whole=True))
    print(text, file=sys.stderr)


class Command(Protocol):
    """What a module in this package offers."""

    __doc__: str | None

    def add_options(self, parser: argparse.ArgumentParser) -> None: ...

    def command(self, given: argparse.Namespace) -> int: ...


def commands() -> dict[str, Command]:
    """Return ``{name: command}`` in the order of their names."""
    names = sorted(each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def add_way(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add ``--show``; ``more`` is told of it beside the ways of showing a report."""
    ways = ", ".join(showing.ways())
    parser.add_argument("--show", metavar="HOW", help=f"{ways} (default: table at a terminal, plain in a pipe){more}")


def check_way(given: argparse.Namespace, what: str, ways: Sequence[str]) -> None:
    """Refuse a ``--show`` by which ``what`` cannot be shown."""
    if given.show is not None and given.show not in ways:
        raise Wrong(f"{what} is shown as {', '.join(ways)}, not as {given.show!r}")


def way(given: argparse.Namespace, stream: TextIO) -> showing.Show:
    """Return the way of showing that ``--show`` names, or the one that suits ``stream``."""
    with wrong():
        return showing.way(given.show or showing.default(stream))
