"""The pattern of every leaking loop of the corpus is recognised, and whatever the user's names are."""

import ast
import gc
import importlib.util
import sys
from collections import Counter
from pathlib import Path

import corpus
import owner_loops
import pytest
import torch
from holders import NEEDS_PACKED
from torch import nn

import memlab
from memlab.ownership.survey import survey
from memlab.patterns import KNOWN, recognise
from memlab.tracing import holders

pytestmark = NEEDS_PACKED
LOOPS = {**corpus.LOOPS, **owner_loops.OWNER_LOOPS}
LEAKING = {name: loop for name, loop in LOOPS.items() if loop.owner}
EARLY, LATE = 4, 9
# Attributes that torch gives a meaning to.
TORCH_S = {"grad"}


def recognised(makers):
    """Run all loops side by side under one watch, look twice, and return name, place and pattern of what grew."""
    gc.collect()
    with memlab.watch() as seen:
        steps = [make() for make in makers]
        found, sizes, plain = [], {}, []
        for index in range(LATE):
            for step in steps:
                step()
            if index + 1 in (EARLY, LATE):
                gc.collect()
                found = holders.find(index + 1, found)
                look = survey(made=seen.storages.ledger.live()).owners
                now = {(each.name, each.where): each for each in look if each.holds == "tensors"}
                plain = [each for key, each in now.items() if each.bytes > sizes.get(key, 0)]
                sizes = {key: each.bytes for key, each in now.items()}
    for content in (cell.cell_contents for each in steps for cell in each.__closure__ or ()):
        if isinstance(content, torch.Tensor):  # a gradient or hooks whose graphs lead back: no collection frees them
            content.grad = None
            (content._backward_hooks or {}).clear()
    del steps, step, content
    for module in {make.__module__ for make in makers}:
        clear(sys.modules[module])
    gc.collect()
    known = [recognise(holders.clue_of(each, grows=True, piles=None)) for each in plain]
    return [(each.name, each.where, each.pattern) for each in found] + [
        (each.name, each.where, pattern.name) for each, pattern in zip(plain, known, strict=True)
    ]


def clear(module):
    for thing in vars(module).values():
        if isinstance(thing, list):
            thing.clear()
        for kept in vars(thing).values() if isinstance(thing, type) else ():
            if isinstance(kept, list):
                kept.clear()


def pattern_of(found, make, wanted):
    """The pattern of the owner called ``wanted`` that the loop of ``make`` keeps; or of a global of this name."""
    called = [
        (where, pattern)
        for name, where, pattern in found
        if name.endswith(wanted) or name.startswith((f"{wanted}.", f"{wanted}["))
    ]
    own = {pattern for where, pattern in called if f"{make.__name__}." in where}
    free = {pattern for where, pattern in called if "<locals>" not in where}
    return " or ".join(own or free) or f"no owner {wanted}"


# One test for all loops, so that no two workers run them all.
PATTERNS = {name: loop.pattern for name, loop in LEAKING.items()}


def test_the_pattern_of_every_loop():
    found = recognised([loop.make for loop in LEAKING.values()])
    assert {name: pattern_of(found, loop.make, loop.owner) for name, loop in LEAKING.items()} == PATTERNS


def test_every_pattern_has_a_loop():
    counts = Counter(loop.pattern for loop in LEAKING.values())
    assert counts.keys() == {each.name for each in KNOWN}
    assert (len(LEAKING), min(counts.values())) == (51, 1)


OURS = {"LOOPS", "CORPUS", "OWNER_LOOPS", "_BEFORE", "Loop", "loop"}
DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Renames(ast.NodeTransformer):
    """Gives every name that is bound, and every attribute that is set, another one that says nothing."""

    def __init__(self, tree):
        nodes = [each for part in tree.body if getattr(part, "name", None) not in OURS for each in ast.walk(part)]
        bound = {each.id for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        bound |= {each.arg for each in nodes if isinstance(each, ast.arg)}
        bound |= {each.name for each in nodes if isinstance(each, DEFINED)}
        set_ = {each.attr for each in nodes if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)}
        for each in nodes:
            if isinstance(each, ast.ClassDef):
                set_ |= {name for part in each.body for name in self.own_names(part)}
        self.attributes = {name for name in set_ if not any(hasattr(kind, name) for kind in MEANT)} - TORCH_S
        names = sorted(bound | self.attributes)
        self.names = {name: f"a{i}" for i, name in enumerate(names) if name not in OURS and not name.startswith("__")}

    @staticmethod
    def own_names(part):
        if isinstance(part, DEFINED):
            return [part.name]
        return [each.id for each in ast.walk(part) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]

    def dotted(self, name):
        first, *rest = name.split(".")
        return ".".join([self.names[first], *map(self._attribute, rest)])

    def _attribute(self, name):
        return self.names[name] if name in self.attributes and name in self.names else name

    def visit_Name(self, node):
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node):
        node.arg = self.names.get(node.arg, node.arg)
        return node

    def visit_Nonlocal(self, node):
        node.names = [self.names.get(name, name) for name in node.names]
        return node

    def visit_ExceptHandler(self, node):
        self.generic_visit(node)
        node.name = self.names.get(node.name, node.name)
        return node

    def visit_Attribute(self, node):
        self.generic_visit(node)
        node.attr = self._attribute(node.attr)
        return node

    def visit_Constant(self, node):  # a slot, a buffer's name
        if isinstance(node.value, str):
            node.value = self._attribute(node.value)
        return node

    def visit_FunctionDef(self, node):
        if node.name in OURS:
            return node
        self.generic_visit(node)
        node.name = self.names.get(node.name, node.name)
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        if node.name in OURS:
            return node
        node.name = self.names.get(node.name, node.name)
        for part in node.body:
            before = self.own_names(part)
            self.visit(part)
            if isinstance(part, DEFINED):
                part.name = self._attribute(before[0])
            elif isinstance(part, (ast.Assign, ast.AnnAssign)):
                target = part.targets[0] if isinstance(part, ast.Assign) else part.target
                target.id = self._attribute(before[0])
        return node


MEANT = (torch.Tensor, nn.Module, torch.autograd.Function, torch.optim.Optimizer, list, dict)


@pytest.fixture
def renamed(tmp_path, monkeypatch):
    """The same loops with other names: for each, by its old name, its maker and its owner's name."""
    one, other = (Path(module.__file__).read_text() for module in (corpus, owner_loops))
    other = "\n".join(line for line in other.splitlines() if not line.startswith("from corpus import"))
    tree = ast.parse(f"{one}\nCORPUS = LOOPS\n{other}")
    renames = Renames(tree)
    file = tmp_path / "a.py"
    file.write_text(ast.unparse(renames.visit(tree)))
    spec = importlib.util.spec_from_file_location("a_renamed_corpus", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    makers = dict(zip(LOOPS, [each.make for each in {**module.LOOPS, **module.OWNER_LOOPS}.values()], strict=True))
    return {name: (makers[name], renames.dotted(loop.owner)) for name, loop in LEAKING.items()}


def test_other_names_change_no_pattern(renamed):
    assert not {make.__name__ for make, _ in renamed.values()} & LEAKING.keys()
    found = recognised([make for make, _ in renamed.values()])
    assert {name: pattern_of(found, make, owner) for name, (make, owner) in renamed.items()} == PATTERNS


class Trainer:
    def __init__(self):
        self.logs = {}
        self.state = (torch.zeros(2),)

    def step(self, x):
        self.logs["total"] = self.logs.get("total", 0) + x.exp().sum()
        self.logs["loss"] = x.exp().sum()
        self.state = (self.state[0] + x.exp(),)


def test_the_fix_says_where_in_a_container():
    trainer, found = Trainer(), []
    for step in range(1, 7):
        trainer.step(torch.ones(2, requires_grad=True))
        if step in (3, 6):
            found = holders.find(step, found)
    found = holders.find(step, found)  # once more at the same step, as at a run's end
    fixes = {each.name: each.fix for each in found if each.name.startswith("trainer.")}
    assert fixes == {
        "trainer.logs": "add loss.item(), or loss.detach(), to trainer.logs['total']",
        "trainer.state": "cut it at the window: trainer.state = tuple(each.detach() for each in trainer.state)",
    }


class Recurrent:
    def __init__(self):
        self.state = torch.zeros(2)

    def step(self, x):
        self.state = self.state + torch.tanh(self.state * x)
        self.loss = (self.state * x).exp().sum()


def test_what_leads_to_a_carried_state_is_answered_with_its_cure():
    """The loss of each step grows like the state, holds more alone, and cutting it would free nothing."""
    model, found = Recurrent(), []
    for step in range(1, 7):
        model.step(torch.ones(2, requires_grad=True))
        if step in (3, 6):
            found = holders.find(step, found)
    told = [each for each in found if each.name.startswith("model.")]
    assert [(each.name, each.carrier) for each in told] == [("model.state", ""), ("model.loss", "model.state")]
    assert told[0].per_step == told[1].per_step > 0 and told[1].exclusive > told[0].exclusive
    assert {each.fix for each in told} == {"cut it at the window: model.state = model.state.detach()"}
