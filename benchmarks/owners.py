"""How long one `memlab.owners()` takes: beside a heap of so many Python objects, and on a graph of so many nodes.

    python benchmarks/owners.py

Beside the time for a deep graph stands the floor: a bare loop that asks each node of a fresh graph for the next, and
where nodes save tensors for those, too. Nothing that reads the whole graph from Python is faster.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch
from torch import Tensor

import memlab
from memlab.doctor import machine
from memlab.node_names import saved_by

COUNTS = (0, 300_000, 1_000_000)
NODES = (100_000, 1_000_000)
STEPS = {"y = y + 1": lambda y: y + 1, "y = y.exp()": torch.exp}


class Thing:
    def __init__(self, number: int) -> None:
        self.numbers, self.by_name = [number], {"pair": (number, [number])}


def main() -> None:
    torch.set_num_threads(1)
    print("\n".join(f"{key}: {value}" for key, value in machine("cpu").items()), end="\n\n")
    print("| objects in the heap | seconds (best of 3) |\n|---:|---:|")
    for count in COUNTS:
        beside(count)
    print("\n| graph | nodes | look | seconds | nodes read | bare loop, seconds |\n|---|---:|---|---:|---:|---:|")
    for text, op in STEPS.items():
        for nodes in NODES:
            deep(text, op, nodes)


def beside(count: int) -> None:
    x = torch.ones(16, requires_grad=True)
    losses = [x.exp().mean() for _ in range(412)]
    things = [Thing(number) for number in range(count // 5)]
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        (owner,) = memlab.owners()
        taken.append(time.perf_counter() - began)
        assert (owner.name, owner.elements) == ("losses", len(losses))
    print(f"| {len(gc.get_objects()):,} | {min(taken):.2f} |", flush=True)
    del things


def deep(text: str, op: Callable[[Tensor], Tensor], nodes: int) -> None:
    floor = bare_loop(chain(op, nodes))
    for look, seconds in {"first": 2.0, "again": 2.0, "seconds=None": None}.items():
        if look != "again":
            y = chain(op, nodes)
        began = time.perf_counter()
        owner = memlab.owners(y, seconds=seconds)[0]
        taken = time.perf_counter() - began
        assert owner.name == "y"
        print(f"| {text} | {nodes:,} | {look} | {taken:.2f} | {owner.nodes:,} | {floor:.2f} |", flush=True)


def chain(op: Callable[[Tensor], Tensor], nodes: int) -> Tensor:
    y = torch.ones(2, requires_grad=True)
    for _ in range(nodes):
        y = op(y)
    return y


def bare_loop(y: Tensor) -> float:
    gc.disable()  # as `owners` does
    began = time.perf_counter()
    nodes = [y.grad_fn]
    while nodes[-1].next_functions:
        for _ in saved_by(nodes[-1]):
            pass
        nodes.append(nodes[-1].next_functions[0][0])
    taken = time.perf_counter() - began
    gc.enable()
    del y
    nodes.reverse()
    while nodes:  # the newest first, while the next is held: torch frees recursively what Python has seen
        nodes.pop()
    return taken


if __name__ == "__main__":
    main()
