"""Places in source as people read them: ``file:line``, and in a notebook what IPython's own tracebacks say.

IPython compiles a cell under a name that tells nobody anything, ``/tmp/ipykernel_12345/3077459261.py`` or
``<ipython-input-3-5e2a...>``. From 8.7 on, its tracebacks say ``Cell In[3], line 4``, and so does all of memlab: every
place is formed here, and read here again. Snapshots keep the name of the file, which is what torch writes into them.
What is installed is named from its package on, ``transformers/activations.py``, alike on every machine.
"""

from __future__ import annotations

import linecache
import re
import sys
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

_CELL = r"(?P<cell>Cell In\[\d+\]), line (?P<at>\d+)"
_PLACE = re.compile(rf"(?P<file>.+):(?P<line>\d+)|{_CELL}")
_AT_END = re.compile(rf"(?:^|, |at |\s)(?:(?P<file>[^,\s][^,]*?\.\w+):(?P<line>\d+)|{_CELL})$")
_LINE = re.compile(r":\d+|(?<=\]), line \d+")
_INSTALLED = "site-packages", "dist-packages"
_PLAIN = re.compile(r"<ipython-input-(\d+)-\w+>")

_cells: dict[str, str] = {}  # the file of each cell that was told


def place(file: str, line: int) -> str:
    """Return ``file:line``, the file as `short` names it, or cell and line."""
    number = _number(file)
    if number is None:
        return f"{short(file)}:{line}"
    cell = f"Cell In[{number}]"
    _cells[cell] = file
    return f"{cell}, line {line}"


def short(file: str) -> str:
    """Return a file from its package on where it is installed, or relative to the working directory."""
    return _relative(file, Path.cwd())


def installed(file: str) -> str | None:
    """Return where an installed file lies among the packages; None for any other file."""
    parts = PurePath(file).parts
    inside = [index for index, part in enumerate(parts) if part in _INSTALLED]
    return str(PurePath(*parts[inside[-1] + 1 :])) if inside else None


@lru_cache(1024)
def _relative(file: str, folder: Path) -> str:
    path, package = Path(file), installed(file)
    return package or (str(path.relative_to(folder)) if path.is_relative_to(folder) else file)


def parted(place: str) -> tuple[str, int]:
    """Return file, or cell, and line; line 0 where the text names none."""
    found = _PLACE.fullmatch(place)
    return _groups(found) if found is not None else (place, 0)


def _groups(found: re.Match[str]) -> tuple[str, int]:
    return found["file"] or found["cell"], int(found["line"] or found["at"])


def at_end(text: str) -> tuple[str, int] | None:
    """Return the file, as `file_of` names it, and the line of the place at which ``local of f(), train.py:13`` ends."""
    found = _AT_END.search(text)
    if found is None:
        return None
    name, line = _groups(found)
    return file_of(name), line


def without_lines(text: str) -> str:
    """Return a text with its places, without the numbers of their lines."""
    return _LINE.sub("", text)


def file_of(name: str) -> str:
    """Return the name under which Python finds the source of what a place names."""
    name = _cells.get(name, name)
    if name.startswith("<"):
        return name
    folders = [Path.cwd(), *(Path(each) for each in sys.path if PurePath(each).name in _INSTALLED)]
    return str(next((each / name for each in folders if (each / name).exists()), folders[0] / name))


def source(place: str) -> str:
    """Return the text of the line at a place; empty where it cannot be read."""
    name, line = parted(place)
    return linecache.getline(file_of(name), line).strip() if line else ""


def text_of(file: str) -> str | bytes:
    """Return the source of a file or a cell. Raises OSError when it cannot be read."""
    known: Any = linecache.cache.get(file, ())
    if len(known) > 2 and known[1] is None:  # what linecache was given and did not read: a cell
        return "".join(known[2])
    return Path(file).read_bytes()


def _number(file: str) -> int | None:
    """Return a cell's number, as the shell knows it, or as the name under which plain IPython compiles it says it."""
    number = _numbers().get(file)
    if type(number) is int:
        return number
    plain = _PLAIN.fullmatch(file)
    return int(plain[1]) if plain else None


def _numbers() -> dict[Any, Any]:
    """Return ``{file: number}`` of the cells of the IPython shell that runs us, if one does; none of its code runs."""
    module = sys.modules.get("IPython.core.interactiveshell")
    if module is None:
        return {}
    kind = _dict_of(module).get("InteractiveShell")
    shell = type.__getattribute__(kind, "__dict__").get("_instance") if issubclass(type(kind), type) else None
    return _as_dict(_dict_of(_dict_of(shell).get("compile")).get("_filename_map"))


def _dict_of(thing: Any) -> dict[Any, Any]:
    try:
        return _as_dict(object.__getattribute__(thing, "__dict__"))
    except AttributeError:
        return {}


def _as_dict(thing: Any) -> dict[Any, Any]:
    return thing if type(thing) is dict else {}
