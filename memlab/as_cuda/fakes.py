"""Fake tensors on the CPU: shapes and types without memory and arithmetic, so that any model fits into any machine."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.nn.modules.module import Module

from memlab.as_cuda.loading import loads_fakes
from memlab.as_cuda.values import Values

NEEDS_DATA = (DataDependentOutputException, DynamicOutputShapeException)
"""What an operator raises whose result depends on values, which a fake tensor does not have."""
_apply = Module._apply
_became: dict[int, dict[int, Any]] = {}  # by thread, while a module's parameters change: old and new, by id


class _Thread(threading.local):
    def __init__(self) -> None:
        self.entered: list[Any] = []
        self.in_kernel = False


class FakeMode(FakeTensorMode):
    """torch's, but each thread has its own stack and asks only whether it is in a kernel itself.

    Attributes:
        values: what was read of fake tensors, and taken for granted.
    """

    def __init__(self) -> None:
        self._thread = _Thread()
        self.values = Values()
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except DataDependentOutputException:
            value = self.values.of(func, args)
            if value is None:
                raise
            return value

    @property
    def in_kernel_invocation(self) -> bool:
        return self._thread.in_kernel

    @in_kernel_invocation.setter
    def in_kernel_invocation(self, value: bool) -> None:
        self._thread.in_kernel = value

    @property
    def enter_stack(self) -> list[Any]:
        return self._thread.entered

    @enter_stack.setter
    def enter_stack(self, value: list[Any]) -> None:
        self._thread.entered = value


@contextmanager
def fake_tensors() -> Iterator[FakeMode]:
    """Let every tensor that is made in the block be fake; modules of them can be moved and copied.

    Yields the mode, for other threads to enter.
    """
    Module._apply = _apply_to_fakes  # type: ignore[method-assign]
    FakeTensor.__deepcopy__ = _copy  # type: ignore[assignment]
    try:
        with loads_fakes(), FakeMode() as mode:
            yield mode
    finally:
        Module._apply = _apply  # type: ignore[method-assign]
        del FakeTensor.__deepcopy__


def _copy(tensor: FakeTensor, memo: dict[int, Any]) -> Any:
    """``copy.deepcopy()``: torch would copy the fake mode along, and refuse to mix the two."""
    if id(tensor) in memo:
        return memo[id(tensor)]
    if not tensor.is_leaf:
        return Tensor.__deepcopy__(tensor, memo)  # type: ignore[no-untyped-call]  # says why it cannot
    with torch.no_grad():
        copied: Any = tensor.clone(memory_format=torch.preserve_format)
    if isinstance(tensor, torch.nn.Parameter):
        copied = torch.nn.Parameter(copied, tensor.requires_grad)
    copied.requires_grad_(tensor.requires_grad)
    copied.grad = copy.deepcopy(tensor.grad, memo)
    memo[id(tensor)] = copied
    return copied


def _apply_to_fakes(module: Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Module:
    """``module.to()``: torch swaps a fake parameter's inside, and cannot while anything refers to it weakly."""
    if not any(isinstance(each, FakeTensor) for each in (*module.parameters(), *module.buffers())):
        return _apply(module, fn, recurse)  # type: ignore[no-any-return, no-untyped-call]
    became = _became.setdefault(threading.get_ident(), {})
    outermost = not became
    became[0] = None
    try:
        for child in module.children() if recurse else ():
            child._apply(fn)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = _changed(parameter, fn, became)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fn(buffer)
    finally:
        if outermost:
            del _became[threading.get_ident()]
    return module


def _changed(parameter: torch.nn.Parameter, fn: Callable[[Tensor], Tensor], became: dict[int, Any]) -> Any:
    """Return what becomes of a parameter; modules that share it go on sharing it."""
    if id(parameter) not in became:
        with torch.no_grad():
            data = fn(parameter)
        new = parameter
        if data is not parameter:
            new = torch.nn.Parameter(data, parameter.requires_grad)
            new.grad = None if parameter.grad is None else fn(parameter.grad)
        became[id(parameter)] = became[id(new)] = new
    return became[id(parameter)]


def why(error: BaseException) -> str:
    """Say in a sentence what a fake tensor could not do."""
    operator: Any = getattr(error, "func", None) or "an operator"
    name = str(operator).removeprefix("aten.").split(".")[0]
    asked = "a whole number that is read of a tensor" if "local_scalar" in name else f"what {name} returns"
    return f"it needs data, and fake tensors have none: {asked} depends on values; run it on real ones, without --fake"
