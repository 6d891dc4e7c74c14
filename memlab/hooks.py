"""One pair of saved-tensor hooks for every ledger that is open in a thread, composed with the user's own pairs.

torch applies only the innermost pair of saved-tensor hooks. So while a ledger is open, the functions through which
``saved_tensors_hooks``, ``save_on_cpu`` and ``checkpoint`` install theirs are replaced by ones that compose: the user's
pack and unpack do their work unchanged, and what they pack is counted. The replacements act on the threads that have
an open ledger and are taken back when the last ledger closes.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from memlab.ledger import Entry, SavedLedger
from memlab.origins import pop_hooks, push_hooks

Pack = Callable[[Tensor], Any]
Unpack = Callable[[Any], Tensor]

_autograd = torch._C._autograd
_top_hooks = _autograd._top_saved_tensors_default_hooks
_disable_hooks = _autograd._saved_tensors_hooks_disable
_enable_hooks = _autograd._saved_tensors_hooks_enable
_modes = torch._C._len_torch_dispatch_stack
_PLAIN = (Tensor, Parameter)
_lock = threading.Lock()
_open_ledgers = 0


class _Thread(threading.local):
    def __init__(self) -> None:
        self.ledgers: tuple[SavedLedger, ...] = ()
        self.suspended: list[list[tuple[Pack, Unpack]]] = []


_thread = _Thread()


class Packed:
    """What autograd keeps instead of a tensor; its end is the release of the saved tensor."""

    __slots__ = ("entries", "node", "output", "value", "version")

    entries: tuple[Entry, ...]
    node: str
    output: int
    value: Any
    version: int

    def __del__(self) -> None:
        for entry in self.entries:
            entry.release(entry)


def open_ledger(ledger: SavedLedger) -> None:
    """Let ``ledger`` see what this thread saves for backward from now on."""
    global _open_ledgers
    with _lock:
        _open_ledgers += 1
        if _open_ledgers == 1:
            _replace(_push, _disable, _enable)
    _thread.ledgers = (*_thread.ledgers, ledger)
    top = _top_hooks(True)
    push_hooks(*_compose(_thread.ledgers, _user_pair(top)))


def close_ledger(ledger: SavedLedger) -> None:
    """Stop recording and take this ledger's hooks off, wherever they are in the stack."""
    global _open_ledgers
    ledger.recording = False
    _thread.ledgers = tuple(each for each in _thread.ledgers if each is not ledger)
    _remove_pair_of(ledger)
    with _lock:
        _open_ledgers -= 1
        if _open_ledgers == 0:
            _replace(push_hooks, _disable_hooks, _enable_hooks)


def _replace(push: Any, disable: Any, enable: Any) -> None:
    _autograd._push_saved_tensors_default_hooks = push
    _autograd._saved_tensors_hooks_disable = disable
    _autograd._saved_tensors_hooks_enable = enable


def _push(pack: Pack, unpack: Unpack) -> None:
    if _thread.ledgers:
        pack, unpack = _compose(_thread.ledgers, (pack, unpack), owner=None)
    push_hooks(pack, unpack)


def _disable(message: str, *args: Any) -> Any:
    """torch.func refuses to start under any saved-tensor hooks: step aside for it when only ours are there."""
    taken: list[tuple[Pack, Unpack]] = []
    if _thread.ledgers:
        taken = list(_take_own_pairs())
    try:
        result = _disable_hooks(message, *args)
    except BaseException:
        _put_back(taken)
        raise
    if taken:
        for ledger in _thread.ledgers:
            ledger.blind.add("what torch.func's transforms save inside a transform is not seen: they refuse all hooks")
    _thread.suspended.append(taken)
    return result


def _enable() -> Any:
    result = _enable_hooks()
    if _thread.suspended:
        _put_back(_thread.suspended.pop())
    return result


def _take_own_pairs() -> Iterator[tuple[Pack, Unpack]]:
    while (top := _top_hooks(True)) is not None and getattr(top[0], "owner", None) is not None:
        if getattr(top[0], "user", None) is not None:
            return
        pop_hooks()
        yield top


def _put_back(pairs: list[tuple[Pack, Unpack]]) -> None:
    for pack, unpack in reversed(pairs):
        push_hooks(pack, unpack)


def _remove_pair_of(ledger: SavedLedger) -> None:
    above: list[tuple[Pack, Unpack]] = []
    while (top := _top_hooks(True)) is not None:
        pop_hooks()
        if getattr(top[0], "owner", None) is ledger:
            break
        above.append(top)
    _put_back(above)


def _user_pair(top: tuple[Pack, Unpack] | None) -> tuple[Pack, Unpack] | None:
    if top is None:
        return None
    return getattr(top[0], "user", top)


def _compose(
    ledgers: tuple[SavedLedger, ...], user: tuple[Pack, Unpack] | None, owner: SavedLedger | None | bool = True
) -> tuple[Pack, Unpack]:
    """Return a pair that feeds ``ledgers`` and does what ``user`` does; it belongs to the last ledger unless told."""
    pair = _plain_pair(ledgers) if user is None else _wrapped_pair(ledgers, user)
    pair[0].user = user  # type: ignore[attr-defined]
    pair[0].owner = ledgers[-1] if owner is True else owner  # type: ignore[attr-defined]
    return pair


def _plain_pair(ledgers: tuple[SavedLedger, ...]) -> tuple[Pack, Unpack]:
    only = ledgers[0] if len(ledgers) == 1 else None

    def pack(tensor: Tensor) -> Packed:
        packed = Packed()
        packed.entries = ()  # __del__ runs even when what follows raises
        if only is not None:
            entry = only.add(tensor) if only.recording else None
            packed.entries = () if entry is None else (entry,)
        else:
            packed.entries = tuple(e for each in ledgers if each.recording and (e := each.add(tensor)) is not None)
        # Autograd's own SavedVariable keeps an own output detached too: keeping the tensor itself would make a cycle.
        packed.value = _detach(tensor)
        packed.version = tensor._version
        node = tensor.grad_fn
        packed.node, packed.output = ("", 0) if node is None else (sys.intern(node.name()), tensor.output_nr)
        return packed

    return pack, _unpack


def _detach(tensor: Tensor) -> Tensor:
    if type(tensor) in _PLAIN and _modes():
        with torch._C._DisableTorchDispatch():  # no mode, ours or the user's, shall see an op that the user did not call
            return tensor.detach()
    return tensor.detach()


def _unpack(packed: Packed) -> Tensor:
    tensor: Tensor = packed.value
    if tensor._version != packed.version:
        raise RuntimeError(_in_place_text(packed))
    return tensor


def _wrapped_pair(ledgers: tuple[SavedLedger, ...], user: tuple[Pack, Unpack]) -> tuple[Pack, Unpack]:
    user_pack, user_unpack = user

    def pack(tensor: Tensor) -> Packed:
        packed = Packed()
        packed.entries = ()
        packed.value = value = user_pack(tensor)
        kept = list(tensors_in(value))
        packed.entries = tuple(
            entry
            for ledger in ledgers
            if ledger.recording
            for each in kept
            if (entry := ledger.add(each, None if _shares(each, tensor) else "activation")) is not None
        )
        return packed

    def unpack(packed: Packed) -> Tensor:
        return user_unpack(packed.value)

    return pack, unpack


def tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Yield the tensors in ``value``: a tensor, or tuples, lists and dicts of them."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, dict):
        yield from tensors_in(list(value.values()), depth - 1)


def _shares(one: Tensor, other: Tensor) -> bool:
    try:
        return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return False


def _in_place_text(packed: Packed) -> str:
    """Return what torch says of a saved tensor that was changed in place, in the words of the torch that runs."""
    template = _in_place_template()
    tensor: Tensor = packed.value
    text = template.replace("[torch.FloatTensor [3]]", f"[{tensor.type()} {list(tensor.shape)}]")
    text = text.replace("is at version 1; expected version 0", f"is at version {tensor._version}; expected version {packed.version}")
    if not packed.node:
        return re.sub(r", which is output 0 of Exp(Backward0)?,", "", text)
    name = packed.node if "ExpBackward0" in template else re.sub(r"Backward\d*$", "", packed.node)
    return re.sub(r"output 0 of Exp(Backward0)?,", f"output {packed.output} of {name},", text)


def _in_place_template() -> str:
    hidden = list(_drop_all())
    try:
        with torch._C._DisableTorchDispatch(), torch.enable_grad():
            changed = torch.ones(3, requires_grad=True, device="cpu").exp()
            with torch.no_grad():
                changed.add_(1)
            changed.grad_fn._saved_result  # type: ignore[union-attr]  # noqa: B018
    except RuntimeError as error:
        return str(error)
    finally:
        _put_back(hidden)
    raise AssertionError("torch no longer refuses a saved tensor that was changed in place")


def _drop_all() -> Iterator[tuple[Pack, Unpack]]:
    while (top := _top_hooks(True)) is not None:
        pop_hooks()
        yield top
