"""Which owners grow, from two looks at the heap."""

from __future__ import annotations

import dataclasses

from memlab.ownership.owner import Owner
from memlab.ownership.survey import Survey


def growing(early: Survey | None, late: Survey, steps: int) -> tuple[Owner, ...]:
    """Return the owners that pin more in ``late`` than in ``early``, so many steps before; fastest first.

    A name whose object was replaced meanwhile is known again by its text. Without an early look, all counts as grown.
    """
    before = dict(early.pinned) if early is not None else {}
    by_text = {_text(owner): before[key] for owner, key in zip(early.owners, early.keys, strict=True)} if early else {}
    found = []
    for owner, key in zip(late.owners, late.keys, strict=True):
        nbytes, nodes = late.pinned[key]
        old_bytes, old_nodes = before.get(key) or by_text.get(_text(owner)) or (0, 0)
        grown, more = round((nbytes - old_bytes) / steps), round((nodes - old_nodes) / steps)
        if grown > 0 or more > 0:
            found.append(dataclasses.replace(owner, bytes_per_step=grown, nodes_per_step=more))
    return tuple(
        sorted(found, key=lambda owner: (-owner.bytes_per_step, -owner.nodes_per_step, -owner.exclusive_bytes))
    )


def _text(owner: Owner) -> tuple[str, str]:
    return owner.name, owner.kind
