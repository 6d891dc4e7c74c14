"""Code that asks for CUDA by name gets the CPU, whose tensors count as on the card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


class OnCpu(TorchFunctionMode):
    """Lets every function that is given a CUDA device, in words, as a `torch.device` or a number, use the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:  # code may ask what it is called
            return func(*args, **kwargs)
        if func is Tensor.cuda:
            return args[0].to(**{key: each for key, each in kwargs.items() if key == "memory_format"}, device=CPU)
        if any(map(_is_cuda, chain(args, kwargs.values()))):
            args = tuple(CPU if _is_cuda(each) else each for each in args)
            kwargs = {key: CPU if _is_cuda(each) else each for key, each in kwargs.items()}
        if func is Tensor.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], CPU, *args[2:])
        if type(kwargs.get("device")) is int:
            kwargs = {**kwargs, "device": CPU}
        return func(*args, **kwargs)


def _is_cuda(given: Any) -> bool:
    if isinstance(given, str):
        return given == "cuda" or given.startswith("cuda:")
    return isinstance(given, torch.device) and given.type == "cuda"


@contextmanager
def cuda_here() -> Iterator[None]:
    """Let code choose a CUDA device, wait for it and scale gradients there.

    For a process of its own: torch.compile would go on with what it finds here.
    """
    with (
        mock.patch.multiple(torch.cuda, synchronize=_synchronize, set_device=_set_device),
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", _scales_nothing),
    ):
        yield


def _synchronize(device: Any = None) -> None:
    pass


def _set_device(device: Any) -> None:
    pass


def _scales_nothing() -> bool:
    return False
