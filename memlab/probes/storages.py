"""Live tensor storages: what operators created while the probe was open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn.modules.module import (
    Module,
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from memlab.allocator import Allocator
from memlab.storage_ledger import StorageLedger

# Their schemas promise a fresh output, but they return an alias of their input.
_ALIASING = {"aten::_unsafe_view", "aten::_reshape_alias", "aten::lift", "aten::_reshape_from_tensor"}
_fresh_outputs: dict[Any, bool] = {}


class _Mode(TorchDispatchMode):
    def __init__(self, ledger: StorageLedger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True wraps every call in torch._dynamo.disable: 4 us an operator, and a second to import

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # torch.compile goes on compiling inside a watch

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        ledger = self.ledger
        ledger.before_op(func)
        out = func(*args, **kwargs) if kwargs else func(*args)
        fresh = _fresh_outputs.get(func)
        if fresh is None:
            fresh = _fresh_outputs[func] = _is_fresh(func)
        if isinstance(out, Tensor):
            ledger.see(out, func, fresh=fresh and not _is_alias(func, out, args))
        elif isinstance(out, (tuple, list)):
            for each in out:
                if isinstance(each, Tensor):
                    ledger.see(each, func, fresh=fresh and not _is_alias(func, each, args))
        return out


def _is_fresh(func: Any) -> bool:
    if not isinstance(func, OpOverload):
        return True
    return all(returned.alias_info is None for returned in func._schema.returns) and func._schema.name not in _ALIASING


def _is_alias(func: Any, out: Tensor, args: tuple[Any, ...]) -> bool:
    """Operators outside aten may break their schema's promise: look whether the output is an input's storage."""
    if getattr(func, "namespace", "aten") == "aten":
        return False
    return any(isinstance(each, Tensor) and _key(each) == _key(out) for each in args)


def _key(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


class Storages:
    """Bytes of tensor storages that operators created in this thread (and in its backward) while the probe was open.

    Exact for what operators return. It cannot see: temporaries inside a kernel, storages made by Python code without
    an operator (``torch.UntypedStorage(n)``, ``frombuffer``), ``untyped_storage().resize_()``, sparse layouts, other
    threads, and allocations of compiled regions. A view keeps its whole base storage alive, and that is what counts.

    Args:
        card: a simulated card on which every storage is also allocated; where it does not fit, the operator raises
            ``torch.OutOfMemoryError``.
    """

    name = "storages"

    def __init__(self, card: Allocator | None = None) -> None:
        self.ledger = StorageLedger(card)
        self._mode: Any = _Mode(self.ledger)
        self._registrations: list[Any] = []

    def __enter__(self) -> Storages:
        self._registrations = [
            register_module_parameter_registration_hook(self._mark("parameter")),
            register_module_buffer_registration_hook(self._mark("buffer")),
        ]
        self._mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._mode.__exit__(*error)
        for registration in self._registrations:
            registration.remove()

    def _mark(self, kind: str) -> Any:
        def mark(module: Module, name: str, tensor: object) -> None:
            if isinstance(tensor, torch.Tensor) and _key(tensor) is not None:
                self.ledger.mark(tensor, kind)

        return mark

    def read(self) -> dict[str, int]:
        return {"storages": self.bytes, "storages_peak": self.peak}

    @property
    def bytes(self) -> int:
        """Bytes of storages created here and alive now."""
        return self.ledger.bytes

    @property
    def peak(self) -> int:
        """The most that `bytes` has been."""
        return self.ledger.peak

    def by_device(self) -> dict[str, int]:
        """Return ``{device: bytes}`` of what is alive now."""
        return self.ledger.by_device()

    @property
    def sizes(self) -> list[int]:
        """Bytes of each storage alive now, in the order of creation."""
        return self.ledger.sizes

    @property
    def blind(self) -> list[str]:
        """Sentences about what this probe met and could not see."""
        return sorted(self.ledger.blind)

    def seal(self) -> None:
        """Let what is alive now count as there before: an input, and no longer part of `bytes`."""
        self.ledger.seal()

    def reset_peak(self) -> None:
        """Let `peak` start again from the present `bytes`."""
        self.ledger.reset_peak()
