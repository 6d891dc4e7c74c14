"""torch.cuda's own account of one device."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from memlab.probes import Unavailable
from memlab.units import parse_size

# Our names for memory_stats()'s keys that are bytes and have a current value and a peak; torch's fragmentation is the
# free pieces of blocks that were split, which go back to the device with their whole segment only.
_BYTES = {
    "allocated": "allocated_bytes",
    "reserved": "reserved_bytes",
    "active": "active_bytes",
    "requested": "requested_bytes",
    "inactive_split": "inactive_split_bytes",
}
_COUNTS = {"alloc_retries": "num_alloc_retries", "ooms": "num_ooms"}


def numbers(stats: Mapping[str, int]) -> dict[str, int]:
    """Return what probes tell of a caching allocator's ``memory_stats()``: bytes now, their peaks, and counts."""
    now = {ours: stats.get(f"{key}.all.current", 0) for ours, key in _BYTES.items()}
    now |= {f"{ours}_peak": stats.get(f"{key}.all.peak", 0) for ours, key in _BYTES.items()}
    return now | {ours: stats.get(key, 0) for ours, key in _COUNTS.items()}


def since(start: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """Return ``now`` beyond ``start``; a peak counts beyond what there was then."""
    return {key: value - start[key.removesuffix("_peak")] for key, value in now.items()}


class Cuda:
    """Allocated, reserved, active, requested and inactive split bytes, peaks, retries and OOMs since it was opened.

    Reads ``torch.cuda.memory_stats``. Peaks are torch's own, which this probe does not reset: a peak of before hides a
    smaller one. It cannot see memory outside torch's caching allocator: the context, NCCL, other libraries.

    Args:
        device: a CUDA device, such as ``"cuda:0"``.
    """

    name = "cuda"

    def __init__(self, device: torch.device | str = "cuda") -> None:
        self.device = torch.device(device)

    def __enter__(self) -> Cuda:
        check_available(self.device)
        self._start = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self) -> dict[str, int]:
        return since(self._start, self._now())

    def _now(self) -> dict[str, int]:
        return numbers(torch.cuda.memory_stats(self.device))


def check_available(device: torch.device) -> None:
    """Raise `Unavailable`, with the reason in a sentence, when ``device`` is not a CUDA device that torch can use."""
    if device.type != "cuda":
        raise Unavailable(f"{device} is not a CUDA device")
    if not torch.cuda.is_available():
        built = "no CUDA device is available to torch" if torch.version.cuda else "this torch is built without CUDA"
        raise Unavailable(built)
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise Unavailable(f"there is no {device}: torch sees {count} CUDA device(s)")


def limit(device: torch.device, size: str | int) -> int:
    """Bound this process's reserved bytes on ``device`` and return the bound in bytes.

    Uses ``torch.cuda.set_per_process_memory_fraction``: a shared device is never exhausted, the caching allocator
    refuses instead and torch raises its own OutOfMemoryError.
    """
    wanted, total = parse_size(size), torch.cuda.get_device_properties(device).total_memory
    if wanted > total:
        raise ValueError(f"a card of {wanted:,} B is larger than {device}, which has {total:,} B")
    torch.cuda.set_per_process_memory_fraction(wanted / total, device)
    return wanted


def unsplit_bytes(device: torch.device) -> int:
    """Return what allocated bytes hold beyond 512-byte rounding: blocks handed out whole, not worth splitting."""
    try:
        segments = torch.cuda.memory._snapshot(device)["segments"]
    except RuntimeError as error:  # backend:cudaMallocAsync has no blocks to show
        raise Unavailable(f"this allocator shows no blocks: {error}") from None
    slack = 0
    for segment in segments:
        if segment["device"] == (device.index or 0):
            for block in segment["blocks"]:
                if block["state"].startswith("active"):
                    slack += block["size"] - max(512, -(-block["requested_size"] // 512) * 512)
    return slack


def warm_up(device: torch.device) -> None:
    """Let cuBLAS allocate its workspaces, of this thread and of the backward thread, before anything is measured."""
    weight, bias = torch.ones(8, 8, device=device, requires_grad=True), torch.ones(8, device=device)
    product = weight @ weight
    # In the backward thread: up to torch 2.11 cuBLASLt, which adds the bias, has a workspace of its own there.
    product.register_hook(lambda gradient: torch.nn.functional.linear(gradient, gradient, bias))
    product.sum().backward()
    torch.nn.functional.linear(weight, weight, bias)
    torch.cuda.synchronize(device)


class BackwardThread:
    """The thread of torch that runs backward on one device, and may still hold what it ran last.

    After ``autograd.grad(..., create_graph=True)``, or a backward that raised, it keeps the finished task, and with it
    memory that Python code has dropped, until it gets the interpreter lock again. A trivial task makes it let go.
    """

    def __init__(self, device: torch.device) -> None:
        with torch._C._DisableTorchDispatch():
            self._leaf = torch.ones(1, device=device, requires_grad=True)
            self._view, self._one = self._leaf.view(1), torch.ones(1, device=device)

    def settle(self) -> None:
        """Return when the thread has let go of what it ran before. Allocates nothing."""
        with torch._C._DisableTorchDispatch():
            torch.autograd.grad(self._view, self._leaf, self._one, retain_graph=True)


def computes(device: torch.device) -> bool:
    """Tell whether kernels on ``device`` compute: on an emulated device every value reads back as zero."""
    return bool(torch.ones(1, device=device).add(1).item() == 2)
