"""What memory was made of at a moment, as rows that add up."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from memlab import origins, sparse
from memlab.lines import GIVEN, Line
from memlab.tracing.trace import Moment, Row
from memlab.watching import Watch

MOST_ROWS = 500
REST, OTHER = "smaller lines", "other tensor"


def saved_at_peak(watch: Watch) -> Moment:
    """Return what was saved for backward when most was."""
    rows = _itemised(watch.saved.ledger.at_highest())
    return Moment(step=0, saved=sum(row.bytes for row in rows), rows=rows)


def saved_now(watch: Watch, step: int) -> Moment:
    """Return what is saved for backward now; the other classes would need a walk over the heap."""
    rows = _itemised(watch.saved.ledger.now())
    return Moment(step, sum(row.bytes for row in rows), watch.storages.bytes, rows)


def everything(watch: Watch, step: int) -> Moment:
    """Return what is alive now, by class too. Walks the heap."""
    moment = saved_now(watch, step)
    alive, kinds = watch.storages.ledger.live(), watch.saved.ledger.kinds
    totals, _ = classed(alive, kinds)
    moment.live = totals.total()
    moment.classes = dict(totals.most_common())
    return moment


def rows_of(lines: Iterable[Line]) -> list[Row]:
    """Return rows of lines; they add up to the headline."""
    return _itemised((line, 1) for line in lines)


def _itemised(lines: Iterable[tuple[Line, int]]) -> list[Row]:
    """Group what counts in the headline; what is more than `MOST_ROWS` becomes one row."""
    groups: dict[tuple[str, str, str, str, str], list[int]] = {}
    for line, count in lines:
        if line.kind in GIVEN:
            continue
        found = groups.setdefault((line.where, line.module, line.module_class, line.kind, line.node), [0, 0])
        found[0] += count * line.bytes
        found[1] += count
    rows = sorted(
        (Row(*key, bytes=found[0], count=found[1]) for key, found in groups.items()), key=lambda row: -row.bytes
    )
    rest = rows[MOST_ROWS:]
    if rest:
        kept = Row(REST, "", "", REST, "", sum(row.bytes for row in rest), sum(row.count for row in rest))
        rows = [*rows[:MOST_ROWS], kept]
    return rows


def seen_by_python() -> dict[int, int]:
    """Return ``{storage key: bytes}`` of the storages that Python code can see. Walks the heap."""
    found: dict[int, int] = {}
    with torch._C.DisableTorchFunctionSubclass():
        for thing in gc.get_objects():
            if issubclass(type(thing), Tensor):
                for each in (thing, *sparse.parts(thing)):
                    key = origins.storage_key(each)
                    if key is not None and key not in found:
                        found[key] = each.untyped_storage().nbytes()
    return found


def classed(sizes: dict[int, int], kinds: Mapping[int, str] | None = None) -> tuple[Counter[str], dict[int, int]]:
    """Return ``{class: bytes}`` of these storages, and those of them that belong to no module and no optimizer.

    Of these ``kinds`` says by key what they are, where it is known. Walks the heap.
    """
    known = dict(_of_modules_and_optimizers())
    kinds = kinds or {}
    totals: Counter[str] = Counter()
    for key, nbytes in sizes.items():
        totals[known.get(key) or kinds.get(key, OTHER)] += nbytes
    return totals, {key: nbytes for key, nbytes in sizes.items() if key not in known}


def _of_modules_and_optimizers() -> Iterator[tuple[int, str]]:
    """Yield ``(storage key, class)`` of optimizers' state, gradients, buffers and parameters; the later ones win."""
    optimizers: list[Any] = []
    modules: list[Any] = []
    with torch._C.DisableTorchFunctionSubclass():
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.nn.Module):
                modules.append(thing)
            elif issubclass(type(thing), torch.optim.Optimizer):
                optimizers.append(thing)
        for optimizer in optimizers:
            for state in list(optimizer.state.values()):
                yield from _keyed(state.values() if isinstance(state, dict) else (), "optimizer state")
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                yield from _gradients(group["params"])
                yield from _keyed(group["params"], "parameter")
        for module in modules:
            yield from _gradients((module.__dict__.get("_parameters") or {}).values())
    yield from origins.module_storages(modules).items()


def _gradients(parameters: Iterable[Any]) -> Iterator[tuple[int, str]]:
    leaves = [each for each in parameters if isinstance(each, Tensor) and each.is_leaf]
    yield from _keyed([each.grad for each in leaves], "gradient")


def _keyed(tensors: Iterable[Any], kind: str) -> Iterator[tuple[int, str]]:
    for tensor in tensors:
        key = origins.storage_key(tensor)
        if key is not None:
            yield key, kind
