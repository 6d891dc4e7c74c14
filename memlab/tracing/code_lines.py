"""Which lines of a file have code, as Python compiles it; nothing of it is run."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import CodeType


def check(file: Path, line: int) -> None:
    """Raise ValueError, in a sentence that names the nearest lines with code, where a line has none."""
    try:
        text = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python says them when the file is run
            known = lines_of(compile(text, file.name, "exec", dont_inherit=True))
    except OSError as error:
        raise ValueError(f"cannot read it: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"it is not Python: {error}") from None
    last = len(text.splitlines())
    known = {each for each in known if each <= last}  # of nothing, Python 3.10 says that it is on line 1
    if not known:
        raise ValueError("there is no code in it")
    if line not in known:
        what = f"the file ends at line {last}" if line > last else "no code is on that line"
        raise ValueError(f"{what}; {_nearest(known, line)}")


def lines_of(code: CodeType) -> set[int]:
    """Return the lines for which there are instructions, in functions and classes inside, too."""
    found = {line for _, _, line in code.co_lines() if line}
    return found.union(*(lines_of(each) for each in code.co_consts if isinstance(each, CodeType)))


def _nearest(known: set[int], line: int) -> str:
    before, after = [each for each in known if each < line], [each for each in known if each > line]
    nearest = [*sorted(before)[-1:], *sorted(after)[:1]]
    if len(nearest) == 1:
        return f"the nearest line with code is {nearest[0]}"
    return f"the nearest lines with code are {nearest[0]} and {nearest[1]}"
