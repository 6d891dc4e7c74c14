"""What an experiment is, and how its file is found and loaded. Importing this module does not import torch.

An experiment is one Python file: a docstring that states the claim, a ``setup`` that makes the material, arms that are
plain PyTorch generators, and ``experiment = Experiment(...)`` with the prediction for each arm.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

Lines = Mapping[str, "int | tuple[int, int]"]
"""An expected bill: ``{what: bytes}`` for one storage, ``{what: (count, bytes of each)}`` for several alike."""


class Sizes:
    """The sizes of one run, as attributes, and the kind of ``device`` (``"cpu"`` or ``"cuda"``) it runs on."""

    def __init__(self, sizes: Mapping[str, int], device: str = "cpu") -> None:
        self.__dict__.update(sizes)
        self.device = device

    def __getattr__(self, name: str) -> int:
        raise AttributeError(f"this experiment has no size {name!r}; it has {', '.join(self.__dict__)}")


Expected = Callable[[Sizes, int], Lines]
"""``expected(sizes, step)``: the bill at the yield that ends ``step`` (1, 2, ...)."""


def nothing(sizes: Sizes, step: int) -> Lines:
    """Return the empty bill: 0 bytes at every step."""
    return {}


@dataclass(frozen=True)
class Arm:
    """One variant of an experiment.

    Attributes:
        run: a generator function over what ``setup`` returns; it yields once per step, and the yield is measured.
        saved: what autograd must keep at each step, without parameters, buffers and inputs.
        allocated: the tensor storages that must be alive at each step, beyond those of ``setup``.
        proves: if the arm asserts values as well, what it proves: such an arm needs a device that computes.
        dies: the arm must die of ``torch.OutOfMemoryError`` on the card, at the step that ``allocated`` predicts.
        left: bytes that stay saved after the arm has ended (0: the graph goes when the arm's variables go).
    """

    run: Callable[..., Generator[None, None, None]]
    saved: Expected
    allocated: Expected
    proves: str = ""
    dies: bool = False
    left: Callable[[Sizes], int] = lambda sizes: 0

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def title(self) -> str:
        """The first line of the arm's docstring."""
        return (self.run.__doc__ or self.name).strip().splitlines()[0]


@dataclass(frozen=True)
class Experiment:
    """Sizes, setup, arms and predictions of one claim.

    Attributes:
        setup: ``setup(sizes)`` returns what every arm is called with; it runs under ``torch.device(device)``.
        arms: the variants; they share one setup and differ in one thing.
        sizes: ``{name: default}``; ``--set name=value`` overrides.
        steps: how many times an arm is resumed and measured.
        card: bytes of the GPU memory to respect, from the sizes; None where no card limits the experiment.
    """

    setup: Callable[[Sizes], tuple[Any, ...]]
    arms: Sequence[Arm]
    sizes: Mapping[str, int] = field(default_factory=dict)
    steps: int = 5
    card: Callable[[Sizes], int] | None = None

    def arm(self, name: str) -> Arm:
        """Return the arm called ``name``. Raises `Unknown` with the nearest names."""
        found: Arm = pick({arm.name: arm for arm in self.arms}, name, "arm")
        return found

    def with_sizes(self, changed: Mapping[str, int], device: str) -> Sizes:
        """Return the sizes with ``changed`` applied. Raises ValueError for unknown names and sizes below 1."""
        for name, value in changed.items():
            pick(dict(self.sizes), name, "size")
            if value < 1:
                raise ValueError(f"the size {name} must be at least 1, not {value}")
        return Sizes({**self.sizes, **changed}, device)


class Unknown(ValueError):
    """A name that does not exist; the text names the nearest ones that do."""


def pick(known: Mapping[str, Any], name: str, what: str) -> Any:
    """Return ``known[name]``. Raises `Unknown`, which says that there is no such ``what`` and names the nearest."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
    raise Unknown(f"there is no {what} {name!r}; {hint}")


def folder() -> Path:
    """Return the folder of the experiments that come with memlab: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def files() -> dict[str, Path]:
    """Return ``{name: file}`` of the experiments that come with memlab, in the order of their names."""
    return {path.stem: path for path in sorted(folder().glob("*.py")) if not path.stem.startswith("_")}


def find(name: str) -> Path:
    """Return the file that ``name`` means: a path to a Python file, or the name of an experiment.

    Raises:
        Unknown: neither; the text has the nearest names.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise Unknown(f"there is no file {name}")
        return path.resolve()
    return Path(pick(files(), name, "experiment"))


def load(path: Path) -> Experiment:
    """Import an experiment's file and return its ``experiment``.

    Raises:
        ValueError: the file defines none.
    """
    experiment = getattr(load_module(path), "experiment", None)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{path} is no experiment: it defines no `experiment = Experiment(...)`")
    return experiment


def load_module(path: Path) -> ModuleType:
    """Import the Python file at ``path`` under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"memlab_experiment_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Summary:
    """What can be said of an experiment without running its file: its claim and its arms' names and titles."""

    name: str
    path: Path
    claim: str
    arms: dict[str, str]


def summarise(path: Path) -> Summary:
    """Read claim and arms from the text of an experiment's file; nothing is imported or run.

    Raises:
        ValueError: the file cannot be read or is not Python.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the experiment {path}: {error}") from None
    titles = {
        node.name: (ast.get_docstring(node) or node.name).splitlines()[0]
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node) == "Arm" and node.args]
    names = [call.args[0].id for call in calls if isinstance(call.args[0], ast.Name)]
    claim = (ast.get_docstring(tree) or path.stem).split("\n\n")[0].replace("\n", " ")
    return Summary(path.stem, path, claim, {name: titles.get(name, name) for name in names})


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
