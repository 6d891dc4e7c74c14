"""Tracebacks as they would be without memlab: no frame of ours, and none that torch runs because of our hooks."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType

import torch
from torch.nn.modules import module as torch_module

from memlab.stacks import is_own

_CALL = torch_module.Module._call_impl.__code__
# With any hook, even a global one, a module's forward runs inside this function; without, in _call_impl itself.
_INNER = next((each for each in _CALL.co_consts if isinstance(each, CodeType) and each.co_name == "inner"), None)
_GLOBAL = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
_OWN = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hide_ourselves(error: BaseException) -> None:
    """Take memlab's frames out of the traceback of an error, and of the errors that led to it."""
    for each in _chain(error):
        each.__traceback__ = _without_ours(each.__traceback__)


def out_of_memory(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """Return the OutOfMemoryError that an error is, or that led to it."""
    found = (each for each in _chain(error) if isinstance(each, torch.OutOfMemoryError))
    return next(found, None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    waiting, seen = [error], {id(error)}
    while waiting:
        each = waiting.pop()
        if each is None:
            continue
        yield each
        for other in (each.__cause__, each.__context__, *getattr(each, "exceptions", ())):
            if isinstance(other, BaseException) and id(other) not in seen:
                seen.add(id(other))
                waiting.append(other)


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    kept: list[TracebackType] = []
    while traceback is not None:
        if traceback.tb_frame.f_code is _INNER and kept and not _is_hooked(kept[-1].tb_frame):
            kept[-1] = _at_plain_call(kept[-1])
        elif not is_own(traceback.tb_frame.f_code.co_filename):
            kept.append(traceback)
        traceback = traceback.tb_next
    for index, each in enumerate(kept):
        each.tb_next = kept[index + 1] if index + 1 < len(kept) else None
    return kept[0] if kept else None


def _is_hooked(call: FrameType) -> bool:
    """Tell whether the module of a ``_call_impl`` has hooks besides ours, which are gone by now."""
    module = call.f_locals.get("self")
    if call.f_code is not _CALL or module is None:
        return True
    own = any(module.__dict__.get(name) for name in _OWN)
    return own or any(getattr(torch_module, name, None) for name in _GLOBAL)


def _at_plain_call(traceback: TracebackType) -> TracebackType:
    """Return the traceback of ``_call_impl`` as if it had called forward itself: by its first such call."""
    for instruction in dis.get_instructions(_CALL):
        if instruction.opname == "CALL_FUNCTION_EX":
            line = next((line for start, end, line in _CALL.co_lines() if start <= instruction.offset < end), None)
            return TracebackType(None, traceback.tb_frame, instruction.offset, line or traceback.tb_lineno)
    return traceback
