"""The one exception for what cannot be measured here."""

from __future__ import annotations


class Unavailable(RuntimeError):
    """A probe cannot work here; the text says why. It is a skip: never a zero and never a pass."""
