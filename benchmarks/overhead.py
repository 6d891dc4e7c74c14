"""What watching costs, beside what a user would pick instead: ratios to a bare training step, in one run.

    python benchmarks/overhead.py [--rounds 30] [--device cuda] [--json FILE]

Every way takes its turn in each round, so that a machine that slows down slows all of them; a row is the median over
the rounds of the ratio to the bare step of the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile

import memlab
from memlab.doctor import machine

WIDTHS = (32, 128, 256)
WAYS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "bare step": nullcontext,
    "empty saved-tensor hooks": lambda: saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    "watch, saved only": lambda: memlab.watch(storages=False, where=False),
    "watch, saved + lines": lambda: memlab.watch(storages=False, modules=False),
    "watch, saved + lines + modules": lambda: memlab.watch(storages=False),
    "watch, saved + storages": lambda: memlab.watch(where=False),
    "watch, everything": memlab.watch,
    "watch, everything + births": lambda: memlab.watch(births=True),
    "torch.profiler, profile_memory": lambda: profile(activities=[ProfilerActivity.CPU], profile_memory=True),
    "torch's MemTracker": MemTracker,
}
BARS = {
    ("watch, saved only", 32): 1.35,
    ("watch, saved only", 256): 1.05,
    ("watch, saved + lines + modules", 32): 2.2,
    ("watch, saved + lines + modules", 256): 1.10,
    ("watch, saved + storages", 32): 3.0,
    ("watch, saved + storages", 256): 1.15,
    ("watch, everything", 32): 3.0,
    ("watch, everything", 256): 1.15,
}


SHAPES = {32: (8, 16), 128: (8, 64), 256: (8, 128)}  # batch and sequence: a tiny, a small and a large step


def make_step(width: int, device: str) -> Callable[[], None]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model.to(device)
    x = torch.randn(*SHAPES[width], width, device=device)

    def step() -> None:
        model(x).square().mean().backward()
        model.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def seconds(step: Callable[[], None], way: Callable[[], AbstractContextManager[object]], steps: int) -> float:
    """Seconds of one step; entering and leaving are not counted, a watch may stay open over a whole training run."""
    with way() as opened:
        reset = getattr(opened, "reset_mod_stats", lambda: None)  # MemTracker wants it before every iteration
        reset()
        step()
        began = time.perf_counter()
        for _ in range(steps):
            reset()
            step()
        return (time.perf_counter() - began) / steps


def measure(width: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    step = make_step(width, device)
    seconds(step, nullcontext, 3)
    steps = max(1, round(0.05 / seconds(step, nullcontext, 3)))
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            taken[name].append(seconds(step, way, steps))
    bare = taken["bare step"]
    return {
        name: {
            "ratio": round(statistics.median(a / b for a, b in zip(each, bare, strict=True)), 3),
            "milliseconds": round(1000 * statistics.median(each), 3),
        }
        for name, each in taken.items()
    }


def table(found: dict[int, dict[str, dict[str, float]]]) -> str:
    lines = ["| way | " + " | ".join(f"d={width}" for width in found) + " |", "|---|" + "---:|" * len(found)]
    for name in WAYS:
        cells = []
        for width, rows in found.items():
            bar = BARS.get((name, width))
            row = rows[name]
            text = f"{row['milliseconds']:.2f} ms" if name == "bare step" else f"{row['ratio']:.2f}x"
            cells.append(text if bar is None else f"{text} (bar {bar}: {'met' if row['ratio'] <= bar else 'MISSED'})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {width: measure(width, options.rounds, options.device) for width in WIDTHS}
    print("\n".join(f"{key}: {value}" for key, value in machine(options.device).items()), end="\n\n")
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(options.device), "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
