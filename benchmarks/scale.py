"""A million saved tensors: memlab's cost for each, and its own memory for each, from 10^4 to 10^6.

    python benchmarks/scale.py

The cost is the time of a watched forward less that of a bare one, per saved tensor. The memory is what Python allocates
for memlab (tracemalloc); the detached tensors that stand in for the saved ones take the place of those that autograd
would have kept.
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


def chain(count: int) -> torch.Tensor:
    y = torch.ones(1, requires_grad=True)
    for _ in range(count):
        y = y.sin()
    return y


def seconds(count: int, *, watched: bool) -> float:
    gc.collect()
    with memlab.watch(storages=False) if watched else nullcontext():
        began = time.perf_counter()
        y = chain(count)
        taken = time.perf_counter() - began
    del y
    return taken


def microseconds_each(count: int, repeats: int = 3) -> float:
    differences = [seconds(count, watched=True) - seconds(count, watched=False) for _ in range(repeats)]
    return 1e6 * statistics.median(differences) / count


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
    print("| saved tensors | memlab's time each | memlab's memory each |\n|---:|---:|---:|")
    for count in COUNTS:
        print(f"| {count:,} | {microseconds_each(count):.2f} us | {bytes_each(count):.0f} B |", flush=True)


if __name__ == "__main__":
    main()
