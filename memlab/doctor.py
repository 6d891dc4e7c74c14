"""What this machine has and what memlab can measure on it, as plain data. Importing this does not import torch."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import memlab
from memlab.unavailable import Unavailable
from memlab.units import format_bytes

if TYPE_CHECKING:
    import torch

MEASURED, SIMULATED, NOT_HERE = "measured", "simulated", "not here"
SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # which one wins depends on torch: it is asked


@dataclass(frozen=True)
class Ability:
    """One thing to measure: ``how`` is measured, simulated or not here; ``why`` says so in words."""

    what: str
    how: str
    why: str


@dataclass(frozen=True)
class Examination:
    """What was found on this machine, ``{name: value}``, and what can be measured on it."""

    facts: dict[str, str]
    abilities: list[Ability]


def best_device() -> str:
    """Return ``"cuda"`` if torch can use it, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def machine(device: str) -> dict[str, str]:
    """Return what a report says about the machine that it holds for."""
    import torch

    found = {
        "memlab": memlab.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "device": device,
    }
    if device.startswith("cuda") and torch.cuda.is_available():
        index = int(device.partition(":")[2] or 0)
        if index < torch.cuda.device_count():
            found["device"] = f"{device} ({torch.cuda.get_device_name(index)})"
        found |= {"cuda": str(torch.version.cuda), "driver": _driver(), "allocator": _allocator()}
    return found


def examine() -> Examination:
    """Look at Python, torch, CUDA, the driver, NVML and the allocator's settings. Touches every CUDA device once."""
    facts = {
        "memlab": memlab.__version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": f"{platform.platform()}, {_processor()}, {os.cpu_count()} cores",
    }
    try:
        import torch
    except Exception as error:
        facts["torch"] = f"cannot be imported: {type(error).__name__}: {error}"
        return Examination(facts, [Ability("anything", NOT_HERE, "memlab measures torch, which cannot be imported")])
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    facts["torch"] = f"{torch.__version__}, {built}"
    facts["CUDA devices"] = _devices()
    facts["driver"] = _driver()
    facts["allocator"] = _allocator()
    return Examination(facts, [*_everywhere(), *(_on_cuda(torch.device("cuda", 0)) if _cuda() else _without_cuda())])


def _everywhere() -> list[Ability]:
    return [
        Ability("saved tensors", MEASURED, "what autograd keeps for backward, to the byte, on the CPU and on CUDA"),
        Ability("live storages", MEASURED, "storages that operators create, to the byte, on the CPU and on CUDA"),
        Ability("host memory", MEASURED, "this process's resident and unique set size: a witness, not a measure"),
    ]


def _without_cuda() -> list[Ability]:
    why = "this torch is built without CUDA" if _cuda() is None else "torch finds no CUDA device"
    simulated = f"a model of torch's caching allocator, fed with what a CPU run creates, because {why}"
    return [
        Ability("allocated, reserved", SIMULATED, simulated),
        Ability("process on the device", NOT_HERE, f"NVML counts it on a CUDA device, and {why}"),
    ]


def _on_cuda(device: torch.device) -> list[Ability]:
    import torch

    from memlab.probes import cuda

    what, backend = "allocated, reserved", torch.cuda.get_allocator_backend()
    if backend != "native":
        return [Ability(what, NOT_HERE, f"{backend} keeps no account of blocks; choose backend:native")]
    cuda.warm_up(device)
    if cuda.computes(device):
        values = Ability("arms that prove values", MEASURED, f"{device} computes")
    else:
        values = Ability("arms that prove values", NOT_HERE, f"{device} is emulated: it counts bytes, values are zero")
    return [
        Ability(what, MEASURED, "torch.cuda's own account of the device; simulated where --device cpu is asked for"),
        _process_ability(device),
        values,
    ]


def _process_ability(device: torch.device) -> Ability:
    from memlab.probes.nvml import Nvml

    what = "process on the device"
    try:
        with Nvml(device) as nvml:
            found = nvml.read()
    except Unavailable as error:
        return Ability(what, NOT_HERE, str(error))
    if "nvml_process" not in found:
        return Ability(what, NOT_HERE, "; ".join(nvml.notes))
    return Ability(what, MEASURED, f"NVML counts {format_bytes(found['nvml_process'])} for this process now")


def _cuda() -> bool | None:
    """Tell whether torch can use CUDA; None when it is built without."""
    import torch

    return torch.cuda.is_available() if torch.version.cuda else None


def _devices() -> str:
    import torch

    if not _cuda():
        return "none"
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return "; ".join(f"cuda:{i} {each.name}, {format_bytes(each.total_memory)}" for i, each in enumerate(found))


def _driver() -> str:
    from memlab.probes.nvml import driver_version

    try:
        return driver_version()
    except Unavailable as error:
        return f"not found: {error}"


def _allocator() -> str:
    """Say which allocator torch uses for CUDA, and which of the settings in the environment are in force."""
    import torch

    given = {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}
    if not _cuda():
        unread = ", ".join(f"{name}={value}" for name, value in given.items())
        return f"simulated with default settings{f'; nothing here reads {unread}' if unread else ''}"
    backend = torch.cuda.get_allocator_backend()
    if backend != "native":
        return f"{backend}, {', '.join(given.values())}"
    settings = torch.cuda.memory._snapshot(0).get("allocator_settings", {}).get("PYTORCH_CUDA_ALLOC_CONF", "")
    ignored = "".join(f"; {name}={value} is ignored" for name, value in given.items() if value != settings)
    return f"{backend}, {settings or 'default settings'}{ignored}"


def _processor() -> str:
    """Name the processor; Linux tells only in a file."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
