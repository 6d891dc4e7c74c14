"""Which owners grow, from two looks at the heap."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from memlab.ownership.owner import Owner
from memlab.ownership.survey import Survey

Pinned = tuple[int, int, int]  # bytes, nodes, elements
NOTHING: Pinned = (0, 0, 0)


def growing(early: Survey | None, late: Survey, steps: int) -> tuple[Owner, ...]:
    """Return the owners that pin more in ``late`` than in ``early``, so many steps before; fastest first.

    A name whose object was replaced meanwhile is known again by its text, and several of one text, such as a closure's
    cell made in every step, are one owner. Without an early look, all counts as grown.
    """
    before: dict[tuple[str, str], Pinned] = {}
    if early is not None:
        for owner, key in zip(early.owners, early.keys, strict=True):
            before[_text(owner)] = _sum(before.get(_text(owner), NOTHING), (*early.pinned[key], owner.elements))
    after: dict[tuple[str, str], Pinned] = {}
    alike: dict[tuple[str, str], list[Owner]] = {}
    for owner, key in zip(late.owners, late.keys, strict=True):
        after[_text(owner)] = _sum(after.get(_text(owner), NOTHING), (*late.pinned[key], owner.elements))
        alike.setdefault(_text(owner), []).append(owner)
    found = []
    for text, several in alike.items():
        grown, more, elements = (
            round((now - then) / steps) for now, then in zip(after[text], before.get(text, NOTHING), strict=True)
        )
        if grown > 0 or more > 0:
            owner = dataclasses.replace(together(several), bytes_per_step=grown, nodes_per_step=more)
            found.append(dataclasses.replace(owner, elements_per_step=elements))
    return tuple(
        sorted(found, key=lambda owner: (-owner.bytes_per_step, -owner.nodes_per_step, -owner.exclusive_bytes))
    )


def together(several: Sequence[Owner]) -> Owner:
    """Return owners of one name and kind, such as the cells of many closures, as one: what they pin adds up."""
    if len(several) == 1:
        return several[0]
    return dataclasses.replace(
        max(several, key=lambda each: each.exclusive_bytes),
        bytes=sum(each.bytes for each in several),
        exclusive_bytes=sum(each.exclusive_bytes for each in several),
        tensors=sum(each.tensors for each in several),
        nodes=sum(each.nodes for each in several),
        elements=sum(each.elements for each in several),
        scalar=all(each.scalar for each in several),
        evaluating=all(each.evaluating for each in several),
        complete=all(each.complete for each in several),
    )


def _sum(one: Pinned, other: Pinned) -> Pinned:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _text(owner: Owner) -> tuple[str, str]:
    return owner.name, owner.kind
