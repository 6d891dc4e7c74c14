"""Where the steps of a training loop end, found without a word from its author.

Four things can end a step. The best one that was seen decides, and the steps before it are counted anew: what the user
said (`memlab.step()`, ``--step-at``), an optimizer's step, a backward, the forward of an outermost module.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from memlab import places, stepping, threads

FORWARD, BACKWARD, OPTIMIZER, TOLD, LINE = "forward", "backward", "optimizer.step", "memlab.step", "line"
_RANK = {FORWARD: 0, BACKWARD: 1, OPTIMIZER: 2, TOLD: 3, LINE: 3}


class Steps:
    """Calls ``ended(source, first)`` at the end of each step; ``first`` when what was counted before counts no more.

    Of several threads, the one counts that made the first step of the best kind. Where several optimizers take turns,
    the first of them ends the step.

    Args:
        ended: called after each step.
        at: ``(file, line)``: a step ends whenever this line is about to run, and nowhere else.
    """

    def __init__(self, ended: Callable[[str, bool], None], at: tuple[Path, int] | None = None) -> None:
        self._ended, self._at = ended, at
        self._thread, self._process = 0, os.getpid()
        self._source = ""
        self._optimizer: weakref.ref[Any] | None = None
        self._depths: Counter[int] = Counter()  # of calls of modules, by thread
        self._modules = ExitStack()  # hooks on every module, only as long as nothing better was seen
        self._stack = ExitStack()

    def __enter__(self) -> Steps:
        with ExitStack() as stack:
            stack.enter_context(self._hearing())
            stack.enter_context(threads.followed(self._hearing))
            if self._at is None:
                stack.callback(register_optimizer_step_post_hook(self._stepped).remove)
                stack.enter_context(_after_backward(functools.partial(self._end, BACKWARD)))
                stack.enter_context(self._modules)
                self._modules.callback(register_module_forward_pre_hook(self._enter_module).remove)
                self._modules.callback(register_module_forward_hook(self._leave_module, always_call=True).remove)
            self._stack = stack.pop_all()
        return self

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Hear what is heard in one thread only."""
        with ExitStack() as stack:
            stack.enter_context(stepping.heard_by(self._told))
            if self._at is not None:
                stack.enter_context(_tracing(self._at, functools.partial(self._end, LINE)))
            yield

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    @property
    def source(self) -> str:
        """What ends the steps, in a word, or the line that was named for it; empty before the first."""
        return self._source if self._at is None else places.place(str(self._at[0]), self._at[1])

    def _end(self, source: str) -> None:
        if os.getpid() != self._process:
            return
        thread = threading.get_ident()
        first = not self._source or _RANK[source] > _RANK[self._source]
        if first:
            self._source, self._thread = source, thread
            if source != FORWARD:
                self._modules.close()
        if source == self._source and thread == self._thread:
            self._ended(source, first)

    def _told(self) -> None:
        if self._at is None:
            self._end(TOLD)

    def _stepped(self, optimizer: Any, args: object, kwargs: object) -> None:
        if self._optimizer is None or self._optimizer() is None:
            self._optimizer = weakref.ref(optimizer)
        if self._optimizer() is optimizer:
            self._end(OPTIMIZER)

    def _enter_module(self, module: object, args: object) -> None:
        if not torch.compiler.is_compiling():
            self._depths[threading.get_ident()] += 1

    def _leave_module(self, module: object, args: object, output: object) -> None:
        if not torch.compiler.is_compiling():
            thread = threading.get_ident()
            self._depths[thread] = max(0, self._depths[thread] - 1)
            if self._depths[thread] == 0 and sys.exc_info()[0] is None:  # a forward that failed ends no step
                self._end(FORWARD)


@contextmanager
def _after_backward(ended: Callable[[], None]) -> Any:
    """Call ``ended`` after every ``backward()``: torch has no hook for that, and Tensor.backward looks this name up."""
    original = torch.autograd.backward

    @functools.wraps(original)
    def backward(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        ended()

    torch.autograd.backward = backward
    try:
        yield
    finally:
        torch.autograd.backward = original


@contextmanager
def _tracing(at: tuple[Path, int], ended: Callable[[], None]) -> Any:
    """Call ``ended`` whenever a line is about to run; Python tells of every call then, and of the lines of one file."""
    file, line = at
    ours: dict[CodeType, bool] = {}

    def call(frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        known = ours.get(code)
        if known is None:
            known = ours[code] = _is_in(code, file, line)
        return each_line if known else None

    def each_line(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and frame.f_lineno == line:
            ended()
        return each_line

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


def _is_in(code: CodeType, file: Path, line: int) -> bool:
    if not any(each == line for _, _, each in code.co_lines()):
        return False
    try:
        return Path(code.co_filename).resolve() == file
    except OSError:
        return False
