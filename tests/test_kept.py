"""The only statement that stores into a name, told by Python's rules of scope; never another of the same spelling."""

import sys
import textwrap
from types import ModuleType

import pytest

from memlab.tracing import kept, stores
from memlab.tracing.kept import kept_at


@pytest.fixture
def said(own_folder, monkeypatch):
    """Write a module and ask for a name; ``where`` may name the line that ends with ``# here`` as HERE."""

    def go(source, name, where, module="train"):
        text = textwrap.dedent(source)
        file = own_folder / f"{module}.py"
        file.write_text(text)
        stores.tree_of.cache_clear()  # a file that a program has loaded does not change
        kept.scopes_of.cache_clear()
        loaded = ModuleType(module)
        loaded.__file__ = str(file)
        exec(compile(text, str(file), "exec"), loaded.__dict__)
        monkeypatch.setitem(sys.modules, module, loaded)
        lines = text.splitlines()
        here = [number for number, line in enumerate(lines, 1) if line.endswith("# here")]
        marks = [number for number, line in enumerate(lines, 1) if line.endswith("# kept")]
        place = kept_at(name, where.replace("HERE", f"{file.name}:{here[0] if here else 0}"))
        return place, f"{file.name}:{marks[0]}" if marks else ""

    return go


LOCAL, GLOBAL = "local of train(), HERE", "global of train"


@pytest.mark.parametrize(
    "statement",
    [
        "kept.append(y)",
        "kept[3] = y",
        "kept[y].append(y)",
        "kept += [y]",
        "kept = kept + [y]",
        "_, kept = 0, [*kept, y]",
        "kept: list = [*kept, y]",
        "if y: kept.append(y)",
        "kept.extend(each for each in (y,))",
    ],
)
def test_statements_that_store(said, statement):
    place, wanted = said(f"def train(y):\n    kept = []\n    {statement}  # kept\n    y()  # here\n", "kept", LOCAL)
    assert place == wanted


def test_none_and_several_are_not_told(said):
    assert said("def train(y):\n    kept = fill(y)  # kept\n    y()  # here\n", "kept", LOCAL)[0] == "train.py:2"
    assert said("def train(y, kept):\n    fill(kept, y)\n    y()  # here\n", "kept", LOCAL)[0] == ""
    assert said("def train(y):\n    kept = []\n    kept.clear()\n    y()  # here\n", "kept", LOCAL)[0] == ""
    twice = "def train(y):\n    kept = []\n    kept.append(y)\n    kept.append(1)\n    y()  # here\n"
    assert said(twice, "kept", LOCAL)[0] == ""


SCOPES = """
kept = []

def train(y):
    kept = []
    kept.append(y)  {local}
    y()  # here

def other(y):
    kept.append(y)  {outer}
    return [kept for kept in y]

def third(y, kept=None):
    kept.append(y)

class Fourth:
    kept = []

    def add(self, y):
        self.kept.append(y)  {attribute}

    def reset(self):
        kept = [self]
"""


def marked(which):
    return SCOPES.format(**{each: "# kept" if each == which else "" for each in ("local", "outer", "attribute")})


def test_names_of_one_spelling_are_told_apart(said):
    for which, name, where in (
        ("local", "kept", LOCAL),
        ("outer", "kept", GLOBAL),
        ("attribute", "fourth.kept", "attribute of Fourth; fourth is global of elsewhere"),
        ("attribute", "Fourth.kept", "attribute of class Fourth"),
    ):
        place, wanted = said(marked(which), name, where)
        assert place == wanted, which


CLOSURE = """
import functools

def train(y):
    kept = []

    @functools.lru_cache  # here
    def keep(y):
        {said}
        kept = [*kept, y]  # kept

    def not_this(y):
        kept = []
        kept.append(y)

    return keep
"""


def test_a_closure_is_its_function_s_variable(said):
    for where in ("closure of train.<locals>.keep(), HERE", "local of train(), train.py:5"):
        place, wanted = said(CLOSURE.format(said="nonlocal kept"), "kept", where)
        assert place == wanted
    put = CLOSURE.replace("kept = [*kept, y]", "kept.append(y)").format(said="y()")
    place, wanted = said(put, "kept", "closure of train.<locals>.keep(), HERE")
    assert place == wanted
    assert said(CLOSURE.format(said="global kept"), "kept", GLOBAL)[0] == "train.py:10"


def test_a_name_of_a_class_s_body_is_not_seen_from_its_methods(said):
    source = """
        kept = []

        class Archivist:
            kept = []

            def add(self, y):
                kept.append(y)  # kept
        """
    place, wanted = said(source, "kept", GLOBAL)
    assert place == wanted
    assert said(source, "Archivist.kept", "attribute of class Archivist")[0] == ""


def test_a_default_argument(said):
    source = "@staticmethod  # here\ndef train(y, kept=[]):\n    kept.append(y)  # kept\n"
    place, wanted = said(source, "kept", "default argument of train(), HERE")
    assert place == wanted


def test_an_attribute_is_followed_by_its_name_and_by_its_class(said):
    by_name = "def train(y, trainer):\n    trainer.kept.append(y)  # kept\n    y()  # here\n"
    where = "attribute of Archivist; trainer is local of train(), HERE"
    place, wanted = said(by_name, "trainer.kept", where)
    assert place == wanted
    assert said(by_name, "other.kept", where.replace("trainer", "other"))[0] == ""
    by_class = "class Archivist:\n    def add(this, y):\n        this.kept.append(y)  # kept\n"
    place, wanted = said(by_class, "trainer.kept", "attribute of Archivist; trainer is global of nowhere", "classes")
    assert place == wanted
    assert said(by_name, "trainer.kept", where)[0] == ""  # now there are two statements, in two files
    another = "class Archivist:\n    pass\n"
    assert said(another, "trainer.kept", "attribute of Archivist; trainer is global of nowhere", "more")[0] == ""


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("kept[0].x", LOCAL),
        ("*.kept", "attribute of Trainer; a is local of train(), HERE (and 3 more)"),
        ("a value in use", "in train(), HERE"),
        ("kept", "global of nowhere"),
        ("kept", "local of train(), gone.py:3"),
        ("kept", "attribute of Unknown; kept is the last error"),
        ("(no Python name)", "held by C++ only"),
    ],
)
def test_what_cannot_be_followed_is_not_told(said, name, where):
    assert said("def train(y, kept):\n    kept.append(y)\n    y()  # here\n", name, where)[0] == ""


def test_a_file_that_is_no_python_is_not_told(own_folder):
    (own_folder / "train.py").write_text("def train(:\n")
    assert kept_at("kept", "local of train(), train.py:1") == ""
