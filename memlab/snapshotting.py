"""The verb `memlab.snapshot`: what a watch has recorded, as a file that memory_viz opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memlab.probes.history import History
from memlab.report import write_atomically
from memlab.snapshots import pickles
from memlab.watching import Watch


def snapshot(seen: Watch, path: str | Path | None = None) -> dict[str, Any]:
    """Return what torch.cuda.memory._snapshot() returns, of a watch on any machine; and write it to ``path``.

    >>> with memlab.watch(card="24 GiB", history=True) as seen:
    ...     step()
    >>> memlab.snapshot(seen, "step.pickle")  # drop it onto pytorch.org/memory_viz, or: memlab show step.pickle

    Segments, blocks, and the newest events with Python frames; what the backward pass allocates has the frames of the
    forward operator that it belongs to. Each event has a category: parameter, buffer, input, activation, backward,
    optimizer or unknown. Sizes and addresses are bytes. Of a simulated card, times count events.

    Args:
        seen: a watch that was opened with ``history=True``; still open, or not any more.
        path: where to write a pickle of protocol 4, as torch.cuda.memory._dump_snapshot() does.

    Raises:
        ValueError: the watch has no history.
        OSError: the file cannot be written.
    """
    if not isinstance(seen.storages, History):
        raise ValueError("this watch has no history of its allocations; open it with memlab.watch(history=True)")
    content = seen.storages.snapshot()
    if path is not None:
        save(Path(path), content)
    return content


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a snapshot, whole or not at all. Raises OSError."""
    write_atomically(path, pickles.dumps(content))
