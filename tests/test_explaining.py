"""explain, on_oom and show pattern: what memlab says inside other people's programs, and the code it hands out."""

import io
import re
import subprocess
import sys
import threading
import types

import pytest
import torch
from holders import NEEDS_PACKED
from samples import Terminal
from torch import nn

import memlab
from memlab import cli, excerpt, experiment, hook_stack, patterns
from memlab.show import _explanation, _owners
from memlab.tracing.explanation import of_tensor
from memlab.tracing.trace import Held


def forward():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    return model(torch.ones(32, 8)).mean()


@NEEDS_PACKED
def test_explain_names_bytes_by_line_and_module():
    with memlab.watch():
        loss = forward()
        found = of_tensor(loss)
    assert found.moment.saved == sum(row.bytes for row in found.moment.rows) == memlab.bill(loss).bytes
    explained = memlab.explain(loss)
    text = repr(explained)
    assert text == str(explained)
    assert "loss (local of test_explain_names_bytes_by_line_and_module()" in text
    assert "-> MeanBackward0" in text
    assert f"test_explaining.py:{forward.__code__.co_firstlineno + 2}" in text
    assert "1 (Tanh)" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= _explanation.WIDTH


@NEEDS_PACKED
def test_explain_without_a_watch_and_without_a_graph():
    assert "by node" in repr(memlab.explain(forward()))
    assert "keeps 0 B for backward" in repr(memlab.explain(torch.ones(3)))
    with pytest.raises(TypeError, match=r"explain\(\) takes one tensor"):
        memlab.explain([forward()])


@NEEDS_PACKED
def test_explain_in_jupyter_and_rich():
    from rich.console import Console

    found = memlab.explain(forward())
    assert "monospace" in found._repr_html_().partition(">")[0]  # a notebook's own font would break the columns
    assert "&gt; MeanBackward0" in found._repr_html_()
    for width in (40, 100):
        console = Console(file=io.StringIO(), width=width)
        console.print(found)
        assert max(map(len, console.file.getvalue().splitlines())) <= width
        assert "MeanBackward0" in console.file.getvalue()


@NEEDS_PACKED
def test_what_a_debugger_prints_fits_its_terminal(monkeypatch):
    loss = forward()
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "44")
    assert max(map(len, repr(memlab.explain(loss)).splitlines())) <= 44


@NEEDS_PACKED
def test_explaining_keeps_nothing_alive():
    import weakref

    with memlab.watch() as seen:
        loss = forward()
        storage = weakref.ref(loss.untyped_storage())
        explained = memlab.explain(loss)
        assert seen.saved.bytes
        del loss
        assert (seen.saved.bytes, storage()) == (0, None)
    assert "MeanBackward0" in repr(explained)


def run_out(outputs):
    while len(outputs) < 5:
        outputs.append(forward())
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has")


@pytest.fixture
def armed():
    before = sys.excepthook, threading.excepthook
    yield memlab.on_oom()
    sys.excepthook, threading.excepthook = before


@NEEDS_PACKED
def test_on_oom_explains_before_the_traceback(armed, capsys):
    try:
        run_out([])
    except torch.OutOfMemoryError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    _, said = capsys.readouterr()
    assert said.index("memlab: out of memory") < said.index("Traceback (most recent call last)")
    each = 4 * 32 * 8 + 4 * 32 * 16  # the input, and the output of tanh
    assert "  outputs (local of " in said
    assert f"... pins {5 * each / 1024:.2f} KiB in 15 saved tensors" in " ".join(said.split())
    assert "TanhBackward0" in said
    assert said.count("memlab: out of memory") == 1


@NEEDS_PACKED
@pytest.mark.usefixtures("small_heap")
def test_on_oom_tells_what_ran_after_who_kept(armed, capsys, monkeypatch):
    """A variable of the step that ran out is larger than what piled up, and no cause."""
    monkeypatch.setenv("COLUMNS", "200")

    def step(kept):
        scratch = torch.zeros(1 << 20)
        kept.append(scratch.sum() * torch.ones(1, requires_grad=True).exp())
        raise torch.OutOfMemoryError("CUDA out of memory.")

    losses_of_the_run = []
    try:
        step(losses_of_the_run)
    except torch.OutOfMemoryError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert said.index("losses_of_the_run") < said.index("in use") < said.index("scratch (local of ")
    assert re.search(r"  in use +4\.00 MiB  scratch \(local of .*step\(\), .*test_explaining\.py:\d+\)\n", said)
    assert said.count("scratch (local of ") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_on_oom_in_a_thread_and_behind_another_error(armed, capsys):
    def fails():
        try:
            run_out([])
        except torch.OutOfMemoryError as error:
            raise RuntimeError("step failed") from error

    error = None
    try:
        fails()
    except RuntimeError as caught:
        error = caught
    threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))
    assert "memlab: out of memory" in capsys.readouterr().err


def test_on_oom_as_a_context_manager(capsys):
    before = sys.excepthook, threading.excepthook
    with pytest.raises(torch.OutOfMemoryError), memlab.on_oom():
        run_out([])
    assert "memlab: out of memory" in capsys.readouterr().err
    with pytest.raises(KeyError), memlab.on_oom():
        raise KeyError
    with memlab.on_oom():
        assert hook_stack.top() is None
    assert capsys.readouterr().err == ""
    assert (sys.excepthook, threading.excepthook) == before


class Events:
    """As IPython's, of one event."""

    def __init__(self):
        self.callbacks = []

    def register(self, event, function):
        assert event == "post_run_cell"
        self.callbacks.append(function)

    def unregister(self, event, function):
        self.callbacks.remove(function)

    def cell(self, code):
        error = None
        try:
            code()
        except Exception as caught:
            error = caught
        for each in list(self.callbacks):
            each(types.SimpleNamespace(error_in_exec=error))


@pytest.fixture
def shell(monkeypatch):
    events = Events()
    module = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(events=events))
    monkeypatch.setitem(sys.modules, "IPython", module)
    return events


@NEEDS_PACKED
@pytest.mark.usefixtures("small_heap")
def test_on_oom_explains_what_ends_a_cell(shell, armed, capsys):
    again = memlab.on_oom()  # as a cell that is run a second time
    shell.cell(lambda: 1 / 0)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        shell.cell(lambda: run_out([]))
        said = capsys.readouterr().err
        assert said.count("memlab: out of memory") == 1
        assert "  outputs (local of run_out()" in said
    again.remove()
    again.remove()
    armed.remove()
    shell.cell(lambda: run_out([]))
    assert capsys.readouterr().err == ""


def test_a_fault_of_ours_does_not_hide_the_error(armed, capsys, monkeypatch):
    monkeypatch.setattr(_explanation, "show_oom", lambda *given: 1 / 0)
    try:
        run_out([])
    except torch.OutOfMemoryError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert "Tried to allocate 2.00 MiB" in capsys.readouterr().err


def test_step_is_heard_by_a_watch_and_by_nobody_else():
    memlab.step()
    with memlab.watch() as seen:
        memlab.step()
        kept = forward()
        memlab.step()
        other = forward()
        assert {line.step for line in seen.saved.lines} == {1, 2}
    memlab.step()
    assert seen.saved.ledger.step == 2
    assert kept is not other


def test_every_arm_can_be_copied_and_runs(tmp_path):
    """One process imports every excerpt: each is whole, names nothing that it lacks, and its arms go through."""
    driver = ["import runpy, sys, warnings", "warnings.simplefilter('error')"]
    for name in experiment.files():
        code = excerpt.excerpt(name)
        assert "memlab" not in code
        (tmp_path / f"{name}.py").write_text(code)
        driver.append(f"runpy.run_path({name + '.py'!r}, run_name='__main__')")
    (tmp_path / "driver.py").write_text("\n".join(driver))
    done = subprocess.run([sys.executable, "driver.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_excerpt_has_what_one_arm_needs_and_no_more():
    code = excerpt.excerpt("forward_without_backward:numbers_kept")
    assert "def numbers_kept(model, x):" in code
    assert "def losses_kept" not in code
    assert "import torch\nfrom torch.nn import Linear, Sequential, Tanh\n" in code
    assert "steps = numbers_kept(*setup(sizes))" in code
    for name in experiment.files():
        for arm in experiment.summarise(experiment.find(name)).arms:
            bills = re.findall(r"^def \w+\(s, k", excerpt.excerpt(f"{name}:{arm}"), re.MULTILINE)
            assert not bills, (name, arm)  # of the prediction, even where a variable has the name of one


@pytest.fixture
def memlab_(capsys):
    def go(*arguments):
        return (cli.main([str(each) for each in arguments]), *capsys.readouterr())

    return go


def test_show_pattern(memlab_, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = memlab_("show", "pattern", "forward_without_backward:numbers_kept", "--copy", "cure.py")
    assert (status, out) == (0, "cure.py\n")
    assert (tmp_path / "cure.py").read_text() == excerpt.excerpt("forward_without_backward:numbers_kept")
    assert memlab_("show", "pattern", "oom_demo", "--copy", "cure.py")[0] == 2
    assert "numbers_kept" in (tmp_path / "cure.py").read_text()  # nothing was overwritten
    assert "did you mean numbers_kept" in memlab_("show", "pattern", "forward_without_backward:number_kept")[2]
    assert "did you mean forward_without_backward" in memlab_("show", "pattern", "forward_without_backwards")[2]
    assert memlab_("show", "pattern", "lru-cache")[1] == excerpt.excerpt("who_keeps:cache_of_detached")
    assert "belong to memlab show pattern" in memlab_("show", "x.json", "name")[2]
    (tmp_path / "pattern").write_text("{}")
    assert "it is JSON, but not a memlab report" in memlab_("show", "./pattern")[2]
    status, out, _ = memlab_("show", "pattern")
    assert (status, len(out.splitlines())) == (0, len(patterns.KNOWN))


def test_every_cure_is_an_arm_that_is_there():
    for pattern in patterns.KNOWN:
        name, _, arm = pattern.cure.partition(":")
        assert experiment.load(experiment.find(name)).arm(arm)


def test_what_stops_growing_by_itself_needs_no_cure():
    known = {"holds": "tensors", "elements": 8, "through": ("dict", "dict", "list")}
    where = "attribute of LBFGS; opt is global of __main__"
    assert patterns.recognise(patterns.Clue("opt.state", where, **known)).name == "history that fills"
    assert patterns.recognise(patterns.Clue("opt.seen", where, **known)).name == "growing detached cache"
    held = Held("opt.state (attribute of LBFGS) -> Tensor", "opt.state", pattern="history that fills", fix="none")
    assert [line.text for line in _owners.owner(held, 80)][-1] == "  fix      none"


@pytest.mark.parametrize(
    ("pattern", "facts"),
    [
        ("kept losses", {"elements": 412, "through": ("list",), "scalar": True}),
        ("kept outputs", {"elements": 4, "through": ("list",)}),
        ("kept outputs", {"elements": 9, "through": ("list", "tuple"), "stores": {"put"}}),
        ("accumulated loss", {"stores": {"add"}, "piles": False}),
        ("accumulated loss", {"stores": {"add", "assign"}, "through": ("dict",), "piles": False}),
        ("accumulated loss", {"made_by": ("AddBackward0", "AddBackward0", "NllLossBackward0")}),
        ("accumulated loss", {"stores": {"assign"}, "made_by": ("AddBackward0", "AddBackward0"), "scalar": True}),
        ("average with history", {"stores": {"mix", "assign"}}),
        ("average with history", {"made_by": ("LerpBackward0",)}),
        ("undetached recurrent state", {"stores": {"assign"}, "made_by": ("AddBackward0", "AddBackward0")}),
        ("undetached recurrent state", {"elements": 2, "through": ("tuple",), "piles": False}),
        ("lru_cache", {"kind": "lru_cache", "elements": 3}),
        ("traceback", {"kind": "traceback"}),
        ("traceback", {"elements": 9, "through": ("list", "object", "traceback", "frame")}),
        ("create_graph cycle", {"name": "w.grad", "kind": "tensor attribute"}),
        ("create_graph cycle", {"name": "Parameter.grad", "kind": "cycle", "grows": False}),
        ("replay buffer", {"elements": 9, "through": ("deque", "tuple")}),
        ("kept losses", {"elements": 9, "through": ("deque",), "scalar": True}),
        ("growing detached cache", {"elements": 9, "through": ("list",), "holds": "tensors"}),
        ("eval without no_grad", {"elements": 9, "through": ("list",), "evaluating": True}),
        ("hook store", {"elements": 9, "through": ("list",), "stores": {"put", "hook"}}),
        ("hook store", {"elements": 9, "kind": "hook", "through": ("dict", "function")}),
        ("closure", {"elements": 9, "through": ("list", "function")}),
        (None, {"grows": False}),
        (None, {"grows": False, "evaluating": True}),
        (None, {"name": "Holder <-> itself", "kind": "cycle", "grows": False}),
    ],
)
def test_patterns_are_recognised(pattern, facts):
    facts = {"name": "x"} | facts
    found = patterns.recognise(patterns.Clue(**facts | {"stores": frozenset(facts.get("stores", ()))}))
    assert (found.name if found else None) == pattern
