"""Everything that memlab can check on a CUDA device, with one command; the figures go to results/.

    python benchmarks/gpu.py [--out results]

Runs the tests marked cuda, every experiment with --device cuda (oom_demo's real OutOfMemoryError among them), the
allocator's model against torch's own allocator, the context's size by NVML, predictions made on the CPU against what is
measured (conv nets with cuDNN among them), and the cost of watching. It leaves the
card's settings as they are; memory is bounded by torch.cuda.set_per_process_memory_fraction.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

import torch

from memlab.doctor import machine
from memlab.probes.cuda import warm_up
from memlab.probes.nvml import Nvml
from memlab.report import load, write_atomically
from memlab.units import format_exact

HERE = Path(__file__).resolve().parent.parent


def run(*command: str) -> tuple[int, str]:
    """Return exit code and output of a command of this Python, run in the repository."""
    done = subprocess.run([sys.executable, *command], cwd=HERE, capture_output=True, text=True, timeout=560)
    return done.returncode, (done.stdout + done.stderr).strip()


def context_bytes() -> str:
    """Say what this process costs the device before torch's allocator has anything: the context and its modules."""
    device = torch.device("cuda", 0)
    torch.cuda.init()
    torch.empty(1, device=device)
    with Nvml(device) as nvml:
        first, reserved = nvml.read(), torch.cuda.memory_reserved(device)
        warm_up(device)
        second, after = nvml.read(), torch.cuda.memory_reserved(device)
        if "nvml_process" not in first:
            return f"not available: {nvml.notes[0]}"
    bare, warm = first["nvml_process"] - reserved, second["nvml_process"] - after
    return f"{format_exact(bare)} after the first tensor, {format_exact(warm)} with cuBLAS in use"


def section(title: str, code: int, output: str, keep: int = 25) -> str:
    lines = "\n".join(output.splitlines()[-keep:])
    return f"## {title}\n\nexit code {code}\n\n```text\n{lines}\n```\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device here; run it on a machine that has one", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    found = machine("cuda:0")
    slug = re.sub(r"\W+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    report = out / f"gpu-{slug}.json"
    parts = [f"# On {torch.cuda.get_device_name(0)}, {datetime.date.today()}\n"]
    parts.append("".join(f"- {key}: {value}\n" for key, value in found.items()))
    parts.append(f"- context by NVML: {context_bytes()}\n")
    codes = []
    tests = run("-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", "tests")
    experiments = run("-m", "memlab", "run", "all", "--device", "cuda", "--json", str(report), "--show", "plain")
    codes += [tests[0], experiments[0]]
    parts.append(section("Tests marked cuda", *tests))
    parts.append(section("Experiments", *experiments, keep=90))
    if report.is_file():
        parts.append(f"{load(report).count('holds')} of {len(load(report).findings)} arms hold.\n")
    predicted = run("benchmarks/predict_cuda.py", "--out", str(out / f"predict-{slug}.md"))
    codes.append(predicted[0])
    parts.append(section("Predicted on the CPU against measured here", *predicted, keep=60))
    parts.append(section("Cost", *run("benchmarks/overhead.py", "--device", "cuda", "--rounds", "15")))
    write_atomically(out / f"gpu-{slug}.md", "\n".join(parts))
    print("\n".join(parts))
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
