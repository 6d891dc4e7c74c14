"""Random operations on the allocator model: its invariants, and torch's own allocator beside it where there is CUDA.

    python benchmarks/fuzz_allocator.py [--operations 1000000] [--seed 0] [--only NAME] [--model-only]

Each configuration runs in a process of its own, the model and torch with the same settings. With CUDA, every malloc
must succeed or fail alike, with the same text, and the addresses must lie alike in their segments; memory_stats() is
compared key by key every 20 steps, snapshots and recorded events every 500. Without CUDA the model runs alone. On a
device of more than 4 GiB, a limit keeps both inside 4 GiB. The exit status is 1 if anything differs.

Three things are left out beside torch, as they are no rules of the allocator: events that are not done yet (the process
waits for them), record_stream on several streams (torch finishes their events in the order of a hash table), and a
second reservation of expandable addresses for one stream (which comes first is the driver's choice).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from bisect import bisect_right, insort
from collections import Counter
from typing import Any

from memlab.allocator import Allocator, OutOfMemory, check
from memlab.allocator.expandable import find_room
from memlab.allocator.freelist import FreeList
from memlab.allocator.sizes import SMALL_SIZE, round_size

CONFIGURATIONS = {
    "default": "",
    "max_split": "max_split_size_mb:64",
    "max_split_20": "max_split_size_mb:20,max_non_split_rounding_mb:25",
    "non_split_rounding": "max_split_size_mb:21,max_non_split_rounding_mb:40",
    "roundup_8": "roundup_power2_divisions:8",
    "roundup_list": "roundup_power2_divisions:[1:4,4:8,16:2,64:1,>:4],max_split_size_mb:100",
    "large_segment": "large_segment_size_mb:32",
    "collector": "garbage_collection_threshold:0.6",
    "collector_max_split": "garbage_collection_threshold:0.4,max_split_size_mb:50",
    "expandable": "expandable_segments:True",
    "expandable_max_split": "expandable_segments:True,max_split_size_mb:40",
    "expandable_collector": "expandable_segments:True,garbage_collection_threshold:0.5",
    "expandable_large_segment": "expandable_segments:True,large_segment_size_mb:30,roundup_power2_divisions:4",
    "expandable_reserve": "expandable_segments:True,expandable_segments_reserve:1G",
    "throw": "throw_on_cudamalloc_oom:True,per_process_memory_fraction:{share}",
    "changing": "",  # settings change while it runs
}
CHANGES = (
    "expandable_segments:True",
    "expandable_segments:False",
    "roundup_power2_divisions:[2:2,>:8]",
    "garbage_collection_threshold:0.7",
    "max_non_split_rounding_mb:30,garbage_collection_threshold:0.5,expandable_segments:True",
)
KIB, MIB = 1 << 10, 1 << 20
BUDGET = 4 << 30
EDGES = (1, 511, 512, 513, MIB - 512, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 10 * MIB + 1, 19 * MIB, 20 * MIB, 64 * MIB)
ALONE = "nothing: the model alone (torch's own takes part where it is 2.13 or newer, and sees a device)"
FROM_2_15 = "expandable_reserve"
COLUMNS = {"mallocs": 10, "frees": 10, "refused": 9, "invariants": 11, "stats": 8, "snapshots": 10, "differences": 12}


class Torch:
    """torch's allocator behind the model's calls. Allocations are tensors, named by their address in the model."""

    def __init__(self) -> None:
        import torch

        self.torch: Any = torch  # it has read the settings from the environment
        self.version = tuple(map(int, torch.__version__.split(".")[:2]))
        self.cuda: Any = torch.cuda
        self.cuda.init()
        self.streams = {0: self.cuda.default_stream()}
        for _ in range(2):
            stream = self.cuda.Stream()
            self.streams[stream.cuda_stream] = stream
        free, self.total = self.cuda.mem_get_info()
        self.other = self.total - free - self.cuda.memory_reserved()
        self.tensors: dict[int, Any] = {}
        self.known: set[int] = set()  # segments whose place is known, by the model's order
        self.places: list[tuple[int, int]] = []  # a segment's address in the model, and how far off torch has it

    def malloc(self, nbytes: int, stream: int) -> tuple[Any, str]:
        self.cuda.set_stream(self.streams[stream])
        try:
            return self.torch.empty(nbytes, dtype=self.torch.uint8, device="cuda"), ""
        except self.torch.OutOfMemoryError as error:
            # What NVML knows of processes is no part of the model.
            return None, re.sub(
                r"(Including non-PyTorch memory, this process|Process \d+) has .*? use\. ", "", str(error)
            )

    def keep(self, card: Allocator, address: int, tensor: Any) -> None:
        self.tensors[address] = tensor
        head = card.live[address]
        if head.order not in self.known:
            self.known.add(head.order)
            while head.prev is not None:
                head = head.prev
            insort(self.places, (head.address, tensor.data_ptr() - address))

    def translate(self, address: int) -> int:
        return address + self.places[bisect_right(self.places, (address, 1 << 62)) - 1][1]


def limits(name: str, total: int) -> tuple[str, float]:
    """Return the settings and the memory fraction for a device of ``total`` bytes."""
    conf, share = CONFIGURATIONS[name], min(BUDGET / total, 0.9)
    if "{share}" in conf:
        return conf.format(share=share), 1.0  # the settings have the limit: it rejects instead of retrying
    return conf, share if total > BUDGET or "collector" in name else 1.0


class Run:
    """One configuration: the card, torch's allocator or None, and what was counted."""

    def __init__(self, name: str, seed: int, with_torch: bool) -> None:
        self.rng = random.Random(f"{name} {seed}")
        self.changes = name == "changing"
        self.torch = Torch() if with_torch else None
        total, other = (self.torch.total, self.torch.other) if self.torch else (BUDGET, 300 * MIB)
        conf, fraction = limits(name, total)
        sets_reserve = name == FROM_2_15 or (self.torch is not None and self.torch.version >= (2, 15))
        self.card = Allocator(total, conf, other=other, sets_reserve=sets_reserve)
        self.card.set_memory_fraction(fraction)
        self.card.record_history(1000)
        if self.torch:
            self.torch.cuda.set_per_process_memory_fraction(fraction)
            self.torch.cuda.memory._record_memory_history(context=None, max_entries=1000)
        self.streams = list(self.torch.streams) if self.torch else [0, 4096, 8192]
        self.live: list[int] = []
        self.counts: Counter[str] = Counter()
        self.favourites = [int(2 ** self.rng.uniform(4, 28)) for _ in range(12)]

    def run(self, operations: int) -> None:
        steps = 0
        while self.counts["mallocs"] + self.counts["frees"] < operations:
            steps += 1
            self.step(crowd=(20, 400, 80)[steps // 5000 % 3])
            if self.torch and steps % 20 == 0:
                self.compare_stats(self.torch)
            if steps % 500 == 0:
                check(self.card)
                self.counts["invariants"] += 1
                if self.torch:
                    self.compare_snapshots(self.torch)

    def step(self, crowd: int) -> None:
        kind = self.rng.random()
        if kind < 0.002:
            self.call("empty_cache", "empty_cache")
        elif kind < 0.003:
            self.call("reset_peak", "reset_peak_memory_stats")
        elif kind < 0.004:
            self.call("reset_accumulated", "reset_accumulated_memory_stats")
        elif kind < 0.005 and self.changes:
            self.configure(self.rng.choice(CHANGES))
        elif kind < 0.006 and not self.torch:
            self.card.events_done = not self.card.events_done
        elif kind < 0.03 and self.live:
            self.record_stream(self.rng.choice(self.live))
        elif self.rng.random() * 2 * crowd < len(self.live):
            self.free(self.rng.choice((-1, self.rng.randrange(len(self.live)))))
        else:
            nbytes, stream = self.size(), self.rng.choice(self.streams)
            if not (self.torch and self.needs_second_reservation(nbytes, stream)):
                self.malloc(nbytes, stream)

    def size(self) -> int:
        kind = self.rng.random()
        if kind < 0.3:
            return self.rng.choice(self.favourites)
        if kind < 0.4:
            return self.rng.choice(EDGES)
        return int(2 ** self.rng.uniform(0, 28.5 if kind < 0.95 else 32))

    def needs_second_reservation(self, nbytes: int, stream: int) -> bool:
        size = round_size(nbytes, self.card.settings)
        pool = self.card.small_blocks if size <= SMALL_SIZE else self.card.large_blocks
        if find_room(pool, size, stream) is not None or self.is_never_reserved(size):
            return False
        return bool(pool.unmapped.get(stream)) or self.has_full_reservation(pool.free_list(stream))

    def is_never_reserved(self, size: int) -> bool:
        settings, total = self.card.settings, self.card.device.total
        return settings.reserve is not None and size > settings.reserve_of(total) + settings.large_segment_size

    def has_full_reservation(self, free: FreeList) -> bool:
        """Whether a stream has reserved addresses and mapped all of them, which takes a setting."""
        if self.card.settings.reserve is None:
            return False
        live = (block for block in self.card.live.values() if block.free_list is free)
        return any(block.expandable is not None for block in (*free, *live))

    def call(self, ours: str, theirs: str) -> None:
        getattr(self.card, ours)()
        if self.torch:
            getattr(self.torch.cuda, theirs)()

    def configure(self, conf: str) -> None:
        self.card.configure(conf)
        if self.torch:
            self.torch.torch._C._accelerator_setAllocatorSettings(conf)

    def malloc(self, nbytes: int, stream: int) -> None:
        self.counts["mallocs"] += 1
        address, text = 0, ""
        try:
            address = self.card.malloc(nbytes, stream)
            self.live.append(address)
        except OutOfMemory as error:
            self.counts["refused"] += 1
            text = str(error)
        if self.torch:
            tensor, torch_text = self.torch.malloc(nbytes, stream)
            if self.torch.cuda.mem_get_info()[0] != self.card.device.free:  # others use the device, too
                text, torch_text = (re.sub("of which .* is free", "", t) for t in (text, torch_text))
            same("the outcome of malloc", text, torch_text)
            if tensor is not None:
                self.torch.keep(self.card, address, tensor)
                same("the address", self.torch.translate(address), tensor.data_ptr())

    def free(self, index: int) -> None:
        self.counts["frees"] += 1
        address = self.live.pop(index)
        elsewhere = self.card.live[address].stream_uses
        self.card.free(address)
        if self.torch:
            del self.torch.tensors[address]
            if elsewhere:
                self.torch.cuda.synchronize()

    def record_stream(self, address: int) -> None:
        stream = self.streams[1] if self.torch else self.rng.choice(self.streams)
        self.card.record_stream(address, stream)
        if self.torch:
            self.torch.tensors[address].record_stream(self.torch.streams[stream])

    def compare_stats(self, torch: Torch) -> None:
        ours, theirs = self.card.memory_stats(), dict(torch.cuda.memory_stats())
        same("the list of keys", list(ours), list(theirs))
        for key, value in ours.items():
            same(key, value, theirs[key])
        self.counts["stats"] += 1

    def compare_snapshots(self, torch: Torch) -> None:
        ours, theirs = self.card.snapshot(), torch.cuda.memory._snapshot()
        for place in (*ours["segments"], *(block for segment in ours["segments"] for block in segment["blocks"])):
            place["address"] = torch.translate(place["address"])
        ours["segments"].sort(key=lambda segment: segment["address"])
        same("the segments", ours["segments"], theirs["segments"])
        for entry, real in zip(ours["device_traces"][0], theirs["device_traces"][0], strict=True):
            if entry.get("addr"):
                entry["addr"] = torch.translate(entry["addr"])
            for key in ("time_us", "frames", "device_free"):
                same(f"whether an event has {key}", key in entry or key == "frames", key in real or key == "frames")
                entry.pop(key, None), real.pop(key, None)
            same("an event", entry, real)
        for key in ours["allocator_settings"]:
            same(key, ours["allocator_settings"][key], theirs["allocator_settings"][key])
        self.counts["snapshots"] += 1


def same(what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise AssertionError(f"{what}\n  model {ours}\n  torch {theirs}")


def run_one(name: str, seed: int, operations: int, with_torch: bool) -> None:
    """Run one configuration in this process and print what was counted, as JSON."""
    run, found = Run(name, seed, with_torch), {"differs": ""}
    try:
        run.run(operations)
    except AssertionError as error:
        found["differs"] = str(error)
    if run.torch:
        found |= {"torch": run.torch.torch.__version__, "device": run.torch.cuda.get_device_name()}
    print(json.dumps(found | {"counts": run.counts, "total": run.card.device.total}))


def start_one(name: str, seed: int, operations: int, total: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--run", name, "--operations", str(operations), "--seed", str(seed)]
    environment = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if total:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = limits(name, total)[0]
    done = subprocess.run(
        command if total else [*command, "--model-only"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"differs": done.stderr.strip(), "counts": {}, "total": 0}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def device() -> tuple[int, tuple[int, int]]:
    """Return the size of the CUDA device, 0 if there is none or this torch has another allocator, and its version."""
    code = (
        "import torch; version = [int(each) for each in torch.__version__.split('.')[:2]]; assert version >= [2, 13]; "
        "print(torch.cuda.get_device_properties(0).total_memory, *version)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    total, major, minor = (0, 0, 0) if done.returncode else map(int, done.stdout.split())
    return total, (major, minor)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=1_000_000, help="mallocs and frees, over all configurations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CONFIGURATIONS, action="append")
    parser.add_argument("--model-only", action="store_true", help="do not compare with torch")
    parser.add_argument("--run", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_one(options.run, options.seed, options.operations, not options.model_only)
        return 0
    total, version = (0, (0, 0)) if options.model_only else device()
    names = options.only or [name for name in CONFIGURATIONS if name != FROM_2_15 or not total or version >= (2, 15)]
    print(f"{'configuration':<26}" + "".join(f"{column:>{width}}" for column, width in COLUMNS.items()))
    results = []
    for name in names:
        result = start_one(name, options.seed, -(-options.operations // len(names)), total)
        counts = Counter(result["counts"]) + Counter(differences=int(bool(result["differs"])))
        print(f"{name:<26}" + "".join(f"{counts[column]:>{width},}" for column, width in COLUMNS.items()), flush=True)
        if result["differs"]:
            print(result["differs"])
        results.append(result)
    beside = "torch {torch} on {device}, {total:,} B".format(**results[0]) if total else ALONE
    operations = sum(result["counts"].get(key, 0) for result in results for key in ("mallocs", "frees"))
    print(f"{operations:,} operations with seed {options.seed}, compared with {beside}")
    return int(any(result["differs"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
