"""One owner: a Python name that keeps autograd graphs, or tensors, alive."""

from __future__ import annotations

from dataclasses import dataclass

from memlab.units import format_bytes


@dataclass(frozen=True)
class Owner:
    """A Python name that keeps autograd graphs alive; plain data, it keeps nothing alive itself.

    All elements of one container are one owner: the variable that holds the container.

    Attributes:
        path: from the name to a node, such as
            ``"losses (local of train(), train.py:31) -> list[412] -> Tensor -> MeanBackward0"``; the last element
            stands for all.
        name: what to write in code to reach it, such as ``"losses"`` or ``"trainer.history"``.
        where: where that name lives, such as ``"local of train(), train.py:31"``.
        kind: what sort of name it is: local, generator, coroutine, traceback, global, instance attribute, class
            attribute, closure, default argument, lru_cache, thread-local, tensor attribute, hook, ctx attribute, cycle,
            fixture, temporary, or C++ only.
        bytes: saved bytes that it reaches, each storage once; parameters, buffers and inputs left out, as in a `Bill`.
            Of an owner of plain tensors (``holds == "tensors"``), the bytes of their storages.
        exclusive_bytes: of these, what only it reaches: freed if this one name went.
        tensors: saved tensors that it reaches (or plain tensors).
        nodes: autograd nodes that it reaches.
        exclusive_nodes: of these, what only it reaches.
        elements: how many tensors it holds that lead to graphs, such as 412 losses.
        born: ``"file:line"`` (in a notebook ``"Cell In[3], line 4"``) where most of the bytes were saved, if a watch
            recorded it. Of plain tensors, and where no graph keeps what was recorded: where most of the bytes were
            made, of those that are new since a trace's warm-up before others; `memlab.growth`, ``memlab trace`` and
            ``watch(births=True)`` record that. Else ``"unknown"``.
        holds: ``"graph"``, or ``"tensors"`` for plain tensors without a graph.
        freed_by_gc: only a reference cycle holds it, and Python's garbage collector alone would free it.
        bytes_per_step: by how many bytes it grew in each step; known to `memlab.growth` only, else 0.
        nodes_per_step: likewise, autograd nodes.
        elements_per_step: likewise, elements.
        through: what lies on the way from the name to a tensor, the outermost first: ``list``, ``tuple``, ``dict``,
            ``deque``, ``set``, ``function``, ``generator``, ``hooks``, ``traceback``, ``frame``, ``lru_cache``,
            ``node``, or ``object``.
        scalar: whether every tensor that it holds is a single number (0-dim).
        made_by: the name of the node of the tensor at the end of ``path``, then of those that it leads to.
        evaluating: whether the modules that saved what it reaches are, as far as they are known, in evaluation mode.
        complete: whether its graphs were read to their ends, and all tensors were followed. If not, for want of time,
            then ``bytes``, ``tensors``, ``nodes`` and ``elements`` are at least what they say, and what it alone seems
            to keep others may reach, too; ``path`` says how many nodes were read and tensors followed.
    """

    path: str
    name: str
    where: str
    kind: str
    bytes: int
    exclusive_bytes: int
    tensors: int
    nodes: int
    exclusive_nodes: int
    elements: int
    born: str = "unknown"
    holds: str = "graph"
    freed_by_gc: bool = False
    bytes_per_step: int = 0
    nodes_per_step: int = 0
    elements_per_step: int = 0
    through: tuple[str, ...] = ()
    scalar: bool = False
    made_by: tuple[str, ...] = ()
    evaluating: bool = False
    complete: bool = True

    def __repr__(self) -> str:
        told = f"{format_bytes(self.bytes)}, {format_bytes(self.exclusive_bytes)} alone"
        if self.bytes_per_step:
            told += f", {format_bytes(self.bytes_per_step)} more every step"
        if self.born != "unknown":
            told += f", born at {self.born}"
        return f"<Owner {self.name} ({self.where}): {told}>"
