"""Ways of showing a report, one file each; a new file is found by its name and nothing is edited.

A way is a module here whose name does not start with an underscore. It has one function, ``show(report, out)``, which
writes the whole report to the text file ``out``. Modules with an underscore are what the ways share.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from memlab.experiment import pick

if TYPE_CHECKING:
    from memlab.report import Report

Show = Callable[["Report", TextIO], None]


def ways() -> list[str]:
    """Return the names of all ways of showing; nothing is imported."""
    return sorted(name for _, name, _ in pkgutil.iter_modules(__path__) if not name.startswith("_"))


def way(name: str) -> Show:
    """Return the way of showing called ``name``. Raises `memlab.experiment.Unknown` with the nearest names."""
    pick(dict.fromkeys(ways()), name, "way of showing")
    show: Show = importlib.import_module(f"{__name__}.{name}").show
    return show


def default(out: TextIO) -> str:
    """Return ``"table"`` where a person looks at ``out``, ``"plain"`` where a pipe or a file reads it."""
    return "table" if out.isatty() else "plain"
