"""How long one `memlab.owners()` takes: beside many Python objects, with many tensors, and on a graph of many nodes.

    python benchmarks/owners.py

Beside the time for a deep graph stands the floor: a bare loop that asks each node of a fresh graph for the next, and
where nodes save tensors for those, too. Nothing that reads the whole graph from Python is faster.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import memlab
from memlab.doctor import machine
from memlab.node_names import saved_by
from memlab.origins import storage_key
from memlab.ownership.survey import survey

COUNTS = (0, 300_000, 1_000_000)
NODES = (100_000, 1_000_000)
TENSORS, MANY_TENSORS = 100_000, 300_000
STEPS = {"y = y + 1": lambda y: y + 1, "y = y.exp()": torch.exp}


class Thing:
    def __init__(self, number: int) -> None:
        self.numbers, self.by_name = [number], {"pair": (number, [number])}


class Holder:
    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def module(tensor: Tensor) -> nn.Module:
    made = nn.Module()
    made.register_buffer("state", tensor)
    return made


STORES: dict[str, Callable[[list[Tensor]], Any]] = {
    "one list": list,
    "one dict": lambda tensors: dict(enumerate(tensors)),
    "ten lists in a list": lambda tensors: [tensors[start::10] for start in range(10)],
    "an object for each, in a list": lambda tensors: [Holder(each) for each in tensors],
    "a tuple for each, in a list": lambda tensors: [(0.5, each) for each in tensors],
    "an object with a dict for each": lambda tensors: [Holder({"loss": each}) for each in tensors],
    "an object in an object for each": lambda tensors: [Holder(Holder(each)) for each in tensors],
    "a module for each, in a list": lambda tensors: [module(each) for each in tensors],
}
MANY_IN = ("one list", "an object for each, in a list", "an object with a dict for each")
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": torch.ones_like,
    "(x * 2).sum(), a graph each": lambda x: (x * 2).sum(),
    "x.exp(), a graph each that saves": torch.exp,
}


def main() -> None:
    torch.set_num_threads(1)
    print("\n".join(f"{key}: {value}" for key, value in machine("cpu").items()), end="\n\n")
    print("| objects in the heap | seconds (best of 3) |\n|---:|---:|")
    for count in COUNTS:
        beside(count)
    print("\n| tensors | each is | held by | objects | seconds (best of 3) | on the CPU | followed | all read |")
    print("|---:|---|---|---:|---:|---:|---:|---|")
    for text, op in KINDS.items():
        for store in STORES:
            many(text, op, store, TENSORS)
            if text.startswith("(x * 2)") and store in MANY_IN:
                many(text, op, store, MANY_TENSORS)
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


def many(text: str, op: Callable[[Tensor], Tensor], store: str, count: int) -> None:
    x = torch.ones(2, requires_grad=text != "plain")
    tensors = [op(x) for _ in range(count)]
    made = {storage_key(each): 8 for each in tensors} if text == "plain" else {}
    held = STORES[store](tensors)
    del tensors
    taken, worked = [], []
    for _ in range(3):
        began, at_work = time.perf_counter(), time.thread_time()
        (owner,) = survey(made=made, seconds=2.0).owners  # with nothing in ``made``, what `memlab.owners()` does
        taken.append(time.perf_counter() - began)
        worked.append(time.thread_time() - at_work)
        assert owner.name == "held" and (owner.elements == count or not owner.complete)
    size = f"{count:,} | {text} | {store} | {len(gc.get_objects()):,}"
    read = f"{owner.elements:,} | {'yes' if owner.complete else 'no'}"
    print(f"| {size} | {min(taken):.2f} | {min(worked):.2f} | {read} |", flush=True)
    del held


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
