"""Live tensor storages: what operators created while the probe was open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

from memlab import node_names
from memlab.allocator import Allocator
from memlab.card_ledger import CardLedger
from memlab.operators import CLONE
from memlab.origins import storage_key
from memlab.storage_ledger import StorageLedger

# What an operator's outputs are, by its schema: storages of its own, views of its inputs, the inputs it writes to; or
# not known, for operators outside aten that may break their schema's promise.
FRESH, VIEW, WRITTEN, DOUBTFUL = range(4)
# What to call for an operator, by its id, for its own hash is Python code. Half of all operators that run are views:
# they make no storage, and their nodes save sizes, no tensors.
_views: dict[int, Any] = {}
_makers: dict[int, tuple[Any, int]] = {}
_kept: list[Any] = []  # so that ids stay
_sequence_nr = torch._C._autograd._get_sequence_nr
_grad_enabled = torch.is_grad_enabled
_watched = node_names.watched

# Their schemas promise a fresh output, but they return an alias of their input.
_ALIASING = {"aten::_unsafe_view", "aten::_reshape_alias", "aten::lift", "aten::_reshape_from_tensor"}


class Mode(TorchDispatchMode):
    """Sees every operator of its thread and tells the ledger of what it returns."""

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
        number = id(func)
        call = _views.get(number)
        if call is not None:
            return call(*args, **kwargs) if kwargs else call(*args)
        known = _makers.get(number)
        if known is None:
            outputs_of(func)
            return Mode.__torch_dispatch__(self, func, types, args, kwargs)
        call, outputs = known
        ledger, sequence, grad = self.ledger, _sequence_nr(), _grad_enabled()
        operators = ledger.here.operators
        if _watched:
            node_names.learn()
        operators.runs(func, sequence, grad)
        out = call(*args, **kwargs) if kwargs else call(*args)
        if grad and sequence != operators.sequence and func is not CLONE:  # a node was made since the last operator
            operators.sequence = sequence
            if number not in node_names.done:
                node_names.watch(func, out, sequence)
        if outputs == FRESH and isinstance(out, Tensor):
            ledger.see(out, sequence, True, func)
        else:
            for each in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(each, Tensor):
                    self.see(func, each, sequence, outputs, args)
        return out

    def see(self, func: Any, out: Tensor, sequence: int, outputs: int, args: tuple[Any, ...]) -> None:
        """Account for one output of the operator ``func``; ``outputs`` is what `outputs_of` says of it."""
        if outputs != VIEW:
            fresh = outputs == FRESH or (outputs == DOUBTFUL and not _is_alias(out, args))
            self.ledger.see(out, sequence, fresh, func)


class _ThreadMode(Mode):
    """A `Mode` in a thread that may live on when the probe has ended."""

    def __init__(self, ledger: StorageLedger, is_open: Callable[[], bool]) -> None:
        super().__init__(ledger)
        self._is_open = is_open

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._is_open():
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def outputs_of(func: Any) -> int:
    """Return what an operator's outputs are: FRESH, VIEW, WRITTEN or DOUBTFUL."""
    number = id(func)
    if number in _views:
        return VIEW
    if number not in _makers:
        _kept.append(func)
        call, outputs = _call_of(func), _outputs_of(func)
        if outputs == VIEW:
            _views[number] = call
            return VIEW
        _makers[number] = call, outputs
    return _makers[number][1]


def _call_of(func: Any) -> Any:
    """Return what OpOverload.__call__ calls: one Python frame less for each operator."""
    return func._op if type(func) is OpOverload else func


def _outputs_of(func: Any) -> int:
    if not isinstance(func, OpOverload) or func.namespace != "aten":
        return DOUBTFUL
    aliases = [returned.alias_info for returned in func._schema.returns]
    if any(alias is not None and alias.is_write for alias in aliases):
        return WRITTEN
    return VIEW if any(alias is not None for alias in aliases) or func._schema.name in _ALIASING else FRESH


def _is_alias(out: Tensor, args: tuple[Any, ...]) -> bool:
    return any(isinstance(each, Tensor) and storage_key(each) == storage_key(out) for each in args)


class Storages:
    """Bytes of tensor storages that operators created in this thread (and in its backward) while the probe was open.

    Exact for what operators return. It cannot see: temporaries inside a kernel, storages made by Python code without
    an operator (``torch.UntypedStorage(n)``, ``frombuffer``), ``untyped_storage().resize_()``, sparse layouts, threads
    but for those that enter `opened_in_thread`, and allocations of compiled regions. A view keeps its whole base
    storage alive, and that is what counts.

    Args:
        card: a simulated card on which every storage is also allocated; where it does not fit, the operator raises
            ``torch.OutOfMemoryError``.
        keep_peak: remember what the peak was made of, for `at_peak`.
        mode: makes the dispatch mode that feeds the ledger; the default sees operators as they are.
    """

    name = "storages"

    def __init__(
        self,
        card: Allocator | None = None,
        mode: Callable[[Any], Any] | None = None,
        *,
        keep_peak: bool = False,
    ) -> None:
        at_once = card is not None or keep_peak
        self.ledger: StorageLedger = CardLedger(card, keep_peak=keep_peak) if at_once else StorageLedger()
        self._mode: Any = (mode or Mode)(self.ledger)
        self._registrations: list[Any] = []
        self._is_open = False

    def __enter__(self) -> Storages:
        self._registrations = [
            register_module_parameter_registration_hook(self._mark("parameter")),
            register_module_buffer_registration_hook(self._mark("buffer")),
        ]
        self._mode.__enter__()
        self._is_open = True
        return self

    def __exit__(self, *error: object) -> None:
        self._is_open = False
        self._mode.__exit__(*error)
        for registration in self._registrations:
            registration.remove()

    @contextmanager
    def opened_in_thread(self) -> Iterator[None]:
        """Let this probe, which is open in another thread, see this one, too."""
        if type(self._mode) is not Mode:
            self.ledger.blind.add("threads that were started meanwhile are not seen under a history or as on a card")
            yield
            return
        with _ThreadMode(self.ledger, lambda: self._is_open):
            yield

    def _mark(self, kind: str) -> Any:
        def mark(module: Module, name: str, tensor: object) -> None:
            if isinstance(tensor, torch.Tensor) and storage_key(tensor) is not None:
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

    @property
    def at_peak(self) -> list[tuple[int, str, str]]:
        """What `peak` was made of, largest first: (bytes, operator, source line); empty unless ``keep_peak``."""
        return self.ledger.at_peak

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
