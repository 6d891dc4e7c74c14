"""The core verbs: watch a block, and ask whether a step grows."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from memlab import graph, stepping, threads, trend
from memlab.allocator import Allocator
from memlab.cards import Card
from memlab.node_names import READS_PACKED
from memlab.ownership.growing import growing
from memlab.ownership.owner import Owner
from memlab.ownership.survey import Survey, survey
from memlab.probes.history import History
from memlab.probes.saved import Saved
from memlab.probes.simulated import Simulated, card_of
from memlab.probes.storages import Storages
from memlab.units import format_bytes


class Watch:
    """Measures the block under ``with``, without disturbing it; its numbers stay live.

    That is the thread that opened it, and every ``threading.Thread`` that is started in the block.

    Attributes:
        saved: the `Saved` probe: ``bytes``, ``peak``, ``exclusive``, ``lines``, ``by(...)``.
        storages: the `Storages` probe: ``bytes``, ``peak``. Present unless ``storages=False``.
        card: the simulated card's probe, if a card was given.
    """

    def __init__(
        self,
        card: str | int | Card | Allocator | None,
        *,
        storages: bool,
        where: bool,
        modules: bool = False,
        ignore: Iterable[str] = (),
        history: bool = False,
        keep_peak: bool = False,
        births: bool = False,
    ) -> None:
        if (card is not None or history or births) and not storages:
            raise ValueError("a card, a history and births are fed by the storages probe: leave storages=True")
        self._card = card_of(card) if card is not None else None
        probe = History if history else Storages
        self._storages = probe(self._card, keep_peak=keep_peak, births=births) if storages else None
        self.saved = Saved(self._storages, where=where, modules=modules, ignore=ignore)
        self.card = Simulated(self._storages) if self._storages is not None and self._card is not None else None
        self._stack = ExitStack()

    def __repr__(self) -> str:
        live = f"; {_now_and_most(self.storages)} of tensors" if self.has_storages else ""
        return f"<Watch: {_now_and_most(self.saved)} saved for backward{live}>"

    @property
    def has_storages(self) -> bool:
        """Whether this watch was opened with storages."""
        return self._storages is not None

    @property
    def storages(self) -> Storages:
        if self._storages is None:
            raise AttributeError("this watch was opened with storages=False and knows saved tensors only")
        return self._storages

    def __enter__(self) -> Watch:
        with ExitStack() as stack:
            for probe in (self._storages, self.card, self.saved):
                if probe is not None:
                    stack.enter_context(probe)
            stack.enter_context(stepping.heard_by(self.step))
            stack.enter_context(threads.followed(self._in_thread))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    @contextmanager
    def _in_thread(self) -> Iterator[None]:
        with ExitStack() as stack:
            for probe in (self._storages, self.saved):
                if probe is not None:
                    stack.enter_context(probe.opened_in_thread())
            stack.enter_context(stepping.heard_by(self.step))
            yield

    def step(self) -> None:
        """Say that a new step begins: lines saved from now on carry its number."""
        self.saved.ledger.step += 1
        if self._storages is not None:
            self._storages.learn_operators()

    def read(self) -> dict[str, int]:
        """Return every number of every probe of this watch, in bytes."""
        found: dict[str, int] = {}
        for probe in (self.saved, self._storages, self.card):
            if probe is not None:
                found |= probe.read()
        return found

    @property
    def blind(self) -> list[str]:
        """Sentences about what was met and could not be seen."""
        return sorted({*self.saved.blind, *(self._storages.blind if self._storages is not None else ())})


def _now_and_most(probe: Saved | Storages) -> str:
    return f"{format_bytes(probe.bytes)} (at most {format_bytes(probe.peak)})"


def watch(
    card: str | int | Card | Allocator | None = None,
    *,
    storages: bool = True,
    where: bool = True,
    modules: bool | None = None,
    ignore: Iterable[str] = (),
    history: bool = False,
    keep_peak: bool = False,
    births: bool = False,
) -> Watch:
    """Return a context manager that measures what autograd saves and what tensors are created in its block.

    >>> with memlab.watch() as seen:
    ...     loss = model(x).sum()
    >>> seen.saved.bytes, seen.storages.peak

    Args:
        card: a simulated card (``"24 GiB"``, bytes, ``"rtx4090"``, a JSON file, a `Card` or an `Allocator`): storages
            are allocated on it, and ``torch.OutOfMemoryError`` is raised in the operator that does not fit.
        storages: also account for every storage created; ``False`` is cheaper and knows saved tensors only.
        where: record the source line of each saved tensor.
        modules: record the module in whose forward each tensor is saved; as ``where`` unless told.
        ignore: files, folders or names of imported packages whose source lines are not yours: with
            ``ignore=["transformers"]`` a line is the one in your code that called it.
        history: keep the newest events of the allocator with their stacks, for `memlab.snapshot`; without a card, those
            of torch's own allocator where there is a CUDA device, else of a simulated card that nothing fills.
        keep_peak: remember what the storages' peak was made of, for ``storages.at_peak``; implies ``births``.
        births: remember the source line of each storage created, too, so that `memlab.owners`, `memlab.growth` and an
            OutOfMemoryError can say where the tensors of an owner were made that no graph has saved, as long as the
            watch itself is kept. `memlab.growth` and ``memlab trace`` do so.

    Raises:
        ValueError: a card that is not known or cannot be read; or a card, a history or births without ``storages``.
    """
    modules = where if modules is None else modules
    return Watch(
        card,
        storages=storages,
        where=where,
        modules=modules,
        ignore=ignore,
        history=history,
        keep_peak=keep_peak,
        births=births,
    )


NAMED = 3  # owners in the text of a growth


@dataclass(frozen=True)
class Growth:
    """Whether a step leaves more behind each time it runs.

    Attributes:
        grows: bytes pinned by tensors and graphs grow from step to step.
        bytes_per_step: the median slope, in bytes; exact when every step leaves the same.
        nodes_per_step: likewise, autograd nodes that live Python tensors lead to; `nodes_grow` is the verdict on them,
            for a cache that is full in the middle of the steps has a slope, too.
        series: bytes alive after each measured step, after a garbage collection.
        nodes: autograd nodes after each measured step.
        owners: who holds what grows, each with its ``bytes_per_step`` and ``nodes_per_step``; empty if nothing grows,
            and on torch 2.6, which cannot show what a node keeps.
    """

    grows: bool
    bytes_per_step: int
    nodes_per_step: int
    series: tuple[int, ...]
    nodes: tuple[int, ...]
    owners: tuple[Owner, ...] = ()

    @property
    def nodes_grow(self) -> bool:
        """Whether autograd nodes grow from step to step, judged as bytes are."""
        return trend.rises(self.nodes)

    def __repr__(self) -> str:
        if not self.grows and not self.nodes_grow:
            return f"<Growth: none in {len(self.series)} steps>"
        more = f"+{format_bytes(self.bytes_per_step)}, " if self.grows else ""
        held = f"; held by {', '.join(owner.name for owner in self.owners[:NAMED])}" if self.owners else ""
        return f"<Growth: {more}nodes {self.nodes_per_step:+,} every step{held}>"


def growth(step: Callable[[], object], steps: int = 10, warmup: int = 3) -> Growth:
    """Run ``step`` again and again and tell whether what it leaves alive grows.

    After ``warmup`` runs that are not judged (lazily created state, caches that fill once), each of ``steps`` runs is
    followed by a garbage collection and a reading of the storages created here and still alive.

    Where bytes grow, or nodes alone, two looks at Python's heap (half way and at the end) say who holds what grows.
    Where nothing grows there are none.

    Args:
        step: called with nothing; what it returns is dropped.
        steps: measured runs, at least 2.
        warmup: runs before them.

    Raises:
        ValueError: fewer than two steps, or a negative warmup.
    """
    if steps < 2 or warmup < 0:
        raise ValueError(f"growth needs at least 2 steps and no negative warmup, got steps={steps}, warmup={warmup}")
    series: list[int] = []
    nodes: list[int] = []
    before: int | None = None
    early: tuple[int, Survey] | None = None
    found: tuple[Owner, ...] = ()
    with watch(births=True) as seen:
        for index in range(warmup + steps):
            step()
            gc.collect()
            if index < warmup:
                before = seen.storages.bytes
                continue
            series.append(seen.storages.bytes)
            nodes.append(graph.count_live_nodes())
            if index == warmup + (steps - 1) // 2 and _may_grow(before, series, nodes):
                early = index, survey(made=seen.storages.ledger.live())
        if READS_PACKED and (trend.rises(series) or trend.rises(nodes)):
            late = survey(made=seen.storages.ledger.live())
            start, first = early if early is not None else (-1, None)
            found = growing(first, late, warmup + steps - 1 - start)
    return Growth(trend.rises(series), trend.slope(series), trend.slope(nodes), tuple(series), tuple(nodes), found)


def _may_grow(before: int | None, series: list[int], nodes: list[int]) -> bool:
    """Whether it is worth a look at the heap half way, to be compared with one at the end."""
    start = series[0] if before is None else before
    return READS_PACKED and (series[-1] > start or nodes[-1] > nodes[0])
