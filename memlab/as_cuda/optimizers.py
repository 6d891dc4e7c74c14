"""Optimizers as on CUDA: foreach by default, and scalars such as Adam's ``step`` on the host, as there."""

from __future__ import annotations

import threading
from typing import Any

from torch._subclasses import FakeTensor
from torch.optim import ASGD, Adagrad
from torch.optim import optimizer as _optimizer
from torch.utils import _foreach_utils

_lock = threading.Lock()
_open = 0
_devices = _foreach_utils._get_foreach_kernels_supported_devices
_hooks: list[Any] = []
_adagrad_init: Any = Adagrad.__init__


class _Thread(threading.local):
    stepping = 0  # optimizers whose scalars are on the host now


_thread = _Thread()


def on_host() -> bool:
    """Tell whether a scalar made now is the optimizer's own and on the host."""
    return _thread.stepping > 0


def _supported() -> list[str]:
    return [*_devices(), "cpu"]


def _before(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not _on_device(optimizer):
        _thread.stepping += 1


def _after(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not _on_device(optimizer) and _thread.stepping:
        _thread.stepping -= 1


def _adagrad(self: Any, *args: Any, **kwargs: Any) -> None:
    """Adagrad makes its state at once: the scalars in it are on the host, unless it is fused."""
    scalars = 0 if kwargs.get("fused") else 1
    _thread.stepping += scalars
    try:
        _adagrad_init(self, *args, **kwargs)
    finally:
        _thread.stepping -= scalars


def _on_device(optimizer: Any) -> bool:
    if isinstance(optimizer, ASGD):
        return True
    return any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)


def enter() -> None:
    """Let optimizers choose as if parameters were on CUDA."""
    global _open
    with _lock:
        _open += 1
        if _open == 1:
            _replace(_supported)
            Adagrad.__init__ = _adagrad  # type: ignore[method-assign]
            for types in (_optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types):
                types.append(FakeTensor)
            _hooks.extend(
                (
                    _optimizer.register_optimizer_step_pre_hook(_before),
                    _optimizer.register_optimizer_step_post_hook(_after),
                )
            )


def leave() -> None:
    """Take it back."""
    global _open
    _thread.stepping = 0  # a step that raised has not run its post hook
    with _lock:
        _open -= 1
        if _open == 0:
            _replace(_devices)
            Adagrad.__init__ = _adagrad_init  # type: ignore[method-assign]
            for types in (_optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types):
                types.remove(FakeTensor)
            while _hooks:
                _hooks.pop().remove()


def _replace(devices: Any) -> None:
    for module in (_optimizer, _foreach_utils):
        module._get_foreach_kernels_supported_devices = devices  # type: ignore[attr-defined]
