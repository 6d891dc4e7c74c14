"""The code of an experiment's arms to copy: plain PyTorch with the imports and the material it needs, no memlab.

Reads the text of the file; nothing is imported or run.
"""

from __future__ import annotations

import ast
import re
import symtable
import sys
from pathlib import Path

from memlab.experiment import Experiment, files, find, pick, summarise
from memlab.patterns import KNOWN

_ONE = """if __name__ == "__main__":
    sizes = SimpleNamespace(**{sizes}, device="cpu")
    steps = {arms}(*setup(sizes))
    for _ in range({steps}):
        next(steps)
"""
_ALL = """if __name__ == "__main__":
    sizes = SimpleNamespace(**{sizes}, device="cpu")
    for arm in ({arms}):
        steps = arm(*setup(sizes))
        for _ in range({steps}):
            next(steps)
"""


def excerpt(name: str) -> str:
    """Return the code of ``experiment:arm``, of all arms of ``experiment``, or of a known pattern's cure.

    Raises:
        ValueError: no such experiment, pattern or arm, with the nearest names, or a file that cannot be read.
    """
    cures = {pattern.name.replace("_", " "): pattern.cure for pattern in KNOWN}
    wanted, _, arm = cures.get(re.sub("[-_]", " ", name), name).partition(":")
    if not wanted.endswith(".py"):
        pick({**dict.fromkeys(files()), **dict.fromkeys(cures)}, wanted, "experiment or pattern")
    path = find(wanted)
    summary = summarise(path)
    if not summary.arms:
        raise ValueError(f"{path} is no experiment: it has no Arm(...)")
    if arm:
        pick(summary.arms, arm, f"arm of {summary.name}")
    return _Source(path).code([arm] if arm else list(summary.arms), summary.claim)


class _Source:
    """An experiment's file, and which of its top-level statements define which names."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.lines = self.text.splitlines()
        self.defined: dict[str, ast.stmt] = {}
        for statement in self.tree.body:
            for name in _names_of(statement):
                self.defined[name] = statement

    def code(self, arms: list[str], claim: str) -> str:
        """Return the arms' code and what it needs, in the order of the file."""
        needed: list[ast.stmt] = []
        names = ["setup", *arms, *sorted(_read(self._option("sizes")))]
        while names:
            statement = self.defined.get(names.pop())
            if statement is not None and statement not in needed:
                needed.append(statement)
                names += _read(statement)
        body = [each for each in self.tree.body if each in needed]
        imports = [each for each in body if isinstance(each, (ast.Import, ast.ImportFrom))]
        parts = [f'"""{claim}"""', self._imports(imports, {name for each in body for name in _read(each)})]
        for each in body:
            if each not in imports:
                parts.append(("" if isinstance(each, ast.Assign) else "\n") + self._segment(each))
        return "\n\n".join([*parts, "\n" + self._main(arms)])

    def _imports(self, imports: list[ast.Import | ast.ImportFrom], read: set[str]) -> str:
        """Return the imports that are read, Python's own first."""
        own, others = ["from types import SimpleNamespace"], list[str]()
        for each in imports:
            each.names = [alias for alias in each.names if (alias.asname or alias.name.partition(".")[0]) in read]
            if each.names:
                module = each.module if isinstance(each, ast.ImportFrom) else each.names[0].name
                known = (module or "").partition(".")[0] in sys.stdlib_module_names
                (own if known else others).append(ast.unparse(each))
        own.sort(key=lambda text: (text.startswith("from"), text))
        return "\n".join([*own, "", *others])

    def _segment(self, statement: ast.stmt) -> str:
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *(each.lineno for each in decorators)])
        return "\n".join(self.lines[first - 1 : statement.end_lineno])

    def _main(self, arms: list[str]) -> str:
        sizes, steps = self._option("sizes"), self._option("steps")
        return (_ONE if len(arms) == 1 else _ALL).format(
            sizes=ast.unparse(sizes) if sizes is not None else "{}",
            steps=ast.unparse(steps) if steps is not None else Experiment.steps,
            arms=", ".join(arms),
        )

    def _option(self, name: str) -> ast.expr | None:
        """Return what the file gives to ``Experiment`` for an option."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Experiment":
                for option in node.keywords:
                    if option.arg == name:
                        return option.value
        return None


def _names_of(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [each.id for each in statement.targets if isinstance(each, ast.Name)]
    if isinstance(statement, ast.ImportFrom) and (statement.module or "").partition(".")[0] == "memlab":
        return []
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [each.asname or each.name.partition(".")[0] for each in statement.names]
    return []


def _read(node: ast.AST | None) -> set[str]:
    """Return the names of the file that are read in ``node``: what a function binds itself is none of them."""
    found: set[str] = set()
    tables = [] if node is None else [symtable.symtable(ast.unparse(node), "excerpt", "exec")]
    for table in tables:  # grows meanwhile
        tables += table.get_children()
        of_file = table.get_type() == "module"
        found.update(
            each.get_name() for each in table.get_symbols() if each.is_referenced() and (of_file or each.is_global())
        )
    return found
