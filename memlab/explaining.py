"""`explain` a tensor in a notebook or debugger, and `on_oom`: why memory ran out, said before the process ends.

The faces that memlab has inside other people's programs: what they find is plain data, what they say is made in
`memlab.show`. Until something goes wrong, `on_oom` costs nothing: it touches no tensor.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from types import TracebackType
from typing import Any

from torch import Tensor

from memlab.show import _explanation
from memlab.show._columns import width_of
from memlab.tracing import explanation
from memlab.tracing.explanation import Explanation as Found
from memlab.tracing.tracebacks import out_of_memory


class Explanation:
    """What a tensor keeps, who holds it and what to do about it; it reads well wherever it is printed.

    Attributes:
        found: the plain data.
    """

    def __init__(self, found: Found) -> None:
        self.found = found

    def __repr__(self) -> str:
        width = min(_explanation.WIDTH, width_of(sys.stdout) or _explanation.WIDTH)
        return "\n".join(line.text for line in _explanation.lines(self.found, width))

    def __rich__(self) -> Any:
        return _explanation.rich(self.found)

    def _repr_html_(self) -> str:
        return _explanation.html(self.found)


def explain(tensor: Tensor) -> Explanation:
    """Explain what ``tensor``'s graph keeps for backward, by module, line and class, who holds it, and what to do.

    Needs no open watch; graphs that were recorded under one know their modules and source lines.

    Raises:
        TypeError: ``tensor`` is not a tensor.
        Unavailable: this torch cannot show what a node keeps without running unpack hooks (2.6).
    """
    return Explanation(explanation.of_tensor(tensor))


class OnOom:
    """What `on_oom` returns: armed for the whole process, and a context manager for code that catches the error."""

    _said: weakref.ref[BaseException] | None = None  # of all: cells are run again, and several are armed

    def __init__(self) -> None:
        self._hook, self._threads = sys.excepthook, threading.excepthook
        self._our_hook, self._our_threads = self._uncaught, self._uncaught_in_thread
        sys.excepthook, threading.excepthook = self._our_hook, self._our_threads
        self._events = _events_of_shell()
        if self._events is not None:
            self._events.register("post_run_cell", self._cell_ended)

    def _uncaught(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        self._explain(error)
        self._hook(kind, error, traceback)

    def _uncaught_in_thread(self, given: Any) -> None:
        self._explain(given.exc_value)
        self._threads(given)

    def _cell_ended(self, result: Any) -> None:
        self._explain(result.error_in_exec)

    def _explain(self, error: BaseException | None) -> None:
        error = out_of_memory(error)
        if error is None or (OnOom._said is not None and OnOom._said() is error):
            return
        OnOom._said = weakref.ref(error)
        with contextlib.suppress(Exception):  # the error itself matters more than what we have to say of it
            _explanation.show_oom(explanation.of_oom(error), sys.stderr)

    def remove(self) -> None:
        """Disarm; hooks that were set later stay."""
        if sys.excepthook is self._our_hook:
            sys.excepthook = self._hook
        if threading.excepthook is self._our_threads:
            threading.excepthook = self._threads
        if self._events is not None:
            with contextlib.suppress(ValueError):  # removed before
                self._events.unregister("post_run_cell", self._cell_ended)

    def __enter__(self) -> OnOom:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._explain(error)
        self.remove()


def _events_of_shell() -> Any:
    """Return the events of the IPython shell or kernel that runs us, if one does: no excepthook sees a cell's error."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "events", None)


def on_oom() -> OnOom:
    """Explain a ``torch.OutOfMemoryError`` on stderr before it ends the process: what is saved, by whom it is held.

    One line at the top of a training script, or in the first cell of a notebook, where it explains the error that ends
    a cell. Costs nothing before the error. Code that catches the error itself uses
    it as a context manager, which explains what leaves its block:

    >>> with memlab.on_oom():
    ...     train()

    Without an open watch it knows what the graphs themselves tell: bytes by node and shape, and owners with the
    statement that stores into them, if it is the only one. Source lines and modules are known for what was saved under
    `memlab.watch` or ``memlab trace``, and where plain tensors were made under ``memlab.watch(births=True)``.
    """
    return OnOom()
