"""The kernel that tells ledgers of every storage which an operator makes, and hands the operator on unchanged.

It sits in torch's dispatcher between autograd and the backends, at the key ``Fake``, and acts on threads that include
that key. A `memlab.dispatch.Mode` sees the same operators, but torch does other things under any mode: views go through
Python as well, and autograd takes every tensor for one of a subclass (``at::isTensorSubclassLike``) and other formulas
for it. Here it does what it does without memlab, and results/overhead.md says what that saves.

Up to torch 2.15 the key has no other kernel; it was meant for ones from outside (pytorch #76139). Later it is to be
torch's own (pytorch #183776): where it is, `is_available()` is False, and a mode does the work. So does a mode when
functions were compiled before: torch.compile guards the keys of a thread, and would compile them again for ours.

Which ledgers are open belongs to a thread, like the key. Both go along to the threads that run its backward, as all of
torch's thread-local state does (at::ThreadLocalState).
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._guards import _TLS as _guards
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from memlab.formulas import IN_PLACE, SUM, adds_in_place, references, unheard
from memlab.operators import Here
from memlab.outputs import DOUBTFUL, VIEW, WRITTEN, outputs_by, outputs_of
from memlab.storage_ledger import StorageLedger

_KEY = torch._C._dispatch_key_parse("Fake")
_BELOW = torch._C._dispatch_keyset_full_after(_KEY)
_IS_ABOVE_MODES = _KEY.value > torch._C.DispatchKey.Python.value  # up to torch 2.11 or 2.12
_MODES_MAY_COMPILE = hasattr(TorchDispatchMode, "ignore_compile_internals")  # else nothing is compiled under a mode
_OPEN = "memlab.kernel"  # the name of a thread's open ledgers in its thread-local state

_TORCH = Path(torch.__file__).parent
_FOR_OTHERS = _TORCH / "library.py", _TORCH / "_library" / "custom_ops.py"  # where torch defines what others ask for
_DEFINED_AT = re.compile(r"^debug: registered at (.+):\d+$", re.MULTILINE)

ADD = IN_PLACE[SUM]
_sequence_nr = torch._C._autograd._get_sequence_nr
_grad_enabled = torch.is_grad_enabled
_modes = torch._C._len_torch_dispatch_stack
_include = torch._C._dispatch_tls_set_dispatch_key_included
_is_included = torch._C._dispatch_tls_is_dispatch_key_included
_open_here = torch._C._get_obj_in_tls
_lock = threading.RLock()  # a finalizer that runs inside may meet an operator, too


def _takes_references_it_is_not_given() -> bool:
    """Whether torch's thread-local state drops a reference to what it held that it has never counted (to 2.11)."""
    thing = object()
    before = sys.getrefcount(thing)
    torch._C._stash_obj_in_tls(_OPEN, thing)
    after = sys.getrefcount(thing)
    if after == before:
        _count_reference(thing)
    torch._C._stash_obj_in_tls(_OPEN, True)
    return after == before


def _count_reference(thing: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_STEALS = _takes_references_it_is_not_given()


def _stash(ledgers: tuple[StorageLedger, ...]) -> None:
    if _STEALS:
        _count_reference(ledgers)
    torch._C._stash_obj_in_tls(_OPEN, ledgers)


class _Operator:
    """An operator that makes storages, and what is to be known of it once it has run."""

    __slots__ = ("handed_on", "name", "operator", "outputs")

    handed_on: Callable[..., Any]

    def __init__(self, name: str) -> None:
        self.name = name  # with its overload
        self.operator: Any = None
        self.outputs = DOUBTFUL

    def learn(self) -> None:
        packet, overload = _parted(self.name)
        namespace, _, base = packet.partition("::")
        with _lock:  # torch makes an overload when it is asked for, and in two threads at a time two of them
            operator = getattr(getattr(getattr(torch.ops, namespace), base), overload or "default")
            self.outputs = outputs_of(operator)
            self.handed_on = operator._handle.redispatch_boxed
            if torch._C._should_allow_numbers_as_tensors(base):
                self.handed_on = partial(_with_number, operator)
            self.operator = operator


class _Here(threading.local):
    """The ledgers that are open in a thread of Python's own."""

    ledgers: tuple[StorageLedger, ...] | None = None


_here = _Here()
_registered: set[str] = set()  # operators that were looked at: those with our kernel, and those that need none
_libraries: dict[str, torch.library.Library] = {}
_sources = (0, 0, 0)  # where operators come from: looking for new ones takes 5 ms


class Kernel:
    """Lets a ledger see the operators of the thread that enters it, as a `memlab.dispatch.Mode` does."""

    def __init__(self, ledger: StorageLedger) -> None:
        self.ledger = ledger

    def __enter__(self) -> Kernel:
        learn_operators()
        _learn_sums()
        _set_open((*(_here.ledgers or ()), self.ledger))
        return self

    def __exit__(self, *error: object) -> None:
        if not _is_included(_KEY):
            self.ledger.blind.add(
                "what ran after the end of an inference_mode block that began before the watch was not seen"
            )
        _set_open(tuple(each for each in _here.ledgers or () if each is not self.ledger))


def _set_open(ledgers: tuple[StorageLedger, ...]) -> None:
    _here.ledgers = ledgers
    _stash(ledgers)
    _include(_KEY, bool(ledgers))


def _kernel(known: _Operator, keyset: Any, *args: Any, **kwargs: Any) -> Any:
    if known.operator is None:
        known.learn()
    operator, ledgers = known.operator, _here.ledgers
    if ledgers is None:  # a thread of autograd's
        ledgers = _open_here(_OPEN)
    sequence, grad, handed_on, outputs = _sequence_nr(), _grad_enabled(), known.handed_on, known.outputs
    if operator is SUM and ledgers and adds_in_place(args, kwargs, ledgers[0].here.operators, _engines_own(args)):
        operator, handed_on, outputs = ADD, ADD._handle.redispatch_boxed, WRITTEN
    for ledger in ledgers:
        ledger.runs(operator, sequence, grad)
        if _IS_ABOVE_MODES and _modes():
            ledger.blind.add("what a TorchDispatchMode makes beside an operator's outputs is not seen on this torch")
    _include(_KEY, False)  # not to see what the operator does inside
    try:
        out = handed_on(keyset & _BELOW, *args, **kwargs)
    finally:
        _include(_KEY, bool(ledgers))  # none: one was closed where its key could not be taken back
    # While torch.compile traces, no tensor has memory.
    if getattr(_guards, "tracing_context", None) is None:
        for ledger in ledgers:
            if ledger.recording:  # else it is closed, and this thread goes on
                ledger.has_run(operator, args, out, sequence, grad, outputs)
    return out


class _Looking:
    """Stands for a ledger while it is learned what a tensor looks like that is the engine's alone."""

    recording = True

    def __init__(self) -> None:
        self.here, self.blind = Here(), set[str]()
        self.found: tuple[int, int] | None = None
        self._seen: list[Any] = []

    def runs(self, operator: Any, sequence: int, grad: bool) -> None:
        pass

    def has_run(self, operator: Any, args: Any, out: Any, sequence: int, grad: bool, outputs: int) -> None:
        if isinstance(out, Tensor):
            self._seen.append(weakref.ref(out.untyped_storage()))


_sum: tuple[int, int] | None = None  # references of Python and C++ to it
_looking: _Looking | None = None


def _engines_own(args: tuple[Any, ...]) -> tuple[int, int]:
    if _looking is not None and not _grad_enabled():
        _looking.found = references(args)
    return _sum or (0, 0)


def _learn_sums() -> None:
    """Learn it once in a process, and not on import: see `memlab.formulas.learn`."""
    global _sum, _looking
    if _sum is not None or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    before, _looking = _here.ledgers, _Looking()
    with _lock, unheard():
        x = torch.ones(1, device="cpu", requires_grad=True)
        outputs: Any = x.exp() + x.exp()
        _set_open((_looking,))  # type: ignore[arg-type]
        try:
            torch.autograd.grad(outputs.sum(), x)
        finally:
            _sum, _looking = _looking.found or (0, 0), None
            _set_open(before or ())


def _with_number(operator: Any, keyset: Any, *args: Any, **kwargs: Any) -> Any:
    """Hand on an operator that may be given a number, which C++ had wrapped: only its overload can wrap it again."""
    if isinstance(args[0], Tensor) and (len(args) == 1 or isinstance(args[1], Tensor)):
        return operator._handle.redispatch_boxed(keyset, *args, **kwargs)
    with torch._C.DisableTorchFunction():
        return operator._op(*args, **kwargs)


def learn_operators() -> list[str]:
    """Put the kernel in front of operators that make storages and were not there before; return which these are."""
    global _sources
    sources = len(sys.modules), len(torch.library._defs), len(torch.ops.loaded_libraries)
    if sources == _sources:
        return []
    with _lock:
        _sources = sources
        new = [name for name in torch._C._dispatch_get_all_op_names() if name not in _registered]
        _registered.update(new)
        makers = [name for name in new if _makes_storages(name)]
        for name in makers:
            _register(name)
    return makers


def is_torchs_own(name: str) -> bool:
    """Tell an operator that one of torch's own modules has defined.

    Making the first optimizer imports modules that define some thirty, for compiling, FSDP and exporting.
    """
    custom = OPDEFS.get(name)
    if custom is not None:
        file = getattr(getattr(custom._init_fn, "__code__", None), "co_filename", "")
    else:
        found = _DEFINED_AT.search(torch._C._dispatch_dump(name))
        file = found[1] if found is not None else ""
    return _TORCH in Path(file).parents and Path(file) not in _FOR_OTHERS


def _register(name: str) -> None:
    namespace, _, rest = name.partition("::")
    library = _libraries.get(namespace)
    if library is None:
        library = _libraries[namespace] = torch.library.Library(namespace, "IMPL", "Fake")
    implementations: Any = library.m  # Library.impl does more, and takes 0.1 s longer for all
    implementations.impl(rest, "Fake", partial(_kernel, _Operator(name)), True)


def _makes_storages(name: str) -> bool:
    # In inference mode, operators that are made of others are not taken apart above us, but below.
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
        return False
    return outputs_by(torch._C._get_schema(*_parted(name))) != VIEW


def _parted(name: str) -> tuple[str, str]:
    """Part ``aten::add.Tensor`` into operator and overload."""
    operator, _, overload = name.partition(".")
    return operator, overload


def _take_key() -> torch.library.Library | None:
    """Let operators without our kernel pass by at the key; None where the key is torch's own."""
    others = torch.library.Library("_", "IMPL", "Fake")
    try:
        others.fallback(torch.library.fallthrough_kernel)
    except RuntimeError:
        return None
    return others


_others = _take_key()
if _others is not None:
    learn_operators()


def is_available() -> bool:
    """Whether the kernel may be used now, for all that it would disturb."""
    return _others is not None and not (_MODES_MAY_COMPILE and _have_compiled())


def _have_compiled() -> bool:
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and any(each is not None for each in dynamo.cached_backends.values())
