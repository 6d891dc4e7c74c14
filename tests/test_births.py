"""Where the tensors of an owner without a graph were made: the line that ends with ``# born``, and no other."""

import copy
import importlib.util
import inspect
import json
import re
import sys
import textwrap
import threading
from collections import deque
from pathlib import Path

import pytest
import torch
from holders import NEEDS_PACKED
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader

import memlab
from memlab import cli
from memlab.births import NOWHERE, birth
from memlab.guard import texts
from memlab.origins import describe
from memlab.ownership import Owner
from memlab.ownership.born import Births
from memlab.ownership.stored import Stored
from memlab.probes.history import History
from memlab.probes.storages import Storages

pytestmark = pytest.mark.usefixtures("small_heap")
HERE = Path(__file__)
ELSEWHERE = """
import torch

def batch(n):
    x = torch.ones(n, 16)  # born
    return x.view(-1)

def through(keep, make):
    keep(make())
"""


def line_of(function, file=HERE):
    """Return ``file:line`` of the line marked in a function, or in a whole file."""
    lines, first = inspect.getsourcelines(function) if function else (file.read_text().splitlines(), 1)
    (found,) = (first + index for index, line in enumerate(lines) if line.rstrip().endswith("# born"))
    return f"{file.name}:{found}"


def shown(place):
    """A file relative to the working directory, or not, by its bare name."""
    return place.rpartition("/")[2]


@pytest.fixture
def elsewhere(tmp_path):
    file = tmp_path / "elsewhere.py"
    file.write_text(ELSEWHERE)
    spec = importlib.util.spec_from_file_location("elsewhere", file)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


class Trainer:
    def __init__(self):
        self.outputs = []

    def keep(self, y):
        self.outputs.append(y)


def in_a_list():
    kept = []

    def step():
        y = torch.ones(32, 16)  # born
        kept.append(y.detach())

    return step


def in_a_dict():
    kept = {}

    def step():
        y = torch.ones(32, 16).exp()  # born
        kept[len(kept)] = {"y": y.data}

    return step


def in_an_attribute():
    trainer = Trainer()

    def step():
        y = torch.rand(32, 16)  # born
        trainer.keep(y)

    return step


def in_a_class_attribute():
    class Shared:
        seen = []  # noqa: RUF012  (shared by all: the leak)

    def step():
        y = torch.rand(32, 16)  # born
        Shared.seen.append(y)

    return step


def in_a_deque():
    fifo = deque()

    def step():
        y = torch.rand(32, 16).to(torch.float64)  # born
        fifo.append(y)

    return step


def in_a_replay_buffer():
    replay, policy = deque(maxlen=10_000), torch.nn.Linear(16, 4)

    def step():
        with torch.no_grad():
            state = torch.ones(32, 16).cos()  # born
            action = policy(state).argmax(-1)
        replay.append((state, action, 0.5))

    return step


def in_a_history_of_an_average():
    weight, history = torch.nn.Parameter(torch.ones(32, 16)), []
    average = weight.detach().clone()

    def step():
        with torch.no_grad():
            average.lerp_(weight, 0.1)
            history.append(average.clone())  # born

    return step


def in_one_tensor_that_grows():
    everything = torch.zeros(1, 16)

    def step():
        nonlocal everything
        y = torch.ones(32, 16)
        everything = torch.cat([everything, y])  # born

    return step


def a_gradient():
    weight, kept = torch.nn.Parameter(torch.ones(32, 16)), []

    def step():
        loss = weight.exp().sum()
        loss.backward()  # born
        kept.append(weight.grad)
        weight.grad = None

    return step


def by_torch_itself():
    kept, labels = [], torch.arange(32)

    def step():
        y = F.one_hot(labels, 64)  # born
        kept.append(y)

    return step


def by_a_loader():
    kept, data = [], [torch.ones(16)] * 32

    def step():
        for batch in DataLoader(data, batch_size=32):  # born
            kept.append(batch)

    return step


def by_a_worker():
    kept, data = [], [torch.ones(16)] * 32

    def step():
        for batch in DataLoader(data, batch_size=32, num_workers=1):  # born
            kept.append(batch)

    return step


def by_python_itself():
    kept, model = [], torch.nn.Linear(32, 16)

    def step():
        twin = copy.deepcopy(model)  # born
        kept.append([each.detach() for each in twin.parameters()])

    return step


def in_a_thread():
    kept = []

    def work():
        y = torch.ones(32, 16)  # born
        kept.append(y)

    def step():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    return step


def beside_something_large():
    kept = [torch.zeros(1 << 20)]

    def step():
        y = torch.ones(32, 16)  # born
        kept.append(y)

    return step


MAKERS = {
    "kept": [
        in_a_list,
        in_a_dict,
        a_gradient,
        by_torch_itself,
        by_a_loader,
        by_a_worker,
        by_python_itself,
        in_a_thread,
    ],
    "trainer.outputs": [in_an_attribute],
    "in_a_class_attribute.<locals>.Shared.seen": [in_a_class_attribute],
    "fifo": [in_a_deque],
    "replay": [in_a_replay_buffer],
    "history": [in_a_history_of_an_average],
    "everything": [in_one_tensor_that_grows],
}


@NEEDS_PACKED
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
@pytest.mark.parametrize(
    ("name", "maker"), [pytest.param(name, each, id=each.__name__) for name, some in MAKERS.items() for each in some]
)
def test_growth_knows_where_what_grows_was_made(name, maker):
    owner = memlab.growth(maker(), steps=4, warmup=1).owners[0]
    assert (owner.name, owner.holds, shown(owner.born)) == (name, "tensors", line_of(maker))


@NEEDS_PACKED
def test_made_in_one_file_and_kept_by_another(elsewhere):
    kept = []
    owner = memlab.growth(lambda: kept.append(elsewhere.batch(32)), steps=4, warmup=1).owners[0]
    assert (owner.name, shown(owner.born)) == ("kept", line_of(None, Path(elsewhere.__file__)))

    def make():
        return torch.ones(32, 16)  # born

    others = []
    owner = memlab.growth(lambda: elsewhere.through(others.append, make), steps=4, warmup=1).owners[0]
    assert (owner.name, shown(owner.born)) == ("others", line_of(make))


@NEEDS_PACKED
def test_owners_know_it_under_a_watch_that_is_asked_to():
    for options, known in (({"births": True}, True), ({"keep_peak": True}, True), ({}, False)):
        with memlab.watch(**options) as seen:
            x = torch.ones(3)
            place = f"{HERE.name}:{sys._getframe().f_lineno - 1}"
        found = next(each for each in memlab.owners(x) if each.name == "x")
        assert shown(found.born) == (place if known else "unknown")
        del x, seen


def test_births_need_storages():
    with pytest.raises(ValueError, match="births are fed by the storages probe"):
        memlab.watch(births=True, storages=False)


PROBES = {
    "late": lambda: Storages(births=True),
    "at once": lambda: Storages(keep_peak=True),
    "card": lambda: Storages(memlab.allocator.Allocator(1 << 30), births=True),
    "history": lambda: History(memlab.allocator.Allocator(1 << 30), births=True),
}


def one(n):
    return torch.ones(n), sys._getframe().f_lineno


def two(n):
    return torch.ones(n).view(1, -1)[0], sys._getframe().f_lineno


def three(n):
    return (torch.ones(n) + 1, sys._getframe().f_lineno)


@pytest.mark.parametrize("probe", PROBES)
@settings(deadline=None, max_examples=25)
@given(choices=st.lists(st.tuples(st.sampled_from([one, two, three]), st.integers(1, 9), st.booleans()), max_size=30))
def test_each_storage_knows_its_own_line_whatever_went_before_it(probe, choices):
    """Addresses are used again; what was dropped there leaves nothing behind."""
    held = []
    with PROBES[probe]() as seen:
        for make, n, stays in choices:
            held.append(make(n))
            if not stays:
                held.pop(0)
    for tensor, line in held:
        code, lasti = birth(tensor.untyped_storage())
        assert shown(describe(code, lasti)) == f"{HERE.name}:{line}"
    assert birth(torch.ones(3).untyped_storage()) == NOWHERE
    del seen


def test_the_first_of_several_ledgers_that_knows_tells():
    with Storages() as outer, Storages(births=True) as knows, Storages() as inner:
        x = torch.ones(2)
    assert birth(x.untyped_storage())[0] is sys._getframe().f_code
    del outer, knows, inner


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=12),
)
def test_most_new_bytes_come_before_most_bytes(storages):
    """Against arithmetic: three places, two holders, storages of up to 9 bytes of which all or none are new."""
    makers = {0: one, 1: two, 2: three}
    tensors, masks, made = [], {}, {}
    sums = {1: {}, 2: {}}
    with Storages(births=True) as seen:
        for place, mask, size in storages:
            tensor, line = makers[place](size)
            tensors += [tensor, tensor[:1]]  # two tensors on one storage count once, for the owners of both
            masks |= {id(tensors[-2]): mask, id(tensors[-1]): mask & 1}
            nbytes = tensor.untyped_storage().nbytes()
            new = nbytes if size % 2 else 0
            if new:
                made[tensor.untyped_storage()._cdata] = new
            for bit in (1, 2):
                if mask & bit:
                    before = sums[bit].get(line, (0, 0))
                    sums[bit][line] = before[0] + new, before[1] + nbytes
    del seen
    stored = Stored(tensors, made)
    births = Births(stored.births(stored.masks(masks)))
    for bit, places in sums.items():
        said = births.of(bit)
        if not places:
            assert said == "unknown"
        else:
            assert places[int(said.rpartition(":")[2])] == max(places.values())


SCRIPT = """
import torch
from torch import nn
import elsewhere

model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
CACHE


def train(steps):
    for step in range(steps):
        y = model(torch.ones(32, 64))
        y.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        STORE


train(16)
"""


@pytest.fixture
def trace(own_folder, capsys):
    """Trace the script with these statements; return what is said and who is accused."""

    def go(cache, store, *options, out="out.json"):
        Path("elsewhere.py").write_text(ELSEWHERE)
        Path("train.py").write_text(textwrap.dedent(SCRIPT).replace("CACHE", cache).replace("STORE", store))
        sys.modules.pop("elsewhere", None)
        cli.main(["trace", "--json", out, *map(str, options), "train.py"])
        found = json.loads(Path(out).read_text())["owners"]
        return capsys.readouterr().err, [each for each in found if each["holds"] == "tensors" and each["per_step"]]

    yield go
    sys.modules.pop("elsewhere", None)


def number(line):
    return 1 + SCRIPT.splitlines().index(line)


@NEEDS_PACKED
@pytest.mark.parametrize("options", [(), ("--card", "64 MiB")])
def test_a_trace_says_where_what_piles_up_was_born(trace, capsys, options):
    said, (owner,) = trace("cache = []", "cache.append(y.detach())", *options)
    made = f"train.py:{number('        y = model(torch.ones(32, 64))')}"
    assert (owner["name"], owner["born"], owner["source"]) == ("cache", made, "y = model(torch.ones(32, 64))")
    assert f"born at  {made}  y = model(torch.ones(32, 64))\n" in said and "kept at" not in said
    assert cli.main(["show", "out.json"]) == 0
    assert f"born at  {made}  y = model(torch.ones(32, 64))\n" in capsys.readouterr().out


@NEEDS_PACKED
def test_a_trace_names_what_is_new_and_not_what_was_there(trace):
    said, (owner,) = trace("cache = [torch.zeros(1 << 20)]", "cache.append(elsewhere.batch(9))")
    made = line_of(None, Path("elsewhere.py"))
    assert (owner["name"], owner["born"]) == ("cache", made)
    assert f"born at  {made}  x = torch.ones(n, 16)  # born\n".replace("  # born", " # born") in said


@NEEDS_PACKED
def test_a_comparison_says_what_piles_up_and_where_it_was_born(trace, capsys):
    trace("cache = []", "pass", out="before.json")
    trace("cache = []", "cache.append(y.detach())", out="after.json")
    assert cli.main(["diff", "before.json", "after.json"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    made = f"train.py:{number('        y = model(torch.ones(32, 64))')}"
    assert "1 name differs what names hold more in every step +8.00 KiB" in said
    assert f"+8.00 KiB 0 B -> 8.00 KiB cache, born at {made}" in said
    assert cli.main(["diff", "after.json", "before.json"]) == 0
    assert "-8.00 KiB  8.00 KiB -> 0 B  cache" in capsys.readouterr().out
    assert cli.main(["diff", "after.json@8", "after.json"]) == 0
    assert "+8.00 KiB  0 B -> 8.00 KiB  cache" in capsys.readouterr().out  # of a step's end, no owner is known
    assert cli.main(["diff", "after.json", "after.json"]) == 0
    assert "nothing differs" in capsys.readouterr().out


def run_out(predictions):
    while len(predictions) < 5:
        predictions.append(torch.ones(32, 64))  # born
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has")


@NEEDS_PACKED
def test_on_oom_says_born_where_it_was_watched_and_kept_where_not(capsys):
    place = re.escape(line_of(run_out)) + r"  predictions\.append\("
    with pytest.raises(torch.OutOfMemoryError), memlab.on_oom():
        run_out([])
    said = capsys.readouterr().err.partition("  predictions (")[2]
    assert re.match(rf".*\n  kept at  \S*{place}", said)
    with memlab.watch(births=True), pytest.raises(torch.OutOfMemoryError), memlab.on_oom():
        run_out([])
    said = capsys.readouterr().err.partition("  predictions (")[2]
    assert re.match(rf".*\n  born at  \S*{place}", said)


def test_a_check_that_fails_says_where_it_was_born():
    owner = Owner("x -> list", "x", "", "local", 8, 8, 1, 0, 0, 1, born="a.py:3", holds="tensors")
    assert texts.owner_lines([owner])[-1].endswith("8 B alone, born at a.py:3")
