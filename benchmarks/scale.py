"""A million saved tensors: memlab's cost for each, and its own memory for each, from 10^4 to 10^6.

    python benchmarks/scale.py

The cost is what watching adds to making a chain of so many saved tensors and dropping it again, per saved tensor, with
Python's garbage collector at work as it comes. The memory is what Python allocates for memlab (tracemalloc); the
detached tensors that stand in for the saved ones take the place of those that autograd would have kept.
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from contextlib import nullcontext

import torch

import memlab
from memlab.doctor import machine

COUNTS = (10_000, 100_000, 1_000_000)
TOTAL = COUNTS[-1]


def chain(count: int) -> torch.Tensor:
    y = torch.ones(1, requires_grad=True)
    for _ in range(count):
        y = y.sin()
    return y


def seconds(count: int, *, watched: bool) -> float:
    """Seconds for `TOTAL` saved tensors, so many at a time; no collection is forced between, as none is in a loop."""
    gc.collect()
    began = time.perf_counter()
    for _ in range(TOTAL // count):
        with memlab.watch(storages=False) if watched else nullcontext():
            y = chain(count)
        del y
    return time.perf_counter() - began


def cost(count: int) -> float:
    """Microseconds that watching adds to each saved tensor."""
    bare = seconds(count, watched=False)
    return 1e6 * (seconds(count, watched=True) - bare) / TOTAL


def costs(rounds: int) -> dict[int, float]:
    """Every count takes its turn in each round, so that a machine that slows down slows all of them."""
    taken: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(rounds):
        for count in COUNTS:
            taken[count].append(cost(count))
    return {count: statistics.median(each) for count, each in taken.items()}


def bytes_each(count: int) -> float:
    gc.collect()
    tracemalloc.start()
    try:
        with memlab.watch(storages=False) as seen:
            y = chain(count)
            held = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*memlab*")])
        assert seen.saved.tensors == count
        del y
        return sum(each.size for each in held.statistics("filename")) / count
    finally:
        tracemalloc.stop()


def main() -> None:
    torch.set_num_threads(1)
    chain(10_000)
    print("\n".join(f"{key}: {value}" for key, value in machine("cpu").items()), end="\n\n")
    print("| saved tensors | memlab's time each | to 10,000 | memlab's memory each |\n|---:|---:|---:|---:|")
    found = costs(rounds=5)
    for count, each in found.items():
        print(f"| {count:,} | {each:.2f} us | {each / found[COUNTS[0]]:.2f}x | {bytes_each(count):.0f} B |", flush=True)


if __name__ == "__main__":
    main()
