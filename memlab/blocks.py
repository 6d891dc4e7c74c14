"""What checkpointing each top-level block of a model would save: what it keeps for backward, less what enters it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import Module, register_module_forward_hook, register_module_forward_pre_hook

from memlab.hooks import tensors_in
from memlab.lines import GIVEN, Line


def block_of(module: str) -> str:
    """Return the top-level block of a module's name: ``encoder.layers.3.mlp`` lies in ``encoder.layers.3``."""
    parts = module.split(".")
    end = next((index for index, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: end + 1])


class _Thread(threading.local):
    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.open: list[Module] = []


class Inputs:
    """Bytes of the tensors with which each module below the outermost one was called first."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self._here = _Thread()
        self._registrations: list[Any] = []

    def __enter__(self) -> Inputs:
        self._registrations = [
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after, always_call=True),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for registration in self._registrations:
            registration.remove()

    def _before(self, module: Module, args: Any) -> None:
        here = self._here
        if not here.open:
            here.names = {id(each): name for name, each in module.named_modules()}
        here.open.append(module)
        name = here.names.get(id(module))
        if name and name not in self.bytes and torch.is_grad_enabled():
            self.bytes[name] = sum(_bytes_of(each) for each in tensors_in(args))

    def _after(self, module: Module, args: Any, out: Any) -> None:
        if self._here.open:
            self._here.open.pop()


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def savings(lines: Iterable[Line], inputs: dict[str, int]) -> dict[str, int]:
    """Return ``{block: bytes}`` that checkpointing it would save, largest first; nothing where nothing is saved."""
    kept: Counter[str] = Counter()
    for line in lines:
        if line.module and line.kind not in GIVEN:
            kept[block_of(line.module)] += line.bytes
    found = {block: kept[block] - inputs[block] for block in kept if block in inputs}
    return dict(sorted(((block, size) for block, size in found.items() if size > 0), key=lambda each: -each[1]))
