"""Where a saved tensor comes from: the user's source line, the operator, the module that owns its storage.

Everything is kept as pointers on the hot path and becomes text only when somebody reads it.
"""

from __future__ import annotations

import gc
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch.nn.modules.module import Module

from memlab import hook_stack, places
from memlab.functions import APPLY
from memlab.modules import CALL
from memlab.stacks import is_own, line_of

_TORCH = str(Path(torch.__file__).parent) + os.sep
_PYTHON = sysconfig.get_path("stdlib") + os.sep
_GENERATED = "<eval_with_key>"  # what torch.fx, and so torch.compile, calls the code that it writes
_INSTALLED = tuple(f"{os.sep}{each}{os.sep}" for each in ("site-packages", "dist-packages"))  # may lie below it
_CHECKPOINT = torch.utils.checkpoint.__file__
_CHECKPOINT_INPUTS = getattr(torch.utils.checkpoint, "_NoopSaveInputs", None)  # up to torch 2.11 or 2.12


class UserFiles(dict[str, bool]):
    """Tells which source files are the user's; remembers each answer.

    Those outside torch, memlab, ``ignore`` and Python's own library: ``copy.deepcopy(model)`` is a line of its caller,
    and so is what torch.compile and torch.fx have written.

    Args:
        ignore: files, folders, or names of imported packages (``"transformers"``).
    """

    def __init__(self, ignore: Iterable[str] = ()) -> None:
        super().__init__()
        self._ignore = (ignore,) if isinstance(ignore, str) else tuple(str(each) for each in ignore)

    def __missing__(self, file: str) -> bool:
        user = not file.startswith((_TORCH, _GENERATED)) and not is_own(file) and not _is_python(file)
        self[file] = user = user and not any(_lies_in(file, each) for each in self._ignore)
        return user


def _is_python(file: str) -> bool:
    return file.startswith(_PYTHON) and not any(each in file for each in _INSTALLED)


def _lies_in(file: str, place: str) -> bool:
    package = sys.modules.get(place)
    if package is None:
        return Path(file).absolute().is_relative_to(Path(place).expanduser().absolute())
    folders = getattr(package, "__path__", None)
    if folders is None:
        return file == getattr(package, "__file__", None)
    return any(Path(file).is_relative_to(folder) for folder in folders)


USER_FILES = UserFiles()


def user_code(frame: FrameType | None, files: UserFiles = USER_FILES) -> tuple[CodeType | None, int]:
    """Return code and instruction of the innermost frame in a user's file; `describe` makes it text. Hot path."""
    while frame is not None:
        code = frame.f_code
        if files[code.co_filename]:  # not of the code: equal code may stand in two files
            return code, frame.f_lasti
        frame = frame.f_back
    return None, -1


def module_call(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame that calls a module. Hot path."""
    while frame is not None:
        if frame.f_code is CALL:
            return frame
        frame = frame.f_back
    return None


def saver(frame: FrameType | None) -> str | None:
    """Return who saves a tensor from ``frame``, where that is no operator; None otherwise. Hot path.

    It is the node of a custom autograd.Function, or ``checkpoint``, which keeps its inputs outside the graph. Looks
    into this one frame of torch's, whose locals are its arguments: they live until it ends in any case.
    """
    if frame is None:
        return None
    code = frame.f_code
    if code is APPLY:
        function = frame.f_locals["cls"]
        name: str = "checkpoint" if function is _CHECKPOINT_INPUTS else function._backward_cls.__name__
        return name
    return "checkpoint" if code.co_filename == _CHECKPOINT else None


def describe(code: CodeType | None, lasti: int) -> str:
    """Return the place of an instruction, as `memlab.places.place` tells it; ``unknown`` where there is no code."""
    return "unknown" if code is None else places.place(code.co_filename, line_of(code, lasti))


def op_name(op: Any) -> str:
    """Return the operator's name (``addmm``) or ``unknown``."""
    if op is None:
        return "unknown"
    return str(getattr(op, "_overloadpacket", op)).removeprefix("aten.").removesuffix("Backward")


def module_storages(things: Iterable[Any] | None = None) -> dict[int, str]:
    """Return ``{storage key: "parameter" | "buffer"}`` over the modules among ``things``, or over every live module.

    For these it walks the heap, so it is not for hot paths.
    """
    found: dict[int, str] = {}
    for thing in gc.get_objects() if things is None else things:
        if issubclass(type(thing), Module):  # isinstance would call a user's __class__ property
            for kind in ("buffer", "parameter"):
                for tensor in (thing.__dict__.get(f"_{kind}s") or {}).values():
                    key = storage_key(tensor)
                    if key is not None:
                        found[key] = kind
    return found


def storage_key(tensor: Any) -> int | None:
    if not isinstance(tensor, torch.Tensor):
        return None
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse; lazy (not yet initialised)
        return None


def _count_wrapper_references(*, alive: bool) -> int:
    tensor = torch.empty(1, device="cpu")
    storage = tensor.untyped_storage()
    key = storage._cdata
    if not alive:
        del storage
    return int(torch._C._storage_Use_Count(key)) - 1


def _count_unheld_references() -> int:
    counts: list[int] = []

    def leaf_kind(tensor: torch.Tensor) -> None:
        counts.append(sys.getrefcount(tensor))

    def kind(tensor: torch.Tensor) -> None:
        leaf_kind(tensor)

    def add(tensor: torch.Tensor) -> None:
        kind(tensor)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        add(tensor)
        return tensor.detach()

    with torch.inference_mode(False), torch.enable_grad():
        hook_stack.push(pack, lambda tensor: tensor)
        try:
            torch.ones(1, device="cpu", requires_grad=True).exp()
        finally:
            hook_stack.pop()
    return counts[0]


with torch._C._DisableTorchDispatch():
    # How many references to a storage its own Python wrapper accounts for, once nobody has it in hand and while
    # somebody has: differs between versions of torch.
    WRAPPER_REFERENCES = _count_wrapper_references(alive=False)
    WRAPPER_REFERENCES_IN_HAND = _count_wrapper_references(alive=True)
    # What sys.getrefcount shows, three calls below a pack hook, for a tensor that no Python code holds.
    UNHELD_REFERENCES = _count_unheld_references()
