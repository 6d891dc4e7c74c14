"""How many operations a second the allocator model does, on several mixes. An operation is one malloc or one free.

    python benchmarks/allocator.py [--runs 5] [--operations 200000]

Each mix is written down first and then replayed on a fresh card; the time of the replay loop is part of the result.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from memlab.allocator import Allocator
from memlab.doctor import machine

Script = list[tuple[int, int, int]]  # slot, bytes (0: free), stream
KIB, MIB = 1 << 10, 1 << 20
BAR = 200_000  # operations a second


def training(rng: random.Random, operations: int) -> Script:
    """Steps of a 12-layer transformer: activations kept and freed backwards, temporaries freed at once."""
    kept = [3 * MIB, 3 * MIB, 9 * MIB, 3 * MIB, 12 * MIB, 12 * MIB, 4 * KIB, 4 * KIB, 512, 96 * KIB]
    script: Script = []
    for slot in range(148):  # parameters stay
        script.append((slot, rng.choice((3 * KIB, 9 * KIB, 2304 * KIB, 6912 * KIB, 9 * MIB)), 0))
    while len(script) < operations:
        first, slot, scale = 1000, 1000, rng.choice((1.0, 1.0, 0.75))
        for _ in range(12):
            for size in kept:
                script += [(slot, int(size * scale), 0), (999, 1536 * KIB, 0), (999, 0, 0)]
                slot += 1
        for back in reversed(range(first, slot)):
            script += [(999, 2 * MIB, 0), (back, 0, 0), (999, 0, 0)]
    return script


def scattered(
    sizes: Callable[[random.Random], int], live: int, streams: int = 1
) -> Callable[[random.Random, int], Script]:
    """Mallocs and frees in random order around a constant number of live blocks."""

    def mix(rng: random.Random, operations: int) -> Script:
        script: Script = []
        slots: list[int] = []
        for slot in range(operations):
            if slots and rng.random() < len(slots) / (2 * live):
                at = rng.randrange(len(slots))
                slots[at], slots[-1] = slots[-1], slots[at]
                script.append((slots.pop(), 0, 0))
            else:
                script.append((slot, sizes(rng), rng.randrange(streams)))
                slots.append(slot)
        return script

    return mix


def small(rng: random.Random) -> int:
    return rng.randrange(1, MIB)


def mixed(rng: random.Random) -> int:
    return int(2 ** rng.uniform(0, 27))


MIXES: dict[str, tuple[Callable[[random.Random, int], Script], str]] = {
    "training step": (training, ""),
    "random sizes, 300 live": (scattered(mixed, 300), ""),
    "random sizes, 300 live, two streams": (scattered(mixed, 300, 2), ""),
    "small sizes, 20000 live": (scattered(small, 20_000), ""),
    "random sizes, 20000 live": (scattered(mixed, 20_000), ""),
    "training step, expandable": (training, "expandable_segments:True"),
    "random sizes, 300 live, expandable": (scattered(mixed, 300), "expandable_segments:True"),
    "random sizes, 300 live, max_split, roundup": (
        scattered(mixed, 300),
        "max_split_size_mb:64,roundup_power2_divisions:8",
    ),
}


def replay(script: Script, conf: str) -> tuple[float, Allocator]:
    """Seconds for one replay, and the card after it."""
    card = Allocator(total=1 << 42, conf=conf)
    malloc, free = card.malloc, card.free
    addresses: dict[int, int] = {}
    start = time.perf_counter()
    for slot, size, stream in script:
        if size:
            addresses[slot] = malloc(size, stream)
        else:
            free(addresses.pop(slot))
    return time.perf_counter() - start, card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--operations", type=int, default=200_000)
    arguments = parser.parse_args()
    print("\n".join(f"{key}: {value}" for key, value in machine("cpu").items()), end="\n\n")
    print(f"| mix | operations | median of {arguments.runs}, a second | slowest | bar | free blocks at the end |")
    print("|---|---:|---:|---:|---|---:|")
    for name, (mix, conf) in MIXES.items():
        script = mix(random.Random(0), arguments.operations)
        runs = [replay(script, conf) for _ in range(arguments.runs)]
        seconds = [seconds for seconds, _ in runs]
        card = runs[0][1]
        free = sum(len(stream) for pool in (card.small_blocks, card.large_blocks) for stream in pool.free.values())
        median, slowest = len(script) / statistics.median(seconds), len(script) / max(seconds)
        bar = f"{BAR:,}: {'met' if median >= BAR else 'missed'}"
        print(f"| {name} | {len(script):,} | {median:,.0f} | {slowest:,.0f} | {bar} | {free:,} |", flush=True)


if __name__ == "__main__":
    main()
