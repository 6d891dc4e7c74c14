"""Known ways in which memory grows: how each is recognised in an owner, and the experiment's arm that shows its cure.

Plain data and small functions over facts: what holds the tensors, what made them, whether their number grows, and what
the storing statements do. No name of the user's variables or functions plays a part. Importing this imports neither
torch nor rich.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

GRAPH, TENSORS = "graph", "tensors"  # what an owner holds, as `memlab.Owner` says


@dataclass(frozen=True)
class Clue:
    """What is known of an owner.

    Attributes:
        name, where: the variable and where it lives, for the advice and for attributes of torch's own classes alone.
        place: likewise, where in the variable the tensor is that stands for all: ``"['total']"``.
        kind, holds, elements, through, scalar, made_by, evaluating: as in `memlab.Owner`.
        grows: whether its bytes or nodes rose from step to step.
        piles: whether the number of its elements rose, too; None where that is not known.
        stores: what the statements that store into it do, as `memlab.tracing.stores.stores` says.
    """

    name: str
    where: str = ""
    place: str = ""
    kind: str = ""
    holds: str = GRAPH
    elements: int = 1
    through: tuple[str, ...] = ()
    scalar: bool = False
    made_by: tuple[str, ...] = ()
    evaluating: bool = False
    grows: bool = True
    piles: bool | None = None
    stores: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pattern:
    """A known way to grow.

    Attributes:
        name: in a word or two.
        what: what happens, in a sentence.
        fix: what to write instead; ``{name}`` stands for the variable, ``{place}`` for the place in it.
        cure: ``experiment:arm`` that shows the cure; empty where nothing is to be cured.
        fits: whether an owner is one of these.
        holds: what owners of this kind hold.
        fix_of_tuple: what to write instead where the variable is a tuple, which has no ``detach``; empty for the same.
    """

    name: str
    what: str
    fix: str
    cure: str
    fits: Callable[[Clue], bool]
    holds: tuple[str, ...] = (GRAPH,)
    fix_of_tuple: str = ""

    def advice(self, clue: Clue) -> str:
        fix = self.fix_of_tuple if self.fix_of_tuple and clue.through == ("tuple",) else self.fix
        return fix.format(name=clue.name, place=clue.place)


_STORES = frozenset({"list", "dict", "deque", "set"})  # what can take one more element
_OF_FUNCTIONS = ("closure", "default argument")
_ATTRIBUTES = ("tensor attribute", "cycle")


def _many(clue: Clue) -> bool:
    return clue.piles if clue.piles is not None else clue.elements > 1 or not _STORES.isdisjoint(clue.through)


def _carried(clue: Clue) -> bool:
    """The same number of tensors in every step, and what they lead to grows."""
    return clue.grows and not _many(clue)


def _averages(clue: Clue) -> bool:
    return "mix" in clue.stores or any(node.startswith("Lerp") for node in clue.made_by[:1])


def _adds_up(clue: Clue) -> bool:
    """Where no statement was found, or none tells of numbers how they came about, the nodes do: a sum of a sum."""
    if "add" in clue.stores:
        return True
    return (not clue.stores or clue.scalar) and [node.startswith("Add") for node in clue.made_by[:2]] == [True, True]


KNOWN = [
    Pattern(
        "traceback",
        "a kept exception keeps its frames, and with them every tensor in them",
        "keep str(error) instead of the error, or set error.__traceback__ to None",
        "who_keeps:error_text_kept",
        lambda clue: clue.kind == "traceback" or "traceback" in clue.through,
        holds=(GRAPH, TENSORS),
    ),
    Pattern(
        "lru_cache",
        "a cached function keeps its results, and their graphs",
        "cache numbers or detached tensors, and give the cache a maxsize",
        "who_keeps:cache_of_detached",
        lambda clue: clue.kind == "lru_cache" or "lru_cache" in clue.through,
        holds=(GRAPH, TENSORS),
    ),
    Pattern(
        "create_graph cycle",
        "backward(create_graph=True) makes a cycle: the parameter holds its gradient, whose graph leads back to it",
        "use torch.autograd.grad(..., create_graph=True), or set the gradients to None after each step",
        "retain_graph:gradients_replaced",
        lambda clue: clue.kind in _ATTRIBUTES and clue.name.endswith(".grad"),
    ),
    Pattern(
        "growing detached cache",
        "plain tensors pile up; no graph is involved, so detach() changes nothing",
        "bound {name} (deque(maxlen=...)), move its tensors to the CPU, or drop what is used up",
        "who_keeps:bounded",
        lambda clue: clue.grows or _many(clue),
        holds=(TENSORS,),
    ),
    Pattern(
        "hook store",
        "a hook stores what passes, and each tensor leads to its whole graph",
        "store output.detach() in the hook, and clear {name} in every step",
        "who_keeps:hook_keeps_detached",
        lambda clue: clue.kind == "hook" or "hooks" in clue.through or "hook" in clue.stores,
    ),
    Pattern(
        "closure",
        "a function keeps the variables that it closes over, and the graphs behind them",
        "let the function close over a number (item()) or over detach(), or drop the function",
        "who_keeps:closures_of_numbers",
        lambda clue: (
            "function" in clue.through or (clue.kind in _OF_FUNCTIONS and clue.elements > 1 and not clue.through)
        ),
    ),
    Pattern(
        "eval without no_grad",
        "modules in evaluation mode record graphs that nobody walks back through",
        "run it under torch.no_grad() or torch.inference_mode()",
        "inference_modes:no_grad",
        lambda clue: clue.evaluating and (clue.grows or _many(clue)),
    ),
    Pattern(
        "replay buffer",
        "a deque stores tensors together with the graphs that made them",
        "store tensors made under torch.no_grad(), or .detach() them on the way into {name}",
        "who_keeps:replay_of_detached",
        lambda clue: _many(clue) and "deque" in clue.through and not clue.scalar,
    ),
    Pattern(
        "kept losses",
        "each loss leads to its whole graph",
        "keep loss.item() or loss.detach()",
        "forward_without_backward:numbers_kept",
        lambda clue: _many(clue) and clue.scalar,
    ),
    Pattern(
        "kept outputs",
        "each output leads to its whole graph",
        "keep output.detach(), or compute it under torch.no_grad()",
        "forward_without_backward:detached_kept",
        _many,
    ),
    Pattern(
        "accumulated loss",
        "a sum of losses leads to the graph of every loss so far",
        "add loss.item(), or loss.detach(), to {name}{place}",
        "forward_without_backward:total_of_numbers",
        lambda clue: _carried(clue) and _adds_up(clue) and not _averages(clue),
    ),
    Pattern(
        "average with history",
        "an average that is updated with gradients on leads to every value that went into it",
        "update {name}{place} under torch.no_grad(), or with value.detach()",
        "who_keeps:average_of_detached",
        lambda clue: _carried(clue) and _averages(clue),
    ),
    Pattern(
        "undetached recurrent state",
        "a state that is carried on carries the graph of every step so far",
        "cut it at the window: {name}{place} = {name}{place}.detach()",
        "dynamic_graph:detached_every_window",
        _carried,
        fix_of_tuple="cut it at the window: {name} = tuple(each.detach() for each in {name})",
    ),
]
"""In the order in which they are tried; the first that fits is the answer."""

CARRIED = frozenset({"accumulated loss", "average with history", "undetached recurrent state"})
"""Of these, those in which one value leads to all before it."""


FILLS = Pattern(
    "history that fills",
    "LBFGS keeps directions and steps of its last history_size iterations, and grows until it has them",
    "none is needed: LBFGS stops growing at history_size iterations (100 unless told); fewer need less",
    "",
    lambda clue: clue.where.startswith("attribute of LBFGS") and clue.name.endswith(".state"),
    holds=(TENSORS,),
)
"""Growth that ends by itself."""


def recognise(clue: Clue) -> Pattern | None:
    """Return the known pattern that an owner is, None when none fits."""
    if clue.holds in FILLS.holds and FILLS.fits(clue):
        return FILLS
    return next((pattern for pattern in KNOWN if clue.holds in pattern.holds and pattern.fits(clue)), None)
