"""Known ways in which memory grows: how each is recognised in an owner, and the experiment's arm that shows its cure.

Plain data and small functions over the words of an owner path. Importing this imports neither torch nor rich.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clue:
    """What an owner says of itself, as in `memlab.Owner`, and the lines of code that store into its name.

    ``grows`` is whether its bytes or nodes rose from step to step, ``stored`` the text of those lines.
    """

    name: str
    path: str
    where: str = ""
    kind: str = ""
    holds: str = "graph"
    elements: int = 1
    grows: bool = True
    stored: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Pattern:
    """A known way to grow.

    Attributes:
        name: in a word or two.
        what: what happens, in a sentence.
        fix: what to write instead; ``{name}`` stands for the variable.
        cure: ``experiment:arm`` that shows the cure.
        fits: whether an owner is one of these.
    """

    name: str
    what: str
    fix: str
    cure: str
    fits: Callable[[Clue], bool]

    def advice(self, clue: Clue) -> str:
        return self.fix.format(name=clue.name)


_CONTAINER = re.compile(r"-> (?:\w+\.)?(?:list|dict|deque|set|frozenset|tuple|OrderedDict|defaultdict)\b|-> \[|\[\d+\]")
_FUNCTION = re.compile(r"-> [\w.<>]+\(\) ->")
_LOSSES = re.compile(r"(?:Mean|Sum|Loss|NllLoss\w*|Entropy\w*|Div)Backward\d*")
_LOSS_NAME = re.compile(r"loss|total|acc|sum|score|cost|error|energy", re.IGNORECASE)
_AVERAGE = re.compile(
    r"(?:^|[._\W])(?:ema|avg|average|running|moving|momentum|shadow|centroids?|center|prototypes?|baseline)"
    r"(?:$|[._\W]|\w*$)|lerp",
    re.IGNORECASE,
)
_BUFFER = re.compile(r"replay|buffer|memory|transitions|trajector|rollouts?|episodes?", re.IGNORECASE)
_EVALUATION = re.compile(r"\b\w*(?:eval|valid|test|infer|predict|generate)\w*\(\)", re.IGNORECASE)


def _many(clue: Clue) -> bool:
    return clue.elements > 1 or _contained(clue)


def _contained(clue: Clue) -> bool:
    return bool(_CONTAINER.search(clue.path))


def _single(clue: Clue) -> bool:
    return clue.grows and not _many(clue)


def _adds_up(clue: Clue) -> bool:
    own = re.escape(clue.name.rpartition(".")[2])
    if re.search(rf"\b{own}\s*\+=|\b{own}\s*=\s*(?:\w+\.)*{own}\s*\+|\b{own}\.add_\(", clue.stored):
        return True
    return not clue.stored and "AddBackward" in clue.path and bool(_LOSS_NAME.search(clue.name))


def _averages(clue: Clue) -> bool:
    own = re.escape(clue.name.rpartition(".")[2])
    weighted = rf"\b{own}\s*=.*\*\s*(?:\w+\.)*{own}\b|\b{own}\s*=.*\b{own}\s*\*|\b{own}\.(?:mul_|lerp_|lerp)\("
    return bool(re.search(weighted, clue.stored)) or bool(_AVERAGE.search(clue.name)) or "LerpBackward" in clue.path


KNOWN = [
    Pattern(
        "traceback",
        "a kept exception keeps its frames, and with them every tensor in them",
        "keep str(error) instead of the error, or set error.__traceback__ to None",
        "who_keeps:error_text_kept",
        lambda clue: clue.kind == "traceback" or "__traceback__" in clue.path,
    ),
    Pattern(
        "lru_cache",
        "a cached function keeps its results, and their graphs",
        "cache numbers or detached tensors, and give the cache a maxsize",
        "who_keeps:cache_of_detached",
        lambda clue: clue.kind == "lru_cache" or "lru_cache" in clue.path,
    ),
    Pattern(
        "create_graph cycle",
        "backward(create_graph=True) makes a cycle: the parameter holds its gradient, whose graph leads back to it",
        "use torch.autograd.grad(..., create_graph=True), or set the gradients to None after each step",
        "retain_graph:gradients_replaced",
        lambda clue: clue.holds == "graph" and (clue.kind == "cycle" or bool(re.search(r"\.grad\b", clue.path))),
    ),
    Pattern(
        "growing detached cache",
        "plain tensors pile up; no graph is involved, so detach() changes nothing",
        "bound {name} (deque(maxlen=...)), move its tensors to the CPU, or drop what is used up",
        "who_keeps:bounded",
        lambda clue: clue.holds == "tensors",
    ),
    Pattern(
        "hook store",
        "a hook stores what passes, and each tensor leads to its whole graph",
        "store output.detach() in the hook, and clear {name} in every step",
        "who_keeps:hook_keeps_detached",
        lambda clue: clue.kind == "hook" or "hook" in clue.stored or bool(re.search(r"_hooks?\b", clue.path)),
    ),
    Pattern(
        "replay buffer",
        "a buffer of experience stores tensors together with the graphs that made them",
        "store tensors made under torch.no_grad(), or .detach() them on the way into {name}",
        "who_keeps:replay_of_detached",
        lambda clue: _many(clue) and (bool(_BUFFER.search(clue.name)) or "deque" in clue.path),
    ),
    Pattern(
        "eval without no_grad",
        "evaluation records graphs that nobody walks back through",
        "run it under torch.no_grad() or torch.inference_mode()",
        "inference_modes:no_grad",
        lambda clue: _many(clue) and bool(_EVALUATION.search(clue.where)),
    ),
    Pattern(
        "closure",
        "a function keeps the variables that it closes over, and the graphs behind them",
        "let the function close over {name}.item() or {name}.detach(), or drop the function",
        "who_keeps:closures_of_numbers",
        lambda clue: (
            bool(_FUNCTION.search(clue.path))
            or (clue.kind in ("closure", "default argument") and clue.elements > 1 and not _contained(clue))
        ),
    ),
    Pattern(
        "kept losses",
        "each loss leads to its whole graph",
        "keep loss.item() or loss.detach()",
        "forward_without_backward:numbers_kept",
        lambda clue: _many(clue) and bool(_LOSSES.search(clue.path) or "loss" in clue.name.lower()),
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
        "add loss.item(), or loss.detach(), to {name}",
        "forward_without_backward:total_of_numbers",
        lambda clue: _single(clue) and _adds_up(clue) and not _averages(clue),
    ),
    Pattern(
        "average with history",
        "an average that is updated with gradients on leads to every value that went into it",
        "update {name} under torch.no_grad(), or with value.detach()",
        "who_keeps:average_of_detached",
        lambda clue: _single(clue) and _averages(clue),
    ),
    Pattern(
        "undetached recurrent state",
        "a state that is carried on carries the graph of every step so far",
        "cut it at the window: {name} = {name}.detach()",
        "dynamic_graph:detached_every_window",
        _single,
    ),
]
"""In the order in which they are tried; the first that fits is the answer."""


def recognise(clue: Clue) -> Pattern | None:
    """Return the known pattern that an owner is, None when none fits."""
    return next((pattern for pattern in KNOWN if pattern.fits(clue)), None)
