"""Say what is installed here, and what can be measured with it."""

from __future__ import annotations

import argparse
import sys

from memlab.commands import HOLDS, NOT_ALL_HOLD


def add_options(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def command(given: argparse.Namespace) -> int:
    from memlab import doctor
    from memlab.show import _doctor

    examination = doctor.examine()
    _doctor.show(examination, sys.stdout)
    return HOLDS if any(each.how == doctor.MEASURED for each in examination.abilities) else NOT_ALL_HOLD
