"""Places read as IPython's own tracebacks do in a notebook, and are read again wherever a source line is asked for."""

import linecache
import sys
import types

import pytest
import torch
from holders import NEEDS_PACKED
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import memlab
from memlab import origins, places
from memlab.guard import bill
from memlab.ownership import frames
from memlab.tracing import holders
from memlab.tracing.explanation import of_oom, of_tensor

KERNEL = "/tmp/ipykernel_12345/3077459261.py"
PLAIN = "<ipython-input-5-5e2a1c9b7d30>"


class InteractiveShell:
    """As IPython 9's, of which only `IPython.core.compilerop.CachingCompiler` matters here."""

    _instance = None

    def __init__(self):
        self.compile = types.SimpleNamespace(_filename_map={})

    def __getattribute__(self, name):
        raise AssertionError("code of the shell's was run")

    def run(self, number, file, source, names):
        object.__getattribute__(self, "__dict__")["compile"]._filename_map[file] = number
        linecache.cache[file] = (len(source), None, [line + "\n" for line in source.splitlines()], file)
        exec(compile(source, file, "exec"), names)


@pytest.fixture
def shell(monkeypatch):
    module = types.ModuleType("IPython.core.interactiveshell")
    module.InteractiveShell = InteractiveShell
    running = object.__new__(InteractiveShell)
    InteractiveShell.__init__(running)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(InteractiveShell, "_instance", running)
    yield types.SimpleNamespace(run=InteractiveShell.run.__get__(running))
    for file in (KERNEL, PLAIN):
        linecache.cache.pop(file, None)


TRAIN = """\
import sys
def train(model, losses, steps):
    for _ in range(steps):
        losses.append(model(torch.ones(rows, 8)).mean())
    return look()
"""


@pytest.fixture
def names():
    return {"torch": torch, "model": nn.Sequential(nn.Linear(8, 16), nn.Tanh()), "look": lambda: None, "rows": 32}


@NEEDS_PACKED
@pytest.mark.parametrize(("file", "number"), [(KERNEL, 3), (PLAIN, 5)])
def test_every_place_in_a_cell_names_it(shell, names, file, number):
    shell.run(number, file, TRAIN, names)
    cell = f"Cell In[{number}]"
    names["look"] = lambda: (memlab.owners(), holders.find(0))
    with memlab.watch() as seen:
        losses = []
        owners, held = names["train"](names["model"], losses, 3)
        assert {f"{cell}, line 4"} == set(seen.saved.by("line"))
        found = next(each for each in owners if each.name == "losses" and cell in each.where)
        assert (found.born, found.where) == (f"{cell}, line 4", f"local of train(), {cell}, line 5")
        record = next(each for each in held if each.where == found.where)
        assert record.source == "losses.append(model(torch.ones(rows, 8)).mean())"
        assert record.pattern == "kept losses"
        (row,) = {row.line for row in of_tensor(losses[0]).moment.rows}
        assert row == f"{cell}, line 4"
        explained = repr(memlab.explain(losses[0]))
    assert f"by line      3.00 KiB  {cell}, line 4" in explained
    assert f"born at  {cell}, line 4  losses.append(model(torch.ones(rows, 8)).mean())" in explained
    assert "ipy" not in found.path + explained


@NEEDS_PACKED
def test_the_statement_that_stores_is_found_in_a_cell(shell, names):
    shell.run(3, KERNEL, TRAIN, names)
    names["look"] = lambda: holders.find(0)
    held = names["train"](names["model"], [], 3)
    record = next(each for each in held if each.where == "local of train(), Cell In[3], line 5")
    assert record.place == "kept at Cell In[3], line 4"
    assert record.kept_source == "losses.append(model(torch.ones(rows, 8)).mean())"


@NEEDS_PACKED
def test_an_out_of_memory_error_in_a_cell(shell, names):
    names["rows"] = 1 << 14
    shell.run(3, KERNEL, TRAIN, names)
    with pytest.raises(torch.OutOfMemoryError) as caught, memlab.watch(card="32 MiB"):
        names["train"](names["model"], [], 100)
    lines = of_oom(caught.value).moment.by("line")  # of other tests' graphs, too, that are still alive
    assert "Cell In[3], line 4" in lines
    assert not any("ipykernel" in line or "ipython-input" in line for line in lines)


def test_a_cell_that_is_run_again_has_its_newest_number(shell, names):
    shell.run(3, KERNEL, TRAIN, names)
    code = names["train"].__code__
    assert origins.describe(code, -1) == frames.place(code) == "Cell In[3], line 2"
    shell.run(7, KERNEL, TRAIN, names)
    assert places.place(KERNEL, 2) == "Cell In[7], line 2"
    assert places.source("Cell In[7], line 2") == "def train(model, losses, steps):"


def test_without_a_shell_files_stay_files():
    assert places.place(PLAIN, 4) == "Cell In[5], line 4"  # an older IPython tells of cells by their names alone
    assert places.place(KERNEL, 4) == f"{KERNEL}:4"
    assert places.place("<string>", 4) == "<string>:4"
    assert places.place("/elsewhere/train.py", 4) == "/elsewhere/train.py:4"


@pytest.mark.parametrize("fault", ["_instance", "compile", "_filename_map", "InteractiveShell"])
def test_a_shell_of_another_shape_knows_no_cells(shell, monkeypatch, fault):
    module = sys.modules["IPython.core.interactiveshell"]
    state = object.__getattribute__(InteractiveShell._instance, "__dict__")
    if fault == "_instance":
        monkeypatch.setattr(InteractiveShell, "_instance", None)
    elif fault == "compile":
        state.clear()
    elif fault == "_filename_map":
        state["compile"] = object()
    else:
        del module.InteractiveShell
    assert places.place(KERNEL, 4) == f"{KERNEL}:4"


FILES = st.sampled_from([KERNEL, PLAIN, "/elsewhere/a, b:c.py", "train.py", "<string>"])


@given(FILES, st.integers(1, 10**6), st.integers(0, 10**6), st.booleans())
def test_what_is_told_can_be_read_again(file, line, number, known):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "_numbers", lambda: {KERNEL: number} if known else {})
        told = places.place(file, line)
    name, at = places.parted(told)
    assert at == line
    assert places.file_of(name) in (file, str(places.Path(file).absolute()))
    assert places.without_lines(told) == name
    assert "unknown" in places.parted("unknown")


def test_the_place_that_ends_a_text(own_folder):
    assert places.at_end("local of f(), train.py:13") == (str(own_folder / "train.py"), 13)
    assert places.at_end("local of f(), in a cell, Cell In[2], line 13")[1] == 13
    assert places.at_end("global of train") is None
    assert places.without_lines("local of f(), Cell In[2], line 13") == "local of f(), Cell In[2]"


def test_bills_of_cells_and_of_unknown_places_are_told_apart(own_folder):
    def entry(where, nbytes):
        return bill.Entry("exp output", bill.stable(where, own_folder), "", 1, nbytes)

    before = [entry("Cell In[2], line 3", 8), entry("Cell In[3], line 3", 16), entry("unknown", 4)]
    moved = [entry("Cell In[2], line 9", 8), entry("Cell In[3], line 1", 16), entry("unknown", 4)]
    assert bill.changes(before, moved) == []
    (change,) = bill.changes(before, [*before[:2], entry("unknown", 5)])
    assert (change.sign, change.entry.where, change.bytes) == (">", "unknown", 1)


@pytest.fixture
def library(own_folder, monkeypatch):
    """A package that is installed below the working directory, as in a virtual environment, and makes tensors."""
    folder = own_folder / ".venv" / "lib" / "site-packages"
    (folder / "theirs").mkdir(parents=True)
    (folder / "theirs" / "__init__.py").write_text("import torch\n\n\ndef loss(x):\n    return x.exp().sum()\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    yield folder / "theirs" / "__init__.py"
    sys.modules.pop("theirs", None)


def test_what_is_installed_is_named_from_its_package_on_and_found_again(library):
    place = places.place(str(library), 5)
    assert place == "theirs/__init__.py:5"
    assert (places.file_of("theirs/__init__.py"), places.source(place)) == (str(library), "return x.exp().sum()")
    assert bill.stable(place, library.parents[4]) == bill.stable(f"{library}:5", library.parents[4]) == place
    assert places.file_of("train.py") == str(library.parents[4] / "train.py")
    assert places.installed(str(library.parents[4] / "train.py")) is None


LOOP = """\
import theirs, torch
class Epochs:
    losses = []
    def step(self):
        self.losses.append(theirs.loss(weight))
weight, trainer = torch.nn.Linear(4, 4).weight, Epochs()
optimizer = torch.optim.SGD([weight], 0.1)
for _ in range(12):
    trainer.step()
    optimizer.step()
"""


@NEEDS_PACKED
@pytest.mark.usefixtures("small_heap", "library")
def test_of_what_a_library_made_the_users_own_line_is_told_too(trace):
    (owner,) = trace(LOOP)[-1].owners[:1]
    assert owner.places == [
        ("born at", "theirs/__init__.py:5", "return x.exp().sum()"),
        ("kept at", "train.py:5", "self.losses.append(theirs.loss(weight))"),
    ]
    assert owner.place == "kept at train.py:5"
