"""The dispatch mode that tells a ledger of every storage which an operator makes.

Each operator has a rule of its own (``torch.library.register_torch_dispatch``), which C++ calls instead of the mode's
``__torch_dispatch__``: what an operator needs is decided once, when it is first met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from memlab import formulas
from memlab.bindings import call_of
from memlab.outputs import VIEW, WRITTEN, outputs_of
from memlab.storage_ledger import StorageLedger

Rule = Callable[["Mode", Any, Any, tuple[Any, ...], dict[str, Any]], Any]

# By id, for an operator's own hash is Python code; each with its operator, so that ids stay.
_rules: dict[int, tuple[Any, Rule]] = {}
_lock = Lock()
_library = torch.library.Library("aten", "FRAGMENT")
_sequence_nr = torch._C._autograd._get_sequence_nr
_grad_enabled = torch.is_grad_enabled
_modes_below = torch._C._len_torch_dispatch_stack


class Mode(TorchDispatchMode):
    """Sees every operator of its thread and tells the ledger of what it returns."""

    def __init__(self, ledger: StorageLedger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger

    def __enter__(self) -> Any:
        formulas.learn()
        return super().__enter__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True wraps every call in torch._dynamo.disable: 4 us an operator, and a second to import

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # torch.compile goes on compiling inside a watch

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = _rules.get(id(func))
        rule = known[1] if known is not None else _rule_of(func)
        return rule(self, func, types, args, kwargs or {})


class ThreadMode(Mode):
    """A `Mode` in a thread that may live on when the probe has ended."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.ledger.recording:
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def _is_aten(func: Any) -> bool:
    return isinstance(func, OpOverload) and func.namespace == "aten"


def _rule_of(func: Any) -> Rule:
    with _lock:  # torch refuses a second rule
        if id(func) not in _rules:
            rule = _new_rule(func)
            _rules[id(func)] = func, rule
            if _is_aten(func):
                torch.library.register_torch_dispatch(func, Mode, rule, lib=_library)
        return _rules[id(func)][1]


def _new_rule(func: Any) -> Rule:
    outputs = outputs_of(func)
    if outputs == VIEW:
        return _view_rule(func)
    rule = _maker_rule(func, outputs)
    if func in formulas.ZEROS:
        return _zeros_rule(rule)
    return _formula_rule(func, rule) if func in formulas.IN_PLACE else rule


def _view_rule(func: Any) -> Rule:
    """Half of all operators that run are views: they make no storage, and their nodes save sizes, no tensors."""
    call = call_of(func)

    def view(mode: Mode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return call(*args, **kwargs) if kwargs else call(*args)

    return view


def _maker_rule(func: Any, outputs: int) -> Rule:
    call = call_of(func)

    def make(mode: Mode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ledger, sequence, grad = mode.ledger, _sequence_nr(), _grad_enabled()
        ledger.runs(func, sequence, grad)
        out = call(*args, **kwargs) if kwargs else call(*args)
        ledger.has_run(func, args, out, sequence, grad, outputs)
        return out

    return make


def _zeros_rule(make: Rule) -> Rule:
    def zeros(mode: Mode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = make(mode, func, types, args, kwargs)
        formulas.made_zeros(mode.ledger.here.operators, out)
        return out

    return zeros


def _formula_rule(func: Any, make: Rule) -> Rule:
    write = _maker_rule(formulas.IN_PLACE[func], WRITTEN)

    def formula(mode: Mode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = None
        if not _modes_below():  # a user's own mode is to see what it would see without ours
            found = formulas.in_place(func, args, kwargs, mode.ledger.here.operators)
        if found is None:
            return make(mode, func, types, args, kwargs)
        operator, given = found
        return write(mode, operator, types, given, kwargs)

    return formula
