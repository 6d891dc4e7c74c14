"""The ledger against three independent accounts: arithmetic, a walk over the graph, the C++ allocator's own events."""

import collections
import gc
from functools import partial

import graphs
import pytest
import torch
from holders import NEEDS_PACKED
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

import memlab
from memlab import graph, node_names, watching
from memlab.lines import GIVEN
from memlab.ownership.survey import Survey

pytestmark = pytest.mark.usefixtures("small_heap")
FEW = settings(max_examples=60, deadline=None)


def freed_by_drop(build):
    """What the C++ allocator gives back, by its own events, when the list that ``build()`` returns is cleared.

    The profiler knows only blocks that it saw being allocated, so the graph is made under it as well.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        held = build()
        with record_function("drop"):
            pass
        held.clear()
    events = recorded.profiler.kineto_results.events()
    dropped = next(event.start_ns() for event in events if event.name() == "drop")
    memory = [event for event in events if event.name() == "[memory]" and event.start_ns() > dropped]
    return -sum(event.nbytes() for event in memory if event.nbytes() < 0)


def make(kind):
    torch.manual_seed(0)
    models = {
        "mlp": (nn.Sequential(nn.Linear(7, 9), nn.GELU(), nn.Linear(9, 5), nn.Tanh()), torch.randn(3, 7)),
        "conv": (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            torch.randn(2, 3, 9, 9),
        ),
        "dropout": (nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.LayerNorm(6)), torch.randn(4, 6)),
        "embedding": (nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 3), nn.Softmax(-1)), torch.randint(11, (2, 5))),
        "lstm": (nn.LSTMCell(5, 6), torch.randn(3, 5)),
        "attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)),
        "rnn": (nn.RNN(5, 4, batch_first=True), torch.randn(2, 3, 5)),
    }
    return models[kind]


def first(output):
    return output[0] if isinstance(output, tuple) else output


KINDS = ["mlp", "conv", "dropout", "embedding", "lstm", "attention", "rnn"]


def test_arithmetic_of_an_mlp():
    model, x = make("mlp")
    with memlab.watch() as seen:
        loss = model(x).sum()
    assert seen.saved.by("kind") == {"activation": 4 * 3 * (9 + 9), "own output": 4 * 3 * 5}
    given_bytes = {line.kind: line.bytes for line in seen.saved.lines if line.kind in GIVEN}
    assert given_bytes == {"input": 4 * 3 * 7, "parameter": 4 * 9 * 5}
    loss.backward()
    assert seen.saved.bytes == 0 and seen.saved.lines == []


@NEEDS_PACKED
@pytest.mark.parametrize("kind", KINDS)
def test_walk_of_the_graph_agrees(kind):
    model, x = make(kind)
    torch.manual_seed(1)
    walked = memlab.bill(first(model(x)))
    torch.manual_seed(1)
    with memlab.watch() as seen:
        output = first(model(x))
    assert walked.bytes == seen.saved.bytes > 0
    assert memlab.bill(output).bytes == seen.saved.bytes
    assert walked.unseen == {}


@pytest.mark.parametrize(
    ("kind", "storages"),
    [*((kind, True) for kind in KINDS), *((kind, False) for kind in KINDS if kind not in ("lstm", "rnn"))],
)
def test_allocator_frees_what_is_exclusive(kind, storages):
    """Without storages, the zeros that nn.RNN makes in Python and holds while it saves them read as an input."""
    model, x = make(kind)
    watched = memlab.watch(storages=storages)
    values, exclusive = [], []

    def build():
        with watched as seen:
            held = [first(model(x))]
        values.append(held[0].detach())  # what the output itself holds is not freed with the graph
        exclusive.append(seen.saved.exclusive)
        return held

    assert [freed_by_drop(build)] == exclusive > [0]
    assert watched.saved.bytes == 0


@NEEDS_PACKED
@FEW
@given(program=graphs.instructions, requires_grad=graphs.leaves)
def test_random_graphs(program, requires_grad):
    leaves = graphs.make_leaves(requires_grad)
    walked = memlab.bill(graphs.run(program, leaves))
    seen = memlab.watch()
    values, exclusive = [], []

    def build():
        with seen:
            held = [graphs.run(program, leaves)]
        assert seen.saved.bytes == walked.bytes == memlab.bill(held[0]).bytes
        assert sum(seen.saved.by("line").values()) == seen.saved.bytes
        values.append(held[0].detach())
        exclusive.append(seen.saved.exclusive)
        return held

    assert [freed_by_drop(build)] == exclusive
    assert seen.saved.bytes == 0
    values.clear()
    assert seen.storages.bytes == 0


@FEW
@given(program=graphs.instructions, requires_grad=graphs.leaves)
def test_saved_only_reads_the_same_headline(program, requires_grad):
    """But for leaves that Python code made and holds, such as a condition: without storages they read as inputs."""
    program = [each for each in program if each[0] not in ("where", "detach")] or [("sin", 0, 0)]
    leaves = graphs.make_leaves([True for _ in requires_grad])
    with memlab.watch() as full:
        one = graphs.run(program, leaves)
    with memlab.watch(storages=False) as cheap:
        other = graphs.run(program, leaves)
    assert cheap.saved.bytes == full.saved.bytes
    del one, other


def test_storages_are_what_the_allocator_gave():
    model, x = make("attention")
    seen, alive = memlab.watch(), []

    def build():
        with seen:
            held = [model(x)]
        alive.append(seen.storages.bytes)
        return held

    assert [freed_by_drop(build)] == alive
    assert seen.storages.bytes == 0


def test_peak_of_storages_by_arithmetic():
    with memlab.watch() as seen:
        one = torch.ones(100)
        two = one + 1
        del one
        three = two * 2
        del two, three
    assert seen.storages.peak == 800 and seen.storages.bytes == 0


def test_resize_counts():
    with memlab.watch() as seen:
        tensor = torch.empty(10)
        tensor.resize_(100)
        assert seen.storages.bytes == 400
        tensor.resize_(10)
        assert seen.storages.bytes == 400  # torch keeps the larger storage
    del tensor
    assert seen.storages.bytes == 0


def test_views_share_their_storage():
    x = torch.randn(4, 4, requires_grad=True)
    with memlab.watch() as seen:
        y = x.exp()
        z = y.t().sin() + y.view(-1)[:4].cos().sum() + y.sin()
    assert seen.saved.bytes == 4 * 16
    (line,) = [line for line in seen.saved.lines if line.kind not in GIVEN]
    assert line.saved == 4 and line.kind == "own output"
    del z


def test_held_storages_are_not_exclusive():
    x = torch.randn(8, requires_grad=True)
    with memlab.watch() as seen:
        y = x.exp()
        z = y.sin()
    assert (seen.saved.bytes, seen.saved.exclusive) == (32, 0)
    del y
    assert (seen.saved.bytes, seen.saved.exclusive) == (32, 32)
    del z


@NEEDS_PACKED
def test_model_built_inside_the_watch():
    with memlab.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        loss = model(torch.ones(3, 4)).sum()
    kinds = {line.kind for line in seen.saved.lines}
    assert {"parameter", "buffer"} <= kinds
    assert seen.saved.bytes == memlab.bill(loss).bytes


def test_buffers_and_parameters_are_told_from_inputs():
    model, x = make("conv")
    with memlab.watch() as seen:
        output = model(x)
    kinds = {line.kind: line for line in seen.saved.lines}
    assert set(kinds) >= {"parameter", "buffer", "input"}
    assert seen.saved.by("kind").keys().isdisjoint(GIVEN)
    del output


def test_groups_add_up_and_unknown_groups_are_refused():
    model, x = make("attention")
    with memlab.watch() as seen:
        output = model(x)
    for what in ("kind", "line", "op", "step", "dtype", "device", "shape"):
        assert sum(seen.saved.by(what).values()) == seen.saved.bytes
    with pytest.raises(ValueError, match="cannot group by 'colour'; known: kind"):
        seen.saved.by("colour")
    del output


def test_lines_name_op_and_source():
    x = torch.randn(4, requires_grad=True)
    with memlab.watch() as seen:
        y = x.exp()
        z = (y + 1).sin()
    found = {(line.op, line.kind, line.shape) for line in seen.saved.lines}
    assert found == {("exp", "own output", (4,)), ("sin", "activation", (4,))}
    assert all(
        line.where.startswith("tests/test_truth.py:") or "test_truth.py:" in line.where for line in seen.saved.lines
    )
    del z


@NEEDS_PACKED
def test_million_node_bill_is_iterative():
    y = torch.ones(1, requires_grad=True)
    for _ in range(100_000):
        y = y.sin()
    bill = memlab.bill(y)
    assert bill.nodes == 100_001 and bill.bytes == 4 * 99_999


@NEEDS_PACKED
def test_bill_says_what_it_cannot_read():
    x = torch.randn(4, requires_grad=True)
    base = torch.zeros(2, 4)
    base[0] = x.exp()
    assert memlab.bill(base).unseen == {"CopySlices": 1}
    with pytest.raises(TypeError, match="one tensor, such as a loss, not list"):
        memlab.bill([x])


@NEEDS_PACKED
def test_bill_of_a_freed_graph_is_empty():
    model, x = make("mlp")
    loss = model(x).sum()
    assert memlab.bill(loss).bytes > 0
    loss.backward()
    assert memlab.bill(loss).bytes == 0 and memlab.bill(torch.ones(1)).nodes == 0


@NEEDS_PACKED
def test_bill_never_runs_an_unpack_hook():
    calls = []
    x = torch.randn(4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.detach(), "packed"), lambda p: calls.append(1) or p[0]):
        y = x.exp().sin()
    assert memlab.bill(y).bytes == 32 or memlab.bill(y).bytes == 16
    assert calls == []


def test_sparse_tensors_are_named_not_counted():
    with memlab.watch() as seen:
        torch.eye(3).to_sparse()
    assert any("sparse" in sentence for sentence in seen.blind)


class KeepsOnCtx(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, how):
        ctx.scale = 2.0
        if how == "saved":
            ctx.save_for_backward(x)
        elif how == "in a list":
            ctx.parts = [{"x": x}]
        else:
            ctx.x = x
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.scale, None


@pytest.mark.parametrize("how, told", [("saved", None), ("in a list", "ctx.parts"), ("itself", "ctx.x")])
def test_attributes_on_a_ctx_are_named_not_counted(how, told):
    x = torch.randn(4, requires_grad=True).exp()
    with memlab.watch() as outer, memlab.watch(storages=False) as seen:
        y = KeepsOnCtx.apply(x, how)
    sentence = f"tensors that KeepsOnCtx keeps as attributes of its ctx are not counted: {told}"
    assert seen.blind == outer.blind == ([sentence] if told else [])
    assert seen.saved.bytes == (0 if told else 16)
    if node_names.READS_PACKED:
        assert memlab.bill(y).unseen == ({"KeepsOnCtxBackward's ctx": 1} if told else {})
    y.sum().backward()
    with memlab.watch() as later:
        pass
    KeepsOnCtx.apply(x, "itself")
    assert later.blind == []
    assert "__setattr__" not in vars(torch.autograd.function.BackwardCFunction)


def test_zero_on_an_empty_block():
    with memlab.watch() as seen:
        pass
    assert set(seen.read().values()) == {0}


class Cycle:
    """Garbage that only a collection takes, once nothing else leads to it."""

    def __init__(self, held):
        self.held, self.itself = held, self


ACTIONS = {
    "nothing": lambda kept, weight: weight.exp().sum().backward(),
    "keep": lambda kept, weight: kept.append(weight.exp()),
    "keep a cycle": lambda kept, weight: kept.append(Cycle(weight.exp())),
    "leave a cycle": lambda kept, weight: Cycle(weight.exp().sum()),
    "replace": lambda kept, weight: kept.__setitem__(slice(-1, None), [Cycle(weight.exp())]),
    "drop": lambda kept, weight: kept.clear(),
}


def read_after_collections(steps):
    """Return bytes and nodes alive after each of ``steps``: a cycle may go in any step, and no number tells of it."""
    series, nodes = [], []
    with memlab.watch() as seen:
        for step in steps:
            step()
            gc.collect()
            series.append(seen.storages.bytes)
            nodes.append(graph.count_live_nodes())
    return tuple(series), tuple(nodes)


@given(st.lists(st.sampled_from(sorted(ACTIONS)), min_size=3, max_size=7))
@settings(max_examples=12, deadline=None)
def test_growth_reads_what_is_alive_after_a_collection(actions):
    def steps():
        kept, weight = [], torch.ones(100, requires_grad=True)
        weight.grad = torch.zeros(100)
        return iter([partial(ACTIONS[action], kept, weight) for action in actions])

    expected = read_after_collections(steps())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "survey", lambda made: Survey([], [], {}))
        waiting = steps()
        found = memlab.growth(lambda: next(waiting)(), steps=len(actions), warmup=0)
    assert found.series == expected[0]
    assert found.nodes == expected[1]


def test_growth_of_a_clean_and_a_leaking_step():
    model, x = make("mlp")
    kept = []
    clean = memlab.growth(lambda: model(x).sum().backward(), steps=4)
    leak = memlab.growth(lambda: kept.append(model(x).sum()), steps=4)
    assert (clean.grows, clean.bytes_per_step, clean.nodes_per_step) == (False, 0, 0)
    assert leak.grows and leak.bytes_per_step == 4 * 3 * (9 + 9 + 5) + 4
    assert leak.nodes_per_step > 0 and len(leak.series) == 4
    with pytest.raises(ValueError, match="at least 2 steps"):
        memlab.growth(lambda: None, steps=1)


def test_growth_finds_total_plus_loss():
    """Counting Python tensors misses it: there is one, whatever its graph holds."""
    state = {"total": 0}
    target = torch.tensor([1, 2, 0])
    layer = nn.Linear(4, 3)

    def step():
        state["total"] = state["total"] + F.cross_entropy(layer(torch.ones(3, 4)), target)

    found = memlab.growth(step, steps=4)
    assert found.grows and found.nodes_per_step > 0


def test_nodes_of_a_store_that_fills_up_do_not_grow():
    """Half of the steps fill it: the slope is not zero, and the verdict is."""
    weight, last, all_of_them = torch.ones(3, requires_grad=True), collections.deque(maxlen=8), []
    full = memlab.growth(lambda: last.append(weight.exp().sin().cos().sum()))
    assert full.nodes_per_step > 0 and not (full.grows or full.nodes_grow or full.owners)

    def step():
        loss = weight.exp().sum()
        loss.backward()
        all_of_them.append(loss)

    assert memlab.growth(step).nodes_grow


def test_growth_is_not_fooled_by_varying_sizes():
    sizes = iter([5, 9, 3, 8, 4, 7, 2, 9, 5, 6, 3, 8, 4])
    held = {}

    def step():
        held["batch"] = torch.ones(next(sizes))

    assert not memlab.growth(step, steps=10, warmup=3).grows
    gc.collect()
