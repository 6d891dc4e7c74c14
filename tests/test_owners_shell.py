"""What IPython keeps of the outputs of cells is one owner, whose name says what empties it."""

import sys
import types

import pytest
import torch
from holders import NEEDS_PACKED

import memlab
from memlab.ownership import shell

pytestmark = NEEDS_PACKED


def forward():
    return torch.ones(100, requires_grad=True).exp().sum()


class InteractiveShell:
    """Keeps an output wherever IPython 9 does: `IPython.core.displayhook.DisplayHook.update_user_ns`."""

    _instance = None

    def __init__(self, names):
        self.user_ns_hidden = {}
        self.displayhook = types.SimpleNamespace(_=None, __=None)
        self._trait_values = {"last_execution_result": types.SimpleNamespace(result=None, error_in_exec=None)}
        self.configurables = [types.SimpleNamespace(output_hist=names["_oh"]), self.displayhook]
        self.names = names

    def shows(self, number, output):
        self.displayhook._, self.displayhook.__ = output, self.displayhook._
        shown = {f"_{number}": output, "_": output, "__": self.displayhook.__}
        self.names.update(shown)
        self.user_ns_hidden.update(shown)
        self.names["_oh"][number] = output
        self._trait_values["last_execution_result"].result = output


@pytest.fixture
def cells(monkeypatch):
    main = types.ModuleType("__main__")
    history = {}
    main.__dict__.update(_oh=history, Out=history)
    module = types.ModuleType("IPython.core.interactiveshell")
    module.InteractiveShell = InteractiveShell
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    running = InteractiveShell(main.__dict__)
    monkeypatch.setattr(InteractiveShell, "_instance", running)
    return running


def test_an_output_is_held_by_the_history_alone(cells):
    cells.shows(3, forward())
    cells.shows(4, forward())
    (found,) = memlab.owners(cells.names["_4"])
    assert (found.name, found.where, found.elements) == ("Out", shell.WHERE, 2)
    assert found.exclusive_bytes == found.bytes == 800


def test_a_variable_beside_the_history(cells):
    cells.names["loss"] = forward()
    cells.shows(3, cells.names["loss"])
    found = {each.name: each.exclusive_bytes for each in memlab.owners(cells.names["loss"])}
    assert found == {"loss": 0, "Out": 0}


def test_names_that_only_look_like_outputs(cells):
    cells.names["_5x"] = forward()
    cells.names["_private"] = forward()
    assert {each.name for each in memlab.owners()} >= {"_5x", "_private"}


def test_without_a_shell_there_are_no_places():
    assert shell.find() == shell.Shell()
    assert not shell.find().is_output(0, "_3x")
