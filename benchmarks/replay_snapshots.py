"""Snapshots of torch's own allocator, read back: whether the history and its replay give torch's numbers.

    python benchmarks/replay_snapshots.py [--programs 4] [--calls 3000]

Random programs run on a CUDA device under a memory fraction, so that some requests fail. Each snapshot is read as any
stranger's; what the history says is compared with memory_stats(), and so is its replay through the model under the
same settings. Every program has a process of its own, for settings are read at its start.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIGURATIONS = ("", "expandable_segments:True", "max_split_size_mb:40", "roundup_power2_divisions:4")
FRACTION = 0.02


def program(seed: int, calls: int) -> str:
    """Run one program and return its row of the table."""
    import torch

    from memlab.snapshots import content, page, summary

    random_ = random.Random(seed)
    torch.cuda.set_per_process_memory_fraction(FRACTION)
    torch.empty(1, device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.memory._record_memory_history(stacks="python")
    torch.cuda.reset_peak_memory_stats()
    live: list[object] = []
    for _ in range(calls):
        what = random_.random()
        try:
            if what < 0.58:
                live.append(torch.empty(int(2 ** random_.uniform(5, 27.5)), dtype=torch.uint8, device="cuda"))
            elif what < 0.997 and live:
                live.pop(random_.randrange(len(live)))
            elif what > 0.998:
                torch.cuda.empty_cache()
        except torch.OutOfMemoryError:
            live = live[::2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.pickle"
        torch.cuda.memory._dump_snapshot(str(path))
        data = path.read_bytes()
    stats = torch.cuda.memory_stats()
    (told,) = summary.summarise(content.load(io.BytesIO(data)), [""]).devices
    assert told.recorded is not None and told.replays is not None, told.problem
    wanted = (stats["allocated_bytes.all.peak"], stats["reserved_bytes.all.peak"], stats["num_ooms"])
    recorded, model = told.recorded, told.replays.model
    history = (recorded.peak_allocated, recorded.peak_reserved, recorded.ooms)
    replayed = (model.peak_allocated, model.peak_reserved, model.ooms)
    off = ", ".join(f"{after - before:+,}" for before, after in zip(wanted, replayed, strict=True))
    return (
        f"{told.events:>7,} {wanted[2]:>6} {'equal' if history == wanted else 'DIFFERS':>8} "
        f"{'equal' if replayed == wanted else off:>24} {len(page.complaints(data)):>10}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=4)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    if options.seed is not None:
        print(program(options.seed, options.calls), flush=True)
        time.sleep(0.1)  # torch's own threads may not outlive the interpreter
        return
    print(f"{'settings':<30} {'seed':>4} {'events':>7} {'failed':>6} {'history':>8} {'replay':>24} {'complaints':>10}")
    for conf in CONFIGURATIONS:
        for seed in range(options.programs):
            done = subprocess.run(
                [sys.executable, __file__, "--seed", str(seed), "--calls", str(options.calls)],
                env={**os.environ, "PYTORCH_CUDA_ALLOC_CONF": conf},
                capture_output=True,
                text=True,
                check=True,
            )
            print(f"{conf or 'default':<30} {seed:>4} {done.stdout.strip(chr(10))}", flush=True)


if __name__ == "__main__":
    main()
