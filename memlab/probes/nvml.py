"""The driver's account of one device, read through pynvml (distribution nvidia-ml-py)."""

from __future__ import annotations

import os
from typing import Any

import torch

from memlab.probes import Unavailable


class Nvml:
    """Bytes that the driver counts: the whole device's use and total, and this process's.

    Absolute values, not differences: the context exists only once torch has touched the device. The device is matched
    by UUID, because NVML counts by bus order and torch by CUDA_VISIBLE_DEVICES. ``nvml_process`` is missing where the
    driver does not tell it (containers, MIG, WDDM): `notes` says so. It cannot see what the memory is used for.

    Args:
        device: a CUDA device of torch, such as ``"cuda:0"``.
    """

    name = "nvml"

    def __init__(self, device: torch.device | str = "cuda") -> None:
        self.device = torch.device(device)
        self.notes: list[str] = []

    def __enter__(self) -> Nvml:
        self._nvml = _load()
        try:
            self._handle = _find(self._nvml, self.device)
        except BaseException:
            self._nvml.nvmlShutdown()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._nvml.nvmlShutdown()

    def read(self) -> dict[str, int]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        found = {"nvml_used": int(memory.used), "nvml_total": int(memory.total)}
        process = self._process_bytes()
        return found if process is None else found | {"nvml_process": process}

    def _process_bytes(self) -> int | None:
        self.notes = []
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError as error:
            self.notes = [f"NVML does not list processes here ({error})"]
            return None
        mine = [process for process in running if process.pid == os.getpid()]
        if not mine:
            self.notes = ["NVML does not list this process: it has no context yet, or runs in another PID namespace"]
            return None
        if mine[0].usedGpuMemory is None:
            self.notes = ["NVML hides bytes per process here (a container, MIG or WDDM)"]
            return None
        return int(mine[0].usedGpuMemory)


def _load() -> Any:
    try:
        import pynvml
    except ImportError:
        raise Unavailable("pynvml is not installed; pip install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Unavailable(f"NVML does not start: {error}") from None
    return pynvml


def _find(nvml: Any, device: torch.device) -> Any:
    if not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device to match by UUID")
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except nvml.NVMLError as error:
        raise Unavailable(f"NVML does not know {device} (UUID {uuid}): {error}") from None


def driver_version() -> str:
    """Return the driver's version. Raises `Unavailable` without a driver."""
    nvml = _load()
    try:
        version = nvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    finally:
        nvml.nvmlShutdown()
