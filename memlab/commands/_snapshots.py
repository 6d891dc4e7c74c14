"""What `memlab show` does with a file that is a memory snapshot."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from memlab import options
from memlab.commands import HOLDS, check_way
from memlab.options import Wrong

if TYPE_CHECKING:
    from memlab.snapshots.content import Snapshot
    from memlab.snapshots.timeline import Timeline

WAYS = ("html", "json", "plain", "table")  # the latter two are one


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replay",
        metavar="SETTINGS",
        action="append",
        default=[],
        help="of a snapshot: what its requests become under these settings of PYTORCH_CUDA_ALLOC_CONF (repeatable)",
    )
    parser.add_argument("--card", metavar="SIZE", help="of a snapshot: the memory that the replay may have")


def is_one(path: Path) -> bool:
    """Tell a snapshot from a report by its first byte; what is no regular file is none."""
    from memlab.snapshots import pickles

    if not path.is_file():
        return False
    with path.open("rb") as file:
        return pickles.is_pickle(file.read(1))


def show(given: argparse.Namespace, path: Path) -> int:
    """Read the file, which may come from anywhere, and show what it says."""
    from memlab.show import _snapshot
    from memlab.snapshots import content, summary

    check_way(given, "a snapshot", WAYS)
    card = options.card(given.card)
    if given.show == "html" and given.replay:
        raise Wrong("the page shows what was recorded; leave --replay or --show html away")
    if card is not None and not given.replay:
        raise Wrong("--card bounds a replay; add --replay SETTINGS, or --replay '' for torch's own")
    with options.wrong(f"cannot show {path}"), path.open("rb") as file:
        found = content.load(file)
    if given.show == "html":
        _page(path.name, found)
        return HOLDS
    with options.wrong("--replay"):
        told = summary.summarise(found, given.replay, None if card is None else card.usable)
    if given.show == "json":
        _snapshot.as_json(told, sys.stdout)
    else:
        _snapshot.show(path.name, told, sys.stdout)
    return HOLDS


def _page(name: str, found: Snapshot) -> None:
    from memlab.show import _snapshot_page
    from memlab.snapshots.timeline import timeline

    devices: dict[int, Timeline | str] = {}
    for device in found.devices:
        try:
            devices[device] = timeline(found, device)
        except ValueError as error:
            devices[device] = f"The history cannot be followed to these segments: {str(error).rstrip('.')}."
    _snapshot_page.show(name, devices, sys.stdout)
