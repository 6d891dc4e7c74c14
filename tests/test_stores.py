"""What the statements do that store something into a name: what patterns are recognised by."""

import importlib
import sys

import pytest

from memlab.tracing import stores


@pytest.mark.parametrize(
    ("statement", "kinds"),
    [
        ("x += y", "add"),
        ("x -= y", "add"),
        ("x = x + y", "add"),
        ("x = y + x - z", "add"),
        ("x, n = x + y, n + 1", "add"),
        ("x.add_(y)", "add"),
        ("self.x = self.x + y", "add"),
        ("x['loss'] += y", "add"),
        ("x = a * x + (1 - a) * y", "mix"),
        ("x = x + a * (y - x)", "mix"),
        ("x = (x * n + y) / (n + 1)", "mix"),
        ("x = (x + y) / 2", "mix"),
        ("x.mul_(a).add_(y)", "mix"),
        ("x.mul_(a).add_(y, alpha=1 - a)", "mix"),
        ("x.copy_(a * x + y)", "mix"),
        ("x = torch.lerp(x, y, a)", "mix"),
        ("x.lerp_(y, a)", "mix"),
        ("x.append(y)", "put"),
        ("x[k].append(y)", "put"),
        ("x = f(x) + x", "assign"),
        ("_, x = model(y, x)", "assign"),
        ("x, _ = model(y)", "new"),
        ("x = cell(z, y); y = x", "assign"),
        ("x, z = cell(z, y)", "new"),
        ("x = y if x is None else a * x + y", "assign mix"),
        ("x = y", "new"),
        ("x[0] = y", "new"),
        ("x = x * y", "assign"),
        ("x = []", ""),
        ("x = None", ""),
        ("y = x", ""),
        ("x.clear()", ""),
        ("m.register_forward_hook(lambda m, i, o: x.append(o))", "hook put"),
        ("m.register_forward_hook(lambda m, i, o: y.append(o)); x.append(y)", "put"),
    ],
)
def test_what_a_statement_does_to_a_name(tmp_path, statement, kinds):
    file = tmp_path / "x.py"
    file.write_text(f"def other():\n    x = [1]\n    x.lerp_(y)\n\ndef train():\n    {statement}\n")
    name = "trainer.x" if "self." in statement else "x"
    assert stores.stores(name, f"local of train(), {file}:5") == set(kinds.split())


def test_hooks_by_name_and_what_is_no_place(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "class A:\n    def f(self, m, i, o):\n        self.x.append(o)\n\n    def g(self, m):\n"
        "        m.register_full_backward_hook(self.f)\n\ndef make(x):\n    def h(m, i, o):\n        x.append(o)\n"
        "    return h\n\nz = []\nm.register_forward_hook(make(z))\n"
    )
    assert stores.stores("a.x", f"attribute of A; a is local of train(), {file}:5") == {"put", "hook"}
    assert stores.stores("x", f"closure of make.<locals>.h(), {file}:9") == {"put", "hook"}
    assert stores.stores("x", "nowhere") == stores.stores("x", "local of x(), gone.py:3") == frozenset()


def test_globals_and_attributes_of_globals(tmp_path, monkeypatch):
    (tmp_path / "kinds_of_stores.py").write_text(
        "class TrainerOfStores:\n    def step(self, y):\n        self.total = self.total + y\n"
    )
    (tmp_path / "user_of_stores.py").write_text(
        "import kinds_of_stores\nseen, stats = {}, {}\ntrainer = kinds_of_stores.TrainerOfStores()\n"
        "def keep(m, i, o):\n    seen.setdefault('x', []).append(o)\n"
        "def register(m):\n    m.register_forward_hook(keep)\n"
        "def add(y):\n    stats['x'] = stats['x'] + y\n"
        "def other(y):\n    stats = []\n    stats.append(y)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("user_of_stores")
    try:
        assert stores.stores("seen", "global of user_of_stores") == {"put", "hook"}
        assert stores.stores("stats", "global of user_of_stores") == {"add"}
        where = "attribute of TrainerOfStores; trainer is global of user_of_stores"
        assert stores.stores("trainer.total", where) == {"add"}
        assert stores.stores("trainer.other", where) == stores.stores("x", "global of nowhere") == frozenset()
    finally:
        del sys.modules["user_of_stores"], sys.modules["kinds_of_stores"]
