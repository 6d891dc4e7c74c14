"""What every operator takes inside, measured on CUDA against the model: which are exact, how far off the others are.

    python benchmarks/temporaries.py [--write]

Runs the samples that torch's own tests have for its operators, forward and backward, in two sizes, then larger calls
and the training steps of predict_steps.py. For each operator, the peak of the bytes that its kernel asked the caching
allocator for is compared with its outputs and with what `memlab.as_cuda` says beside them. It needs torch's CUDA build,
with a GPU or an emulated one; `--write` renews memlab/as_cuda/checked.py and results/temporaries.md.
"""

# ruff: noqa: E402  the checkout that this file is in comes first on the path

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import torch
from temporaries_calls import CALLS
from torch.utils._python_dispatch import TorchDispatchMode

from memlab.allocator import Allocator
from memlab.as_cuda import Gpu
from memlab.as_cuda.mode import KERNELS
from memlab.as_cuda.ordering import EARLY
from memlab.as_cuda.scratch import in_order, nbytes, scratch
from memlab.as_cuda.workspaces import are_kept, call_bytes, multiplies
from memlab.card_ledger import CardLedger
from memlab.outputs import FRESH, VIEW, outputs_of

SIZES = (0, 40)  # of torch's samples: 0 leaves them as they are
SAMPLES, SECONDS = 24, 2  # for one operator and type
TYPES = (torch.float32, torch.bfloat16, torch.int64)
TINY = 64  # bytes of tensors up to which a difference is taken to be a fixed one
BLOCK = 512
NORMS = torch.ops.aten._foreach_norm.Scalar  # told to give another type it goes another way, and is left out


@dataclass
class Seen:
    """One operator: its calls, how many were exact, and those that were not as (bytes of tensors, difference)."""

    calls: int = 0
    exact: int = 0
    off: list[tuple[int, int]] = field(default_factory=list)
    blocks: int = 0

    @property
    def bound(self) -> tuple[float, int]:
        """The measured bound: times the tensors' bytes, and fixed bytes."""
        fixed = max((off for size, off in self.off if size <= TINY), default=0)
        times = max((off / size for size, off in self.off if size > TINY), default=0.0)
        return ceil(max(times, 0.0) * 100) / 100, max(fixed, 0) + BLOCK * self.blocks

    @property
    def above(self) -> int:
        """By how much the model was too high at the most."""
        return max((-off for _, off in self.off if off < 0), default=0)


class Sweep(TorchDispatchMode):
    """Compares each operator that runs with the model."""

    def __init__(self) -> None:
        super().__init__()
        device = torch.cuda.get_device_properties(0)
        self.gpu = Gpu((device.major, device.minor), device.multi_processor_count)
        self.total = device.total_memory
        self.seen: dict[str, Seen] = {}
        self.faults: dict[str, str] = {}  # of the model, by operator; what an operator itself refuses is left out

    def __torch_dispatch__(self, func: Any, types_: Any, args: Any = (), kwargs: Any = None) -> Any:
        if outputs_of(func) == VIEW or (func is NORMS and (len(args) > 2 or kwargs)):
            return func(*args, **(kwargs or {}))
        torch.cuda.reset_peak_memory_stats()
        before = _requested()
        out = func(*args, **(kwargs or {}))
        after = _requested()
        if any(each.is_cuda for each in _tensors((args, out))):
            try:
                self._compare(func, in_order(func, args, kwargs), out, before, after)
            except Exception as error:
                self.faults.setdefault(str(func), repr(error))
        return out

    def _compare(self, func: Any, args: Any, out: Any, before: dict[str, int], after: dict[str, int]) -> None:
        kept = after["current"] - before["current"]
        if outputs_of(func) == FRESH and kept < sum(
            {
                each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in _tensors(out) if each.is_cuda
            }.values()
        ):
            return  # autograd's thread has freed something meanwhile
        told, blocks = self._told(func, args, out, max(kept, 0))
        off = after["peak"] - before["current"] - told
        seen = self.seen.setdefault(str(func), Seen())
        seen.calls += 1
        seen.exact += off == 0
        if off:
            seen.off.append((sum(map(nbytes, _tensors((args, out)))), off))
        if off > 0:
            seen.blocks = max(seen.blocks, after["blocks"] - before["blocks"] - blocks)

    def _told(self, func: Any, args: Any, out: Any, kept: int) -> tuple[int, int]:
        card = Allocator(total=self.total)
        ledger = CardLedger(card)
        with scratch(ledger) as use:
            if func in EARLY:
                EARLY[func](use, self.gpu, args, None)
        card.malloc(kept)
        with scratch(ledger) as use:
            if func in KERNELS:
                KERNELS[func](use, self.gpu, args, out)
            if multiplies(func) and not are_kept():
                use.take(call_bytes(self.gpu.capability, func, args, out))
        stats = card.memory_stats()
        return stats["requested_bytes.all.peak"], stats["allocation.all.allocated"]


def _requested() -> dict[str, int]:
    stats = torch._C._cuda_memoryStats(0)
    requested = stats["requested_bytes"]["all"]
    return {**requested, "blocks": stats["allocation"]["all"]["allocated"]}


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.layout == torch.strided:
            yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


def run(call: Any, *args: Any, **kwargs: Any) -> None:
    """Call it, and backward of what it returns; what the emulated device refuses to compute is left out."""
    try:
        out = [each for each in _tensors(call(*args, **kwargs)) if each.requires_grad]
        if out:
            torch.autograd.backward(out, [torch.ones_like(each) for each in out])
    except Exception:
        return


def samples(size: int) -> Iterator[tuple[Any, Any]]:
    """Yield torch's operators with samples of their arguments."""
    sys.modules.setdefault("expecttest", types.SimpleNamespace(TestCase=object, assert_expected_inline=None))
    from torch.testing._internal import common_methods_invocations as database

    if size:
        for name, factor in (("S", 1), ("M", 2), ("L", 4), ("XS", 1)):
            for module in [each for key, each in sys.modules.items() if key.startswith("torch.testing._internal")]:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, size * factor)
    lists = ("op_db", "foreach_unary_op_db", "foreach_binary_op_db", "foreach_pointwise_op_db", "foreach_reduce_op_db")
    for operator in (each for name in lists for each in getattr(database, name)):
        for dtype in TYPES:
            if dtype not in operator.supported_dtypes("cuda"):
                continue
            began, made = time.perf_counter(), 0
            try:
                for sample in operator.sample_inputs("cuda", dtype, requires_grad=dtype.is_floating_point):
                    yield operator, sample
                    made += 1
                    if made >= SAMPLES or time.perf_counter() - began > SECONDS:
                        break
            except Exception:
                continue


def sweep() -> Sweep:
    from predict_steps import STEPS

    warm = torch.ones(8, 8, device="cuda", requires_grad=True)
    (warm @ warm).sum().backward()  # cuBLAS's workspaces
    seen = Sweep()
    for size in SIZES:
        for operator, sample in samples(size):
            with seen:
                run(operator, sample.input, *sample.args, **sample.kwargs)
                if operator.inplace_variant is not None:
                    with torch.no_grad():
                        run(_in_place, operator, sample)
    for call in CALLS.values():
        with seen, torch.device("cuda"):
            run(call)
    for name, make in STEPS.items():
        step: Any = None
        try:
            step = make("cuda")
            with seen:
                step()
                step()
        except Exception as error:
            print(f"{name}: {error}".splitlines()[0], file=sys.stderr)
    return seen


def _in_place(operator: Any, sample: Any) -> Any:
    first = sample.input
    copied = [each.detach().clone() for each in first] if isinstance(first, (tuple, list)) else first.detach().clone()
    return operator.inplace_variant(copied, *sample.args, **sample.kwargs)


def module_text(seen: dict[str, Seen]) -> str:
    """Return memlab/as_cuda/checked.py."""
    exact = sorted(name for name, each in seen.items() if each.exact == each.calls)
    above = sorted(name for name, each in seen.items() if each.above)
    bounds = [f'    "{name}": {each.bound},' for name, each in sorted(seen.items()) if each.exact < each.calls]
    lines = [
        '"""Which operators allocate on CUDA what the model says, and how far off the others are.',
        "",
        "Written by benchmarks/temporaries.py; results/temporaries.md says how it was measured.",
        '"""',
        "",
        *_names("_EXACT", exact),
        *_names("_ABOVE", above),
        "EXACT = frozenset(_EXACT.split())",
        '"""The peak was that of the kernel in every call."""',
        "ABOVE = frozenset(_ABOVE.split())",
        '"""Here the model was above the kernel at least once."""',
        "BOUNDS: dict[str, tuple[float, int]] = {",
        *bounds,
        "}",
        '"""The most that the peak was above: so many times the bytes of its tensors, and so many bytes."""',
    ]
    return "\n".join(lines) + "\n"


def _names(constant: str, names: list[str]) -> list[str]:
    return [f'{constant} = """', *textwrap.wrap(" ".join(names), 116, break_on_hyphens=False), '"""']


def report(seen: dict[str, Seen]) -> str:
    """Return results/temporaries.md."""
    device = torch.cuda.get_device_properties(0)
    exact = [name for name, each in seen.items() if each.exact == each.calls]
    modelled = sorted(str(each) for each in KERNELS if str(each) in seen)
    lines = [
        "# What operators take inside",
        "",
        f"`python benchmarks/temporaries.py --write` on {device.name} "
        f"(compute capability {device.major}.{device.minor}, {device.multi_processor_count} multiprocessors), "
        f"torch {torch.__version__}.",
    ]
    if "emulated" in device.name.lower():
        lines.append(
            "**The device is emulated**: torch's CUDA build decides what to allocate, cub's own host code how much; "
            "kernels compute nothing, what is read back is zero, and cuDNN's and cuBLAS's own needs are not there."
        )
    lines += [
        "",
        f"{sum(each.calls for each in seen.values()):,} calls of {len(seen)} operators: samples of torch's own tests "
        "in two sizes, larger calls, and the training",
        f"steps of [predict_cuda.md](predict_cuda.md). In {len(exact)} operators every call's peak was what the model "
        "says, to the byte. The others have a",
        "bound: so many times the bytes of their tensors and so many bytes, the most that was seen; a prediction takes",
        "twice that, for other shapes lie between the samples. `too high` is by how much the model was above the "
        "kernel.",
        "cuDNN's own needs are not in it: its operators have no bound in a prediction.",
        "",
        "| operator | calls | exact | at most above: times its tensors | and bytes | too high |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, each in sorted(seen.items()):
        if each.exact < each.calls:
            times, fixed = each.bound
            cells = (
                name.removeprefix("aten."),
                f"{each.calls:,}",
                f"{each.exact:,}",
                f"{times:g}",
                f"{fixed:,}",
                f"{each.above:,}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Operators with a formula", "", "| operator | calls | exact |", "|---|---:|---:|"]
    lines += [f"| {name.removeprefix('aten.')} | {seen[name].calls:,} | {seen[name].exact:,} |" for name in modelled]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    swept = sweep()
    if swept.faults:
        print(*(f"{name}: {fault}" for name, fault in swept.faults.items()), sep="\n", file=sys.stderr)
        return 1
    found = {name: each for name, each in swept.seen.items() if name.startswith("aten.")}
    text = report(found)
    if given.write:
        (HERE.parent / "memlab" / "as_cuda" / "checked.py").write_text(module_text(found))
        (HERE.parent / "results" / "temporaries.md").write_text(text)
    print(text if not given.write else json.dumps({"operators": len(found)}))
    time.sleep(0.2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
