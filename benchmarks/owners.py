"""How long one `memlab.owners()` takes beside a heap of so many Python objects.

python benchmarks/owners.py
"""

from __future__ import annotations

import gc
import time

import torch

import memlab
from memlab.doctor import machine

COUNTS = (0, 300_000, 1_000_000)


class Thing:
    def __init__(self, number: int) -> None:
        self.numbers, self.by_name = [number], {"pair": (number, [number])}


def main() -> None:
    torch.set_num_threads(1)
    x = torch.ones(16, requires_grad=True)
    losses = [x.exp().mean() for _ in range(412)]
    print("\n".join(f"{key}: {value}" for key, value in machine("cpu").items()), end="\n\n")
    print("| objects in the heap | seconds (best of 3) |\n|---:|---:|")
    for count in COUNTS:
        things = [Thing(number) for number in range(count // 5)]
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            (owner,) = memlab.owners()
            taken.append(time.perf_counter() - began)
            assert (owner.name, owner.elements) == ("losses", len(losses))
        print(f"| {len(gc.get_objects()):,} | {min(taken):.2f} |", flush=True)
        del things


if __name__ == "__main__":
    main()
