"""Ways to measure memory, one file each: ``saved``, ``storages``, ``cuda``, ``nvml``, ``host``, ``simulated``.

A probe is a context manager around the code under test; ``read()`` returns plain integers, bytes unless the key says
otherwise, and zeros on an empty block. Its docstring says what it cannot see. Where it cannot work it raises
`Unavailable` with the reason.
"""

from __future__ import annotations

from typing import Protocol

from memlab.unavailable import Unavailable as Unavailable


class Probe(Protocol):
    """What every probe offers."""

    name: str

    def __enter__(self) -> Probe:
        """Start measuring. Raises `Unavailable` where that cannot be done."""

    def __exit__(self, *error: object) -> None:
        """Stop measuring and leave nothing installed."""

    def read(self) -> dict[str, int]:
        """Return what was measured so far."""
