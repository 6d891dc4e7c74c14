"""One pair of saved-tensor hooks for every ledger that is open in a thread, composed with the user's own pairs.

torch applies only the innermost pair of saved-tensor hooks. So while a ledger is open, the functions through which
``saved_tensors_hooks``, ``save_on_cpu`` and ``checkpoint`` install theirs are replaced by ones that compose: the user's
pack and unpack do their work unchanged, and what they pack is counted. The replacements act on the threads that have
an open ledger and are taken back when the last ledger closes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import _StopRecomputationError as _StopRecomputation

from memlab import checkpoints, functions, hook_stack, wrappers
from memlab.hook_stack import Pair
from memlab.in_place import LEAF, VIEW, in_place_text
from memlab.ledger import SavedLedger, is_parameter
from memlab.lines import Origin
from memlab.reading import KEY_MASK
from memlab.wrappers import PLAIN

_autograd = hook_stack.autograd
_disable_hooks = _autograd._saved_tensors_hooks_disable
_enable_hooks = _autograd._saved_tensors_hooks_enable
_make_subclass = Tensor._make_subclass
_VERSION_BITS = 32  # what torch's own counter has
_VERSION_MASK = (1 << _VERSION_BITS) - 1
_lock = threading.Lock()
_open_ledgers = 0


class _Thread(threading.local):
    def __init__(self) -> None:
        self.ledgers: tuple[SavedLedger, ...] = ()
        self.suspended: list[list[Pair]] = []


_thread = _Thread()


class _Several:
    """The accounts in which one saved tensor counts, when it is not just one; what it holds there are pairs."""

    def release(self, held: Sequence[tuple[SavedLedger, int]]) -> None:
        for ledger, key in held:
            ledger.release(key)


_SEVERAL = _Several()


class Packed:
    """What autograd keeps instead of a tensor; its end is the release of the saved tensor.

    Attributes:
        account: the ledger that it counts in; or None, or several.
        held: its token in that ledger (see `SavedLedger.add`); for several, pairs of ledger and token.
        state: the tensor's version when it was saved, and which output of its node it is (or `LEAF`, or `VIEW`), in one
            small number.
        value: the detached tensor, or what the user's pack hook returned.
    """

    __slots__ = ("account", "held", "state", "value")

    account: Any
    held: Any
    state: int
    value: Any

    @property
    def version(self) -> int:
        return self.state & _VERSION_MASK

    @property
    def output(self) -> int:
        return (self.state >> _VERSION_BITS) + VIEW

    def counted(self, key: int) -> tuple[SavedLedger, int] | None:
        """Return the first ledger that counts the storage with this key for it, and its token; None if none does."""
        if self.account is None:
            return None
        pairs = self.held if self.account is _SEVERAL else ((self.account, self.held),)
        return next((pair for pair in pairs if pair[1] & KEY_MASK == key), None)

    def origin(self, key: int) -> Origin | None:
        """Return what the first ledger recorded when it was saved; None if none counts it. Cheaper than a line."""
        counted = self.counted(key)
        return None if counted is None else counted[0].origin(counted[1])

    def count_in(self, pairs: Sequence[tuple[SavedLedger, int]]) -> None:
        self.account, self.held = (_SEVERAL, pairs) if pairs else (None, ())

    def __del__(self) -> None:
        if self.account is not None:
            self.account.release(self.held)


def open_ledger(ledger: SavedLedger) -> None:
    """Let ``ledger`` see what this thread saves for backward from now on."""
    global _open_ledgers
    with _lock:
        _open_ledgers += 1
        if _open_ledgers == 1:
            _replace(_push, _disable, _enable)
            functions.show(_keeps_on_ctx)
    _thread.ledgers = (*_thread.ledgers, ledger)
    top = hook_stack.top()
    hook_stack.push(*_compose(_thread.ledgers, _user_pair(top)))


def close_ledger(ledger: SavedLedger) -> None:
    """Stop recording and take this ledger's hooks off, wherever they are in the stack."""
    ledger.recording = False
    _leave(ledger)


@contextmanager
def opened_in_thread(ledger: SavedLedger) -> Iterator[None]:
    """Let a ledger that is open in another thread see this one, too."""
    open_ledger(ledger)
    try:
        yield
    finally:
        _leave(ledger)


def _leave(ledger: SavedLedger) -> None:
    global _open_ledgers
    _thread.ledgers = tuple(each for each in _thread.ledgers if each is not ledger)
    _remove_pair_of(ledger)
    with _lock:
        _open_ledgers -= 1
        if _open_ledgers == 0:
            _replace(hook_stack.push, _disable_hooks, _enable_hooks)
            functions.leave()


def _replace(push: Any, disable: Any, enable: Any) -> None:
    _autograd._push_saved_tensors_default_hooks = push
    _autograd._saved_tensors_hooks_disable = disable
    _autograd._saved_tensors_hooks_enable = enable


def _keeps_on_ctx(function: str, attribute: str) -> None:
    for ledger in _thread.ledgers:
        ledger.on_ctx.setdefault(function, attribute)


def _push(pack: Any, unpack: Any) -> None:
    if _thread.ledgers:
        if checkpoints.caches(unpack):
            for ledger in _thread.ledgers:
                ledger.blind.add("what a selective checkpoint's policy keeps is in a cache of its own and not counted")
        pack, unpack = _compose(_thread.ledgers, (pack, unpack), owner=None)
    hook_stack.push(pack, unpack)


def _disable(message: str, *args: Any) -> Any:
    """torch.func refuses to start under any saved-tensor hooks: step aside for it when only ours are there."""
    taken: list[Pair] = []
    if _thread.ledgers:
        taken = list(_take_own_pairs())
    try:
        result = _disable_hooks(message, *args)
    except BaseException:
        hook_stack.put_back(taken)
        raise
    if taken:
        for ledger in _thread.ledgers:
            ledger.blind.add("what torch.func's transforms save inside a transform is not seen: they refuse all hooks")
    _thread.suspended.append(taken)
    return result


def _enable() -> Any:
    result = _enable_hooks()
    if _thread.suspended:
        hook_stack.put_back(_thread.suspended.pop())
    return result


def _take_own_pairs() -> Iterator[Pair]:
    while (top := hook_stack.top()) is not None and getattr(top[0], "owner", None) is not None:
        if getattr(top[0], "user", None) is not None:
            return
        hook_stack.pop()
        yield top


def _remove_pair_of(ledger: SavedLedger) -> None:
    above: list[Pair] = []
    while (top := hook_stack.top()) is not None:
        hook_stack.pop()
        if getattr(top[0], "owner", None) is ledger:
            break
        above.append(top)
    hook_stack.put_back(above)


def _user_pair(top: Pair | None) -> Pair | None:
    if top is None:
        return None
    return getattr(top[0], "user", top)


def _compose(ledgers: tuple[SavedLedger, ...], user: Pair | None, owner: SavedLedger | bool | None = True) -> Pair:
    """Return a pair that feeds ``ledgers`` and does what ``user`` does; it belongs to the last ledger unless told."""
    pair = _plain_pair(ledgers) if user is None else _wrapped_pair(ledgers, user)
    pair[0].user = user  # type: ignore[attr-defined]
    pair[0].owner = ledgers[-1] if owner is True else owner  # type: ignore[attr-defined]
    return pair


def _plain_pair(ledgers: tuple[SavedLedger, ...]) -> Pair:
    only = ledgers[0] if len(ledgers) == 1 else None

    def pack(tensor: Tensor) -> Packed:
        packed = Packed()
        packed.account = None  # __del__ runs even when what follows raises
        output = _output(tensor)
        is_plain = type(tensor) in PLAIN
        if not is_plain and (inside := wrappers.inner(tensor)):
            packed.count_in(list(_count_inside(ledgers, tensor, inside)))
        elif not is_plain and wrappers.hides(tensor):
            for each in ledgers:
                each.blind.add(f"what a {type(tensor).__name__} holds is not seen: it has no __tensor_flatten__")
        elif only is None:
            pairs = []
            for each in ledgers:
                if each.recording and (key := each.add(tensor, output)) is not None:
                    pairs.append((each, key))
            packed.count_in(pairs)
        elif only.recording and (key := only.add(tensor, output)) is not None:
            packed.account, packed.held = only, key
        # Autograd's own SavedVariable keeps an own output detached too: keeping the tensor itself would make a cycle.
        # _make_subclass detaches, with all modes off: none, ours or the user's, sees an operator the user did not call.
        packed.value = _make_subclass(Tensor, tensor) if is_plain else tensor.detach()
        packed.state = (output - VIEW) << _VERSION_BITS | tensor._version
        return packed

    return pack, _unpack


def _count_inside(
    ledgers: Sequence[SavedLedger], wrapper: Tensor, inside: list[Tensor]
) -> Iterator[tuple[SavedLedger, int]]:
    """Count what a wrapper subclass holds in its place."""
    output, kind = _output(wrapper), "parameter" if is_parameter(wrapper) else None
    for ledger in ledgers:
        for each in inside if ledger.recording else ():
            of_leaf = None if output != LEAF else "activation" if ledger.has_made(each) else "input"
            key = ledger.add(each, output, kind or of_leaf)
            if key is not None:
                yield ledger, key


def _unpack(packed: Packed) -> Tensor:
    tensor: Tensor = packed.value
    if tensor._version != packed.state & _VERSION_MASK:
        raise RuntimeError(in_place_text(packed))
    return tensor


def _wrapped_pair(ledgers: tuple[SavedLedger, ...], user: Pair) -> Pair:
    user_pack, user_unpack = user

    def pack(tensor: Tensor) -> Packed:
        packed = Packed()
        packed.account = None
        try:
            packed.value = value = user_pack(tensor)
        except _StopRecomputation:  # checkpoint keeps this one, its last, and ends its second forward by raising
            for ledger in ledgers:
                if ledger.recording and (key := ledger.add(tensor, _output(tensor))) is not None:
                    ledger.release(key)  # so that the peak knows of it
            raise
        kept = list(tensors_in(value))
        pairs = []
        for ledger in ledgers:
            if ledger.recording:
                for each in kept:  # a tensor that shares the original's storage is what the original is
                    one, kind = (tensor, None) if _shares(each, tensor) else (each, "activation")
                    key = ledger.add(one, _output(one), kind)
                    if key is not None:
                        pairs.append((ledger, key))
        packed.count_in(pairs)
        return packed

    def unpack(packed: Packed) -> Tensor:
        return user_unpack(packed.value)

    return pack, unpack


def _output(tensor: Tensor) -> int:
    """Return which output of its node a tensor is, or `LEAF`, or `VIEW`."""
    return LEAF if tensor.is_leaf else VIEW if tensor._is_view() else tensor.output_nr


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
