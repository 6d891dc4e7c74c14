"""Predicted on the CPU against measured on CUDA: peak allocated and peak reserved of the same training steps.

    python benchmarks/predict_cuda.py [--real-python PYTHON] [--out FILE] [STEP ...]

Each side is measured in a process of its own. Where this Python's torch has no CUDA, ``--real-python`` names one whose
torch has: a real GPU's, or an emulated one's. The table goes to results/predict_cuda.md and says what it was run on.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
REPEAT = 2
SEGMENT = 20 << 20
QUICK = ("mlp_sgd", "mlp_adam", "mlp_bf16", "gpt_fp32", "gpt_checkpoint", "conv")  # predicted with real tensors too
Peaks = dict[str, int]


def names(wanted: list[str]) -> list[str]:
    from predict_steps import STEPS

    found = importlib.util.find_spec("transformers") is not None
    return [
        name for name in STEPS if name in wanted or (not wanted and (found or not name.startswith(("bert", "llama"))))
    ]


def real(wanted: list[str]) -> dict[str, Any]:
    """Measure with torch's own statistics; the cache and cuBLAS's workspaces are given back between steps."""
    import torch
    from predict_steps import STEPS

    properties = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name in wanted:
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            step = STEPS[name]("cuda")
            for _ in range(REPEAT):
                step()
        except RuntimeError as error:  # an emulated device refuses what it would have to compute
            refused[name] = str(error).split(".")[0]
            continue
        torch.cuda.synchronize()
        stats = torch.cuda.memory_stats()
        found[name] = {key: stats[f"{key}_bytes.all.peak"] for key in ("allocated", "reserved")}
        del step
    time.sleep(0.2)
    device = {"name": properties.name, "capability": [properties.major, properties.minor], "torch": torch.__version__}
    device |= {"sms": properties.multi_processor_count, "total": properties.total_memory}
    return {"device": device, "peaks": found, "refused": refused, "cudnn": torch.backends.cudnn.version()}


def predicted(wanted: list[str], device: dict[str, Any], *, fake: bool) -> dict[str, Any]:
    """Predict on the CPU, for the device that was measured."""
    from contextlib import nullcontext

    from predict_steps import STEPS

    from memlab import versions
    from memlab.allocator import Allocator
    from memlab.as_cuda import CudaStorages, Gpu
    from memlab.as_cuda.fakes import fake_tensors

    found: dict[str, Any] = {}
    for name in wanted:
        card = Allocator(total=device["total"], **versions.allocator())
        began = time.perf_counter()
        with fake_tensors() if fake else nullcontext():
            with CudaStorages(card, Gpu(tuple(device["capability"]), device["sms"])) as storages:
                step = STEPS[name]("cpu")
                for _ in range(REPEAT):
                    step()
            del step
        found[name] = {"allocated": card.peak_allocated, "reserved": card.peak_reserved}
        found[name] |= {"said": said(storages, card.peak_allocated)}
        found[name]["seconds"] = time.perf_counter() - began
        gc.collect()
    return found


def said(storages: Any, peak: int) -> str:
    """What a prediction says of its own error."""
    from memlab.as_cuda import account
    from memlab.units import format_bytes

    if names := account.unknown(storages.mode):
        return f"at least ({', '.join(names)})"
    if bars := storages.mode.bars.above(peak):
        return f"+ at most {format_bytes(max(bars.values()))} ({', '.join(bars)})"
    high = account.high(storages.mode)
    return f"or less ({', '.join(high)})" if high else "exact"


def row(name: str, told: dict[str, Any], was: Peaks) -> str:
    from memlab.units import format_bytes

    cells = [name]
    for key in ("allocated", "reserved"):
        off = told[key] - was[key]
        share = f"{off / was[key]:+.3%}" if off else "exact"
        cells += [format_bytes(told[key]), format_bytes(was[key]), share if key == "allocated" else format_bytes(off)]
    return f"| {' | '.join([*cells, told['said']])} |"


def holds(name: str, told: dict[str, Any], was: Peaks) -> bool:
    """The bars: allocated within 0.2 % in float32 and 1 % in bfloat16, reserved within one segment."""
    share = 0.01 if "bf16" in name or "autocast" in name else 0.002
    return (
        abs(told["allocated"] - was["allocated"]) <= share * was["allocated"]
        and abs(told["reserved"] - was["reserved"]) <= SEGMENT
    )


def report(measured: dict[str, Any], told: dict[str, Any], computed: dict[str, Any]) -> str:
    from predict_steps import APART

    from memlab.doctor import machine

    device, peaks = measured["device"], measured["peaks"]
    head = (
        "| step | allocated predicted | measured | off | reserved predicted | measured | off | it says of its error |\n"
        + 8 * "|---"
        + "|"
    )
    here = [name for name in peaks if name not in APART]
    good = sum(holds(name, told[name], peaks[name]) for name in here)
    same = [
        name for name in computed if all(computed[name][key] == told[name][key] for key in ("allocated", "reserved"))
    ]
    lines = [
        "# Predicted on the CPU against measured on CUDA",
        "",
        f"Measured on: {device['name']} (compute capability {device['capability'][0]}.{device['capability'][1]}, "
        f"{device['sms']} multiprocessors), torch {device['torch']}, cuDNN {measured['cudnn']}.",
        f"Predicted on: {platform.machine()}, {machine('cpu').get('processor', '')}, torch {machine('cpu')['torch']}; "
        f"{REPEAT} steps each, from the model's construction on. Peaks are torch.cuda.memory_stats()'s.",
    ]
    if "emulated" in device["name"].lower():
        lines.append(
            "**The device is emulated**: torch's CUDA build, what its kernels allocate and its caching allocator are "
            "real; kernels compute nothing, and what the libraries cuDNN and cuBLAS would ask for inside is not there."
        )
    lines += ["", head, *(row(name, told[name], peaks[name]) for name in here), ""]
    lines += [
        f"{good} of {len(here)} within the bars (allocated 0.2 % in float32, 1 % in bfloat16; reserved one segment)."
    ]
    seconds = sum(told[name]["seconds"] for name in here)
    lines += [
        f"Predicted with fake tensors, that is without memory and arithmetic, in {seconds:.0f} s. With real tensors"
    ]
    lines += [f"{len(same)} of the {len(computed)} tried gave the same two peaks to the byte ({', '.join(computed)})."]
    apart = [name for name in peaks if name in APART]
    if apart:
        lines += ["", "## Apart: convolutions and RNNs", ""]
        lines += ["What cuDNN takes inside is not modelled.", "", head]
        lines += [row(name, told[name], peaks[name]) for name in apart]
    for name, reason in measured["refused"].items():
        lines += ["", f"{name} was not measured: {reason}."]
    return "\n".join(lines) + "\n"


def ask(python: str, *command: str) -> dict[str, Any]:
    """Run this file with another Python; return the JSON in its last line."""
    done = subprocess.run([python, __file__, *command], capture_output=True, text=True, timeout=1500)
    if done.returncode:
        raise SystemExit(f"predict_cuda.py: {' '.join(command)}: {done.stderr.strip()[-600:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP")
    parser.add_argument("--real-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "predict_cuda.md")
    parser.add_argument("--side", choices=["real", "predicted", "fake"], help=argparse.SUPPRESS)
    parser.add_argument("--device", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        warnings.simplefilter("ignore")
        wanted = names(given.steps)
        told = real(wanted) if given.side == "real" else None
        print(json.dumps(told or predicted(wanted, json.loads(given.device), fake=given.side == "fake")))
        return 0
    measured = ask(given.real_python, "--side", "real", *given.steps)
    options = ("--device", json.dumps(measured["device"]), *measured["peaks"])
    told = ask(sys.executable, "--side", "fake", *options)
    computed = ask(sys.executable, "--side", "predicted", *options[:2], *(each for each in QUICK if each in told))
    from memlab.report import write_atomically

    text = report(measured, told, computed)
    write_atomically(given.out, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
