"""Which owners grow, from two looks at the heap."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

from memlab.ownership.owner import Owner
from memlab.ownership.survey import Survey

Text = TypeVar("Text", bound=tuple[str, ...])
Pinned = tuple[int, int, int]  # bytes, nodes, elements
NOTHING: Pinned = (0, 0, 0)


def growing(early: Survey | None, late: Survey, steps: int) -> tuple[Owner, ...]:
    """Return the owners that pin more in ``late`` than in ``early``, so many steps before; fastest first.

    A name whose object was replaced meanwhile is known again by its text, and several of one text, such as a closure's
    cell made in every step, are one owner. Without an early look, all counts as grown.
    """
    before = {} if early is None else {text: pinned for text, (_, pinned) in named(early, _text).items()}
    found = []
    for text, (owner, after) in named(late, _text).items():
        grown, more, elements = (
            round((now - then) / steps) for now, then in zip(after, before.get(text, NOTHING), strict=True)
        )
        if grown > 0 or more > 0:
            owner = dataclasses.replace(owner, bytes_per_step=grown, nodes_per_step=more)
            found.append(dataclasses.replace(owner, elements_per_step=elements))
    return tuple(
        sorted(found, key=lambda owner: (-owner.bytes_per_step, -owner.nodes_per_step, -owner.exclusive_bytes))
    )


def named(found: Survey, name: Callable[[Owner], Text]) -> dict[Text, tuple[Owner, Pinned]]:
    """Return owners by ``name``, those of one as one, with what they pin together."""
    alike: dict[Text, list[Owner]] = {}
    pinned: dict[Text, Pinned] = {}
    for owner, key in zip(found.owners, found.keys, strict=True):
        text = name(owner)
        alike.setdefault(text, []).append(owner)
        pinned[text] = _sum(pinned.get(text, NOTHING), (*found.pinned[key], owner.elements))
    return {text: (_together(several), pinned[text]) for text, several in alike.items()}


def _together(several: Sequence[Owner]) -> Owner:
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
