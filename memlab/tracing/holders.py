"""Owners as they are recorded: with the line that made what they hold, their growth and the known pattern."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from torch import Tensor

from memlab.ownership import Owner, owners
from memlab.ownership.frames import Ended
from memlab.ownership.growing import together
from memlab.patterns import Clue, recognise
from memlab.tracing.stores import source, stores
from memlab.tracing.trace import Held
from memlab.unavailable import Unavailable

MOST = 32


def find(
    step: int,
    before: Sequence[Held] = (),
    tensor: Tensor | None = None,
    error: BaseException | None = None,
    *,
    within: bool = False,
) -> list[Held]:
    """Look for owners now, ``step`` steps into a run; growth is measured against an earlier look.

    The frames in the traceback of ``error`` are told as the running frames that they were. ``within`` says that this
    is not the end of a step: a rate that is known from looks at such ends is the better one. Returns none where this
    torch cannot show what a node keeps.
    """
    try:
        with Ended(error):
            found = owners(tensor)
    except Unavailable:
        return []
    earlier = {_key(each): each for each in before}
    alike: dict[tuple[str, str, str], list[Owner]] = {}
    for each in found:
        alike.setdefault(_key(each), []).append(each)
    records = [_held(together(each), step, earlier.get(key), within) for key, each in alike.items()]
    return sorted(records, key=_weight)


def merged(before: Sequence[Held], found: Sequence[Held]) -> list[Held]:
    """Return the owners of the newer look, and those of the older that grew and that the newer could not see any more.

    A function's variables go when it returns; what they held was seen while it ran.
    """
    seen = {_key(each) for each in found}
    gone = [each for each in before if _key(each) not in seen and each.per_step > 0]
    return sorted([*found, *gone], key=_weight)[:MOST]


def _weight(each: Held) -> tuple[int, int, int]:
    return -each.per_step, -each.exclusive, -each.bytes


def _key(each: Held | Owner) -> tuple[str, str, str]:
    """Name an owner for the length of a run: the line that a frame has come to is no part of it."""
    return each.name, re.sub(r":\d+", "", each.where), each.kind


def _held(owner: Owner, step: int, before: Held | None, within: bool) -> Held:
    passed = step - before.step if before is not None else 0
    per_step = (owner.bytes - before.bytes) // passed if before is not None and passed > 0 else owner.bytes_per_step
    known = before is not None and before.per_step > 0
    if before is not None and (passed <= 0 or ((within or not owner.complete) and known)):
        per_step = before.per_step
    nodes_grow = owner.nodes_per_step > 0 or (before is not None and passed > 0 and owner.nodes > before.nodes)
    record = Held(
        path=owner.path,
        name=owner.name,
        where=owner.where,
        kind=owner.kind,
        bytes=owner.bytes,
        exclusive=owner.exclusive_bytes,
        tensors=owner.tensors,
        nodes=owner.nodes,
        holds=owner.holds,
        born=owner.born,
        source=source(owner.born),
        per_step=max(0, per_step),
        step=step,
        complete=owner.complete,
        elements=owner.elements,
    )
    piles = owner.elements > before.elements if before is not None and passed > 0 else None
    return _with_pattern(record, clue_of(owner, grows=per_step > 0 or nodes_grow, piles=piles))


def clue_of(owner: Owner, *, grows: bool, piles: bool | None) -> Clue:
    """Return what patterns are recognised by; ``piles`` is whether its elements rose, None if that is not known."""
    return Clue(
        name=owner.name,
        kind=owner.kind,
        holds=owner.holds,
        elements=owner.elements,
        through=owner.through,
        scalar=owner.scalar,
        made_by=owner.made_by,
        evaluating=owner.evaluating,
        grows=grows,
        piles=piles,
        stores=stores(owner.name, owner.where),
    )


def _with_pattern(record: Held, clue: Clue) -> Held:
    pattern = recognise(clue)
    if pattern is None:
        return record
    return dataclasses.replace(record, pattern=pattern.name, fix=pattern.advice(clue), cure=pattern.cure)
