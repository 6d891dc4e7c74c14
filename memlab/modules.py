"""Which module saves a tensor: the innermost one whose call is among the frames, and its name in the model.

No hook is installed: ``Module.__call__``'s own frame says which module it calls. Global hooks would make torch.compile
warn and compile again, and would miss the end of a forward that KeyboardInterrupt leaves. Modules are held weakly and
looked for in the model once each.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from types import FrameType

from torch.nn.modules.module import Module

CALL = Module._call_impl.__code__
_KEEPS_LOCALS = sys.version_info < (3, 13)


def module_of(call: FrameType) -> Module:
    """Return the module that a frame of `CALL` calls; does not keep the frame's other locals, the inputs, alive."""
    found = call.f_locals
    module: Module = found["self"]
    if _KEEPS_LOCALS:
        found.clear()  # a copy that the frame would keep
    return module


class Place:
    """A module and its dotted name under a root; a root, which lies in no other module that was met, has no name.

    A module that stands at several places has its first name, as in ``named_modules()``.
    """

    __slots__ = ("composite", "inside", "kind", "module", "name", "root")

    def __init__(self, module: Module, root: Place | None, name: str) -> None:
        self.module = weakref.ref(module)
        self.kind = type(module).__name__
        self.composite = bool(module.__dict__.get("_modules"))
        self.root = root
        self.name = name
        self.inside: dict[int, str] = {}  # of a root: the names of the modules in it, by id

    def part(self, module: Module) -> str | None:
        """Return the name of ``module`` under this root, None if it does not lie in it."""
        whole = self.module()
        if whole is None:
            return None
        name = self.inside.get(id(module))
        if name is None or _at(whole, name) is not module:
            self.inside = {id(each): found for found, each in named(whole)}  # the model may have changed
            name = self.inside.get(id(module))
        return name

    def whole(self) -> tuple[Place, str]:
        """Return the root and the name under it."""
        if self.root is None:
            return self, self.name
        root, prefix = self.root.whole()
        return root, f"{prefix}.{self.name}" if prefix else self.name


class Places:
    """The modules that one ledger has met."""

    def __init__(self) -> None:
        self._met: dict[int, Place] = {}
        self._roots: list[Place] = []

    def of(self, call: FrameType) -> Place:
        """Return the place of the module that this frame of `CALL` calls. Hot path."""
        module = module_of(call)
        place = self._met.get(id(module))
        if place is None or place.module() is not module:
            place = self._met[id(module)] = self._find(module, call)
        return place

    def _find(self, module: Module, call: FrameType) -> Place:
        module = _uncompiled(module)
        for root in self._roots:
            name = root.part(module)
            if name is not None:
                return Place(module, root, name) if name else root
        callers = [_uncompiled(module_of(frame)) for frame in _calls(call.f_back)]
        for caller in reversed(callers):  # the outermost first
            root = Place(caller, None, "")
            name = root.part(module)
            if name is not None:
                self._add_root(root)
                return Place(module, root, name) if name else root
        root = Place(module, None, "")
        self._add_root(root)
        return root

    def _add_root(self, root: Place) -> None:
        for other in self._roots:  # a part that was met before its whole
            part = other.module()
            name = root.part(part) if part is not None else None
            if name is not None:
                other.root, other.name, other.inside = root, name, {}
        self._roots = [each for each in self._roots if each.root is None and each.module() is not None]
        self._roots.append(root)


def _at(top: Module, name: str) -> Module | None:
    module: Module | None = top
    for part in name.split(".") if name else ():
        module = None if module is None else (module.__dict__.get("_modules") or {}).get(part)
    return module


def named(top: Module) -> Iterator[tuple[str, Module]]:
    """Yield names and modules in the order of ``named_modules()``, each module once; calls no code of the user's."""
    waiting: list[tuple[str, Module]] = [("", top)]
    seen: set[int] = set()
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        children = (module.__dict__.get("_modules") or {}).items()
        prefix = f"{name}." if name else ""
        waiting.extend((prefix + child, each) for child, each in reversed(children) if each is not None)


def _calls(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        if frame.f_code is CALL:
            yield frame
        frame = frame.f_back


def _uncompiled(module: Module) -> Module:
    """Return what torch.compile wraps; its wrapper adds a level of names that the model does not have."""
    if type(module).__name__ != "OptimizedModule":
        return module
    inner: Module | None = (module.__dict__.get("_modules") or {}).get("_orig_mod")
    return module if inner is None else inner


class ModuleNames:
    """Names the modules of one ledger: bare under the first model met, after the class of the root under any other.

    A model is a root that has modules under it; a loss such as ``CrossEntropyLoss`` has none and is named by its class.
    """

    def __init__(self, places: Iterable[Place | None]) -> None:
        roots = list(dict.fromkeys(place.whole()[0] for place in places if place is not None))
        self._prefixes: dict[Place, str] = {}
        seen: Counter[str] = Counter()
        for root in sorted(roots, key=lambda root: not root.composite):
            seen[root.kind] += 1
            several = f"{root.kind}#{seen[root.kind]}" if seen[root.kind] > 1 else root.kind
            self._prefixes[root] = several if self._prefixes else ""

    def name(self, place: Place | None) -> str:
        """Return the fully qualified name; empty for the first model itself and for no module."""
        if place is None:
            return ""
        root, name = place.whole()
        return ".".join(part for part in (self._prefixes.get(root, ""), name) if part)
