"""Run a script or a module as Python itself would: its own ``__main__``, arguments, path, errors and exit code."""

from __future__ import annotations

import builtins
import importlib.util
import io
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_INTERRUPTED = 130


class Stop(BaseException):
    """Ends the script from within a step, so that its ``finally`` blocks run; ``except Exception`` does not see it."""


@dataclass(frozen=True)
class Script:
    """What to run: a file, or a module with ``python -m``'s meaning, and its arguments."""

    target: str
    arguments: tuple[str, ...] = ()
    module: bool = False

    def find(self) -> Path | ModuleSpec:
        """Return the file or the module's spec. Raises ValueError, in a sentence, when there is none."""
        return _module(self.target) if self.module else _file(self.target)


def _file(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        raise ValueError(f"{name} is a folder; name a script in it, or a module with -m")
    if not path.is_file():
        raise ValueError(f"there is no file {name}")
    return path


def _module(name: str) -> ModuleSpec:
    """Find a module; like ``python -m``, this imports the packages that it is in."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
            if spec is None:
                raise ValueError(f"{name} is a package without __main__.py and cannot be run; name a module in it")
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no module {name!r}: {error}") from None
    if spec is None or spec.loader is None or not hasattr(spec.loader, "get_code"):
        raise ValueError(f"there is no module {name!r} that can be run")
    return spec


def prepare_path(script: Script) -> None:
    """Let ``sys.path`` and ``sys.argv`` be as for ``python script`` or ``python -m module``."""
    first = str(Path.cwd()) if script.module else str(Path(script.target).resolve().parent)
    if not getattr(sys.flags, "safe_path", False):
        sys.path[:1] = [first]
    sys.argv[:] = [script.target, *script.arguments]


def run(script: Script, found: Path | ModuleSpec) -> BaseException | None:
    """Run it as ``__main__`` and return what ended it, with its traceback; None when it came to its end.

    Threads of it that are no daemons have ended, too.
    """
    before = threading.enumerate()
    try:
        code, namespace = _load(script, found)
        exec(code, namespace)
        _join_threads(before)
    except BaseException as error:
        return error
    return None


def _load(script: Script, found: Path | ModuleSpec) -> tuple[CodeType, dict[str, Any]]:
    main = ModuleType("__main__")
    if isinstance(found, Path):
        path = str(found.absolute())  # as Python does: links stay
        with io.open_code(path) as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
        main.__loader__, main.__spec__, main.__package__ = SourceFileLoader("__main__", path), None, None
    else:
        get_code: Callable[[str], CodeType] = found.loader.get_code  # type: ignore[union-attr]
        code, path = get_code(found.name), found.origin or found.name
        main.__loader__, main.__spec__, main.__package__ = found.loader, found, found.parent
        sys.argv[0] = path
    main.__dict__.update(__file__=path, __cached__=None, __builtins__=builtins, __annotations__={})
    sys.modules["__main__"] = main
    return code, main.__dict__


def _join_threads(before: list[threading.Thread]) -> None:
    for thread in threading.enumerate():
        if thread not in before and not thread.daemon:
            thread.join()


def exit_code(ended: BaseException | None) -> int:
    """Return the code with which Python would end the process."""
    if ended is None or isinstance(ended, Stop):
        return 0
    if isinstance(ended, KeyboardInterrupt):
        return _INTERRUPTED
    if not isinstance(ended, SystemExit):
        return 1
    if ended.code is None:
        return 0
    return int(ended.code) if isinstance(ended.code, int) else 1


def last_words(ended: BaseException | None) -> None:
    """Say what Python would say of what ended the script: a traceback, or the text of a SystemExit."""
    if isinstance(ended, SystemExit):
        if ended.code is not None and not isinstance(ended.code, int):
            sys.stderr.write(f"{ended.code}\n")
    elif ended is not None and not isinstance(ended, Stop):
        sys.excepthook(type(ended), ended, ended.__traceback__)
