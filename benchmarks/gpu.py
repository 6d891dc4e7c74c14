"""Everything that memlab can check on a CUDA device, with one command; the figures go to results/.

    python benchmarks/gpu.py [--out results] [--only PART ...] [--minutes 9]

What is there (device, driver, versions, the context's size by NVML) is always told. The parts: doctor, the tests marked
cuda, every experiment on the device, by its name (oom_demo's real OutOfMemoryError among them), predictions made on the
CPU against what is measured (conv nets with cuDNN among them), the allocator's model against torch's own allocator, and
the cost of watching.

Each part is a process of its own with a limit of its own; one that fails, hangs or dies is recorded and the others go
on. What is there is written after every part, so ending this command loses the part that runs and nothing else. A
second call with --only adds to the same files. It needs what memlab needs, but not memlab installed; for the tests also
hypothesis, for the predictions of BERT and Llama transformers. It leaves the card's settings as they are; memory is
bounded by torch.cuda.set_per_process_memory_fraction.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
PACKAGES = ("torch", "numpy", "pytest", "rich", "psutil", "nvidia-ml-py", "hypothesis", "transformers")
LONGEST = 200_000  # characters of one part's output that are kept
TIME_UP = 124


@dataclass(frozen=True)
class Part:
    """One part: what it is called, the command of this Python (given the files' common beginning), its limit."""

    title: str
    command: Callable[[str], list[str]]
    seconds: int
    lines: int = 40  # of its output in the Markdown file; the JSON file has all


PYTEST = ["-m", "pytest", "-m", "cuda", "-q", "-rfEs", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
EXPERIMENT = ["-m", "memlab", "run", "--device", "cuda", "--show", "plain"]


def experiment(name: str) -> Part:
    return Part(f"Experiment {name}", lambda files: [*EXPERIMENT, name], 180, 80)


PARTS = {
    "doctor": Part("What can be measured here", lambda files: ["-m", "memlab", "doctor"], 60),
    "tests": Part("Tests marked cuda", lambda files: [*PYTEST, "tests"], 540, 60),
    **{each.stem: experiment(each.stem) for each in sorted((HERE / "experiments").glob("[!_]*.py"))},
    "predictions": Part(
        "Predicted on the CPU against measured here",
        lambda files: ["benchmarks/predict_cuda.py", "--out", f"{files}-predicted.md"],
        540,
        80,
    ),
    "allocator": Part(
        "The allocator's model against torch's own",
        lambda files: ["benchmarks/fuzz_allocator.py", "--operations", "150000"],
        300,
    ),
    "cost": Part(
        "What watching costs", lambda files: ["benchmarks/overhead.py", "--device", "cuda", "--rounds", "15"], 300
    ),
}


@dataclass(frozen=True)
class Outcome:
    """How one part ended."""

    code: int
    seconds: float
    output: str
    day: str


def environment() -> dict[str, str]:
    """Return the children's: memlab from this checkout, and no pytest plugin of others, whose warnings are errors."""
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run(command: list[str], seconds: float) -> Outcome:
    """Run a command of this Python in the checkout; at its limit it ends with its children, and its output stays."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as printed:  # a pipe would wait for whoever else still holds it
        child = subprocess.Popen(
            [sys.executable, *command],
            cwd=HERE,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,
        )
        try:
            code, last = child.wait(seconds), ""
        except subprocess.TimeoutExpired:
            code, last = TIME_UP, f"ended at its limit of {seconds:.0f} s"
            os.killpg(child.pid, signal.SIGINT)  # so that pytest still tells what has failed
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(15)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        printed.seek(0)
        output = _without_places(f"{printed.read().decode(errors='replace').strip()}\n{last}".strip())
    return Outcome(code, round(time.monotonic() - began, 1), output[-LONGEST:], str(datetime.date.today()))


def _without_places(text: str) -> str:
    """Leave out where the checkout and this Python lie: results/ is for everybody."""
    for place in (HERE, Path(sys.prefix), Path(tempfile.gettempdir())):
        text = text.replace(f"{place}{os.sep}", "")
    return text


def facts() -> dict[str, Any]:
    """Look at the machine; runs in a process of its own, as a broken driver may end it."""
    import torch

    from memlab.doctor import machine

    if not torch.cuda.is_available():
        return {"name": None, "torch": torch.__version__}
    return {"name": torch.cuda.get_device_name(0), "machine": machine("cuda:0"), "context": context()}


def context() -> str:
    """Say what this process costs the device before torch's allocator has anything: the context and its modules."""
    import torch

    from memlab.probes.cuda import warm_up
    from memlab.probes.nvml import Nvml
    from memlab.unavailable import Unavailable
    from memlab.units import format_exact

    device = torch.device("cuda", 0)
    torch.empty(1, device=device)
    try:
        with Nvml(device) as nvml:
            first, reserved = nvml.read(), torch.cuda.memory_reserved(device)
            warm_up(device)
            second, after = nvml.read(), torch.cuda.memory_reserved(device)
            if "nvml_process" not in first or "nvml_process" not in second:
                whole = format_exact(first["nvml_used"] - reserved)
                return f"not available: {nvml.notes[0]}; the whole device uses {whole} besides what torch reserved"
    except Unavailable as error:
        return f"not available: {error}"
    bare, warm = first["nvml_process"] - reserved, second["nvml_process"] - after
    return f"{format_exact(bare)} after the first tensor, {format_exact(warm)} with cuBLAS in use"


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def markdown(about: dict[str, Any], outcomes: dict[str, Outcome]) -> str:
    lines = [f"# On {about['name']}", ""]
    lines += [f"- {key}: {value}" for key, value in about["machine"].items()]
    lines += [f"- context by NVML: {about['context']}"]
    lines += [f"- packages: {', '.join(f'{name} {version}' for name, version in about['packages'].items())}"]
    if "emulated" in about["name"]:
        lines += ["", "**The device is emulated**: kernels compute nothing, and times mean nothing."]
    lines += ["", "| part | exit code | seconds | on |", "|---|---:|---:|---|"]
    for name in PARTS:
        done = outcomes.get(name)
        lines += [f"| {name} | {f'{done.code} | {done.seconds} | {done.day}' if done else 'not run | | '} |"]
    for name, part in PARTS.items():
        if name in outcomes:
            shown = outcomes[name].output.splitlines()[-part.lines :]
            lines += ["", f"## {part.title}", "", "```text", *shown, "```"]
    return "\n".join(lines) + "\n"


def known(path: Path, about: dict[str, Any]) -> dict[str, Outcome]:
    """Return the parts that an earlier call on the same machine and versions has written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        same = all(found["about"][key] == about[key] for key in ("machine", "packages"))
        return {name: Outcome(**each) for name, each in found["parts"].items()} if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write(path: Path, about: dict[str, Any], outcomes: dict[str, Outcome]) -> None:
    from memlab.report import write_atomically

    parts = {name: asdict(outcomes[name]) for name in PARTS if name in outcomes}
    write_atomically(path.with_suffix(".json"), json.dumps({"about": about, "parts": parts}, indent=1) + "\n")
    write_atomically(path.with_suffix(".md"), markdown(about, outcomes))


def look() -> dict[str, Any] | str:
    """Return what is known of this machine, or why nothing can be measured."""
    asked = run([str(Path(__file__).resolve()), "--facts"], 120)
    lines = asked.output.splitlines()
    if asked.code or not lines:
        return f"looking at the device failed (exit code {asked.code}): {' '.join(lines[-3:])}"
    about: dict[str, Any] = json.loads(lines[-1])
    if about["name"] is None:
        return f"torch {about['torch']} sees no CUDA device here; run it on a machine that has one"
    return about | {"packages": versions()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after this time, with what is there")
    parser.add_argument("--facts", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.facts:
        print(json.dumps(facts()))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs ends, too
    deadline = time.monotonic() + 60 * given.minutes
    about = look()
    if isinstance(about, str):
        print(f"gpu.py: {about}", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"\W+", "-", about["name"].lower()).strip("-")
    path = given.out.resolve() / f"gpu-{slug}.json"
    outcomes = known(path, about)
    wanted = given.only or list(PARTS)
    for name in wanted:
        left = deadline - time.monotonic()
        if left < 5:
            print(f"gpu.py: time is up; the rest: --only {' '.join(wanted[wanted.index(name) :])}", file=sys.stderr)
            break
        outcome = run(PARTS[name].command(str(path.with_suffix(""))), min(PARTS[name].seconds, left))
        outcomes[name] = outcome
        print(f"{name}: exit code {outcome.code} after {outcome.seconds} s", flush=True)
        write(path, about, outcomes)
    print(f"written: {path.with_suffix('.md')}")
    return 0 if all(name in outcomes and not outcomes[name].code for name in wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
