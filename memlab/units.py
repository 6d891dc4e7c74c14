"""Bytes to text and back. The only place in memlab where a number of bytes becomes words."""

from __future__ import annotations

import re

BINARY = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
DECIMAL = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"\s*(?P<number>\d[\d_,]*(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)\s*")


def format_bytes(nbytes: int) -> str:
    """Return ``nbytes`` (bytes, may be negative) in binary units: ``0 B``, ``512 B``, ``4.00 MiB``."""
    sign, size = ("-" if nbytes < 0 else ""), abs(nbytes)
    for unit, factor in reversed(BINARY.items()):
        if size >= factor:
            return f"{sign}{size / factor:.2f} {unit}"
    return f"{sign}{size} B"


def format_exact(nbytes: int) -> str:
    """Return ``nbytes`` to the byte, with thousands separated: ``4,194,304 B``."""
    return f"{nbytes:,} B"


def parse_size(text: str | int, *, whole: bool = True) -> int:
    """Return the bytes that ``text`` names.

    ``"24 GiB"`` is binary, ``"24 GB"`` decimal, ``"6_291_456"``, ``"512 B"`` and plain integers are bytes. Without
    ``whole`` a part of a byte is left away: ``"23.64 GiB"`` is what a driver's figure looks like in torch's texts.

    Raises:
        ValueError: a sentence that says what is wrong with ``text`` and what would be right.
    """
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise ValueError(f"a size is a number of bytes or a text such as '24 GiB', not {text!r}")
    if isinstance(text, int):
        return _not_negative(text, str(text))
    if text.strip().startswith("-"):
        raise ValueError(f"a size cannot be negative: {text!r}")
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"cannot read the size {text!r}; write for example '24 GiB', '6 MB' or '6_291_456'")
    number = match["number"].replace("_", "").replace(",", "")
    nbytes = (
        float(number) * _factor(match["unit"], text) if "." in number else int(number) * _factor(match["unit"], text)
    )
    if nbytes != int(nbytes) and (whole or match["unit"] in ("", "B")):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(nbytes)


def _factor(unit: str, text: str) -> int:
    if unit in ("", "B"):
        return 1
    for name, factor in (BINARY | DECIMAL).items():
        if unit.lower() == name.lower():
            return factor
    known = ", ".join(["B", *BINARY, "MB", "GB"])
    raise ValueError(f"unknown unit {unit!r} in the size {text!r}; known: {known}")


def _not_negative(nbytes: int, text: str) -> int:
    if nbytes < 0:
        raise ValueError(f"a size cannot be negative: {text}")
    return nbytes


def sparkline(values: list[int]) -> str:
    """Return one character of eight heights for each of ``values``, scaled from 0 to their maximum."""
    top = max(values, default=0)
    return "".join("▁▂▃▄▅▆▇█"[min(7, value * 8 // top) if top else 0] for value in values)
