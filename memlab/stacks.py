"""Whole stacks, kept as pointers: code objects and instructions, shared by all that happens at one place.

`memlab.origins` knows the one line that a person wants to read; a snapshot wants all of them, torch's
included, as torch records them.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

DEEPEST = 64  # innermost frames that are kept
MOST = 50_000  # different stacks that are known at a time; those in use stay
_OWN = str(Path(__file__).parent) + os.sep
_EXPERIMENTS = _OWN + "experiments" + os.sep
_is_own: dict[str, bool] = {}

Frames = list[dict[str, Any]]


def is_own(filename: str) -> bool:
    """Tell memlab's own files from the program's. Experiments are a program's, wherever they lie: code to read."""
    return filename.startswith(_OWN) and not filename.startswith(_EXPERIMENTS)


class Stack:
    """Frames, innermost first, without memlab's own; text only when somebody reads it."""

    __slots__ = ("_frames", "codes")

    def __init__(self, codes: tuple[tuple[CodeType, int], ...]) -> None:
        self.codes = codes
        self._frames: Frames | None = None

    def frames(self) -> Frames:
        """Return them in the form of torch's snapshots; always the same list, so that a file holds it once."""
        if self._frames is None:
            self._frames = [
                {"filename": code.co_filename, "line": line_of(code, lasti), "name": code.co_name}
                for code, lasti in self.codes
            ]
        return self._frames

    @property
    def innermost(self) -> CodeType | None:
        return self.codes[0][0] if self.codes else None


class BackwardStack(Stack):
    """The stack of a forward operator, for what the backward of that operator does."""

    __slots__ = ("node",)

    def __init__(self, node: str, forward: Stack) -> None:
        super().__init__(forward.codes)
        self.node = node

    def frames(self) -> Frames:
        if self._frames is None:
            # "??" and no line: how torch writes frames that have no source.
            self._frames = [{"filename": "??", "line": 0, "name": f"backward of {self.node}"}, *super().frames()]
        return self._frames


class Stacks:
    """Hands out one `Stack` for each place."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Stack] = {}
        self._backward: dict[tuple[str, int], BackwardStack] = {}

    def of(self, frame: FrameType | None) -> Stack:
        """Return the stack that ends in ``frame``. Hot path of a recorded run: one dict access for each frame."""
        key: list[int] = []
        innermost = frame
        while frame is not None and len(key) < 2 * DEEPEST:
            code = frame.f_code
            own = _is_own.get(code.co_filename)
            if own is None:
                own = _is_own[code.co_filename] = is_own(code.co_filename)
            if not own:
                key += (id(code), frame.f_lasti)
            frame = frame.f_back
        known = self._known.get(tuple(key))
        if known is None:
            if len(self._known) >= MOST:
                self._known.clear()
            known = self._known[tuple(key)] = Stack(_codes(innermost))  # it keeps the code, so no id is used twice
        return known

    def of_backward(self, node: str, forward: Stack) -> Stack:
        """Return the stack for the backward of what ran at ``forward``."""
        known = self._backward.get((node, id(forward)))
        if known is None or known.codes is not forward.codes:
            if len(self._backward) >= MOST:
                self._backward.clear()
            known = self._backward[node, id(forward)] = BackwardStack(node, forward)
        return known


def _codes(frame: FrameType | None) -> tuple[tuple[CodeType, int], ...]:
    found: list[tuple[CodeType, int]] = []
    while frame is not None and len(found) < DEEPEST:
        if not _is_own[frame.f_code.co_filename]:
            found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def line_of(code: CodeType, lasti: int) -> int:
    """Return the source line of an instruction; that of the code where the instruction has none."""
    found = next((line for start, end, line in code.co_lines() if start <= lasti < end), None)
    return found or code.co_firstlineno
