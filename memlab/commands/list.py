"""List the experiments and what each claims."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from memlab import experiment, options
from memlab.commands import HOLDS


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="an experiment, its file, or all: show its arms too")


def command(given: argparse.Namespace) -> int:
    from memlab.show import _list

    found = options.paths(given.names or [options.ALL])
    _list.show({path.stem: _summary(path) for path in found}, sys.stdout, arms=bool(given.names))
    return HOLDS


def _summary(path: Path) -> experiment.Summary | str:
    try:
        return experiment.summarise(path)
    except ValueError as error:
        return str(error)
