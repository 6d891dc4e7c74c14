"""Owners as they are recorded: with the line that made what they hold, their growth and the known pattern."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from torch import Tensor

from memlab import places
from memlab.node_names import READS_PACKED
from memlab.ownership import Owner
from memlab.ownership.frames import Ended
from memlab.ownership.growing import named
from memlab.ownership.search import SECONDS
from memlab.ownership.survey import survey
from memlab.patterns import CARRIED, GRAPH, TENSORS, Clue, recognise
from memlab.tracing.kept import kept_at
from memlab.tracing.stores import NEW, stores
from memlab.tracing.trace import Held

MOST = 32
UNKNOWN = "unknown"
_ASSIGNED = {"list", "dict"}  # what takes another element in the place of one
_PLACE = re.compile(r"\w+(\[[^<].*\])")
Key = tuple[str, str, str]


def find(
    step: int,
    before: Sequence[Held] = (),
    tensor: Tensor | None = None,
    error: BaseException | None = None,
    *,
    within: bool = False,
    made: dict[int, int] | None = None,
    since: int | None = None,
    nodes: int = 0,
) -> list[Held]:
    """Look for owners now; growth is measured against an earlier look.

    Returns none where this torch cannot show what a node keeps.

    Args:
        step: so many steps into a run.
        before: what the earlier look has found.
        tensor: only owners of this one.
        error: the frames in its traceback are told as the running frames that they were.
        within: this is not the end of a step: a rate that is known from looks at such ends is the better one.
        made: ``{storage key: bytes}`` for which owners of plain tensors are wanted, too, whether they grow or not; the
            bytes are those that are new since step ``since``.
        since: against this step the first of all looks is measured.
        nodes: so many autograd nodes each step leaves; who has most of them grows, even at the first of all looks.
    """
    if not READS_PACKED:
        return []
    with Ended(error):
        found = survey(tensor, made, seconds=SECONDS)
    earlier = {_key(each): each for each in before}
    records = []
    for name, (owner, (pinned, _, _)) in named(found, _key).items():
        known, per_step = earlier.get(name), 0
        if known is not None:
            per_step = _rate(owner, pinned, step, known, within)
        elif not before and since is not None:
            per_step = _rate_since(owner, pinned, step - since)
        records.append(_held(owner, pinned, step, known, per_step, nodes))
    records = _with_carriers(records)
    records.sort(key=_weight)
    return [*map(_with_statement, records[:MOST]), *records[MOST:]]


def merged(before: Sequence[Held], found: Sequence[Held], nodes: int = 0) -> list[Held]:
    """Return the owners of the newer look, and those of the older that grew and that the newer could not see any more.

    A function's variables go when it returns; what they held was seen while it ran. Where each step leaves so many
    ``nodes``, those that had as many of them count as grown.
    """
    seen = {_key(each) for each in found}
    gone = [each for each in before if _key(each) not in seen and (each.per_step > 0 or piles_nodes(each, nodes))]
    return sorted([*found, *gone], key=_weight)


def piles_nodes(each: Held, nodes: int) -> bool:
    """Whether an owner has most of the nodes that the steps so far have left, of which each leaves so many."""
    return nodes > 0 and each.nodes >= nodes * each.step / 2


def growing(found: Sequence[Held], *, plain: bool) -> list[Held]:
    """Leave owners of plain tensors out that do not grow, for every variable is one; or, without ``plain``, all."""
    return [each for each in found if each.holds != TENSORS or (plain and each.per_step > 0)]


def _weight(each: Held) -> tuple[bool, int, int, int]:
    return bool(each.carrier), -each.per_step, -each.exclusive, -each.bytes


def _with_carriers(records: list[Held]) -> list[Held]:
    """Answer what is made anew in every step, and leads to a state that another name carries on, with that one's cure.

    ``loss = criterion(h)`` grows like ``h = cell(x, h)``, and to cut it frees nothing.
    """
    carried = [each for each in records if each.per_step > 0 and each.pattern in CARRIED]
    if len(carried) < 2:
        return records
    anew = {id(each) for each in carried if stores(each.name, each.where) == {NEW}}
    carriers = [each for each in carried if id(each) not in anew]

    def answered(each: Held) -> Held:
        same = (one for one in carriers if abs(one.per_step - each.per_step) <= each.per_step // 10)
        carrier = next(same, None) if id(each) in anew else None
        if carrier is None:
            return each
        return dataclasses.replace(
            each, carrier=carrier.name, pattern=carrier.pattern, fix=carrier.fix, cure=carrier.cure
        )

    return [answered(each) for each in records]


def _key(each: Held | Owner) -> Key:
    """Name an owner for the length of a run: the line that a frame has come to is no part of it."""
    return each.name, places.without_lines(each.where), each.kind


def _rate(owner: Owner, pinned: int, step: int, before: Held, within: bool) -> int:
    passed, grown = step - before.step, owner.bytes - before.bytes
    if passed <= 0:
        return before.per_step
    if owner.holds == TENSORS and grown <= 0:
        return 0
    if (within or not owner.complete) and before.per_step > 0:
        return before.per_step
    return max(0, grown, pinned - before.pinned) // passed


def _rate_since(owner: Owner, pinned: int, steps: int) -> int:
    """Return by how much plain tensors pile up, from one look: some new ones for each step, of the size that they have.

    Whole ones, for what is stored after the end of a step may have been made before it.
    """
    if owner.holds != TENSORS or owner.elements < steps or not owner.bytes:
        return 0
    size = owner.bytes / owner.elements
    return round(size * round(pinned / size / steps))


def _held(owner: Owner, pinned: int, step: int, before: Held | None, per_step: int, nodes: int) -> Held:
    passed = step - before.step if before is not None else 0
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
        source=places.source(owner.born),
        per_step=per_step,
        step=step,
        complete=owner.complete,
        elements=owner.elements,
        pinned=pinned,
    )
    nodes_grow = (passed > 0 and before is not None and owner.nodes > before.nodes) or piles_nodes(record, nodes)
    piles = owner.elements > before.elements if before is not None and passed > 0 else None
    clue = clue_of(owner, grows=per_step > 0 or nodes_grow, piles=piles)
    # What an earlier look has told holds: in a second look at one step, and where a function's variable, new in each
    # call, is as large at the end of each.
    told = before is not None and before.pattern and (passed == 0 or (not per_step and recognise(clue) is None))
    if before is not None and (told or (passed == 0 and not per_step)):
        return dataclasses.replace(record, pattern=before.pattern, fix=before.fix, cure=before.cure)
    return _with_pattern(record, clue)


def _with_statement(record: Held) -> Held:
    """Say what stores into the name, where nobody saw what it holds being made, or a library made it."""
    if record.born != UNKNOWN and places.installed(places.file_of(places.parted(record.born)[0])) is None:
        return record
    kept = kept_at(record.name, record.where)
    return dataclasses.replace(record, kept=kept, kept_source=places.source(kept))


def clue_of(owner: Owner, *, grows: bool, piles: bool | None) -> Clue:
    """Return what patterns are recognised by; ``piles`` is whether its elements rose, None if that is not known."""
    return Clue(
        name=owner.name,
        where=owner.where,
        place=_place(owner),
        kind=owner.kind,
        holds=owner.holds,
        elements=owner.elements,
        through=owner.through,
        scalar=owner.scalar,
        made_by=owner.made_by,
        evaluating=owner.evaluating,
        grows=grows,
        piles=piles,
        stores=stores(owner.name, owner.where) if owner.holds == GRAPH else frozenset(),
    )


def _place(owner: Owner) -> str:
    """Return where in the name's containers the tensor is that stands for all; nothing where that cannot be written."""
    if not owner.through or not _ASSIGNED.issuperset(owner.through):
        return ""
    parts = owner.path.split(" -> ")[1 : 1 + len(owner.through)]
    found = [_PLACE.fullmatch(part) for part in parts]
    return "" if None in found else "".join(each[1] for each in found if each is not None)


def _with_pattern(record: Held, clue: Clue) -> Held:
    pattern = recognise(clue)
    if pattern is None:
        return record
    return dataclasses.replace(record, pattern=pattern.name, fix=pattern.advice(clue), cure=pattern.cure)
