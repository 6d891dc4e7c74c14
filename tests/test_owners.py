"""Owners are named, what they alone keep is freed when they go, and looking for them disturbs nothing."""

import contextlib
import dataclasses
import gc
import itertools
import json
import re
import subprocess
import sys
import threading
import types
import warnings
import weakref

import holders
import pytest
import torch
from holders import owners
from torch import nn
from torch.nn import functional as F

import memlab
from memlab import origins
from memlab.ownership import frames, reach
from memlab.ownership import survey as look_at_heap
from memlab.tracing import makeup

pytestmark = [holders.NEEDS_PACKED, pytest.mark.usefixtures("nothing_else_alive")]


@pytest.fixture
def x():
    gc.collect()
    return torch.ones(16, requires_grad=True)


@contextlib.contextmanager
def no_collection():
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_every_way_of_holding_is_found_and_its_bytes_are_what_goes(x):
    """All at once; each loss is of another size, which tells whose an owner is."""
    sizes = {way: 8 + 8 * index for index, way in enumerate(sorted(holders.ways))}
    with memlab.watch() as seen:
        held, expected = {}, {}
        for way, size in sizes.items():
            held[way] = holders.ways[way](lambda size=size: x[:1].expand(size).exp().sin().sum())
            expected[4 * size] = (way, *next(held[way]))
        found = owners()
        assert sum(owner.bytes for owner in found) == seen.saved.bytes == sum(expected)
        for owner in found:
            assert (expected[owner.bytes][0], owner.name, owner.kind) == expected[owner.bytes], owner
            assert owner.exclusive_bytes == owner.bytes and not owner.freed_by_gc
            assert owner.born.startswith("tests/test_owners.py:")
            assert owner.path.startswith(f"{owner.name} ({owner.where}) -> ")
        with no_collection():
            for owner in found:
                before = seen.saved.bytes
                next(held[expected[owner.bytes][0]], None)
                assert before - seen.saved.bytes == owner.exclusive_bytes, owner
            assert seen.saved.bytes == 0, "looking for owners keeps something alive"
    json.dumps([dataclasses.asdict(owner) for owner in found])


def test_of_a_few_the_one_that_leads_to_far_more_stands_for_all(x):
    logs = {"total": 0, "loss": None}
    for _ in range(9):
        logs["total"] = logs["total"] + x.exp().sum()
        logs["loss"] = x.exp().sum()
    (owner,) = owners()
    assert owner.path.endswith(" -> dict['total'] -> Tensor -> AddBackward0")
    assert owner.made_by[:2] == ("AddBackward0", "AddBackward0")
    logs["total"] = x.exp().sum()
    logs["loss"] = x.exp().sum().exp()
    (owner,) = owners()
    assert owner.path.endswith(" -> dict['loss'] -> Tensor -> ExpBackward0")  # alike: the newest


def test_after_backward_nodes_tell_which_of_a_few_leads_to_more(x):
    logs = {"total": 0, "loss": None}
    for _ in range(9):
        logs["loss"] = x.exp().sum()
        logs["loss"].backward()
        logs["total"] = logs["total"] + logs["loss"]
    logs["loss"] = logs["loss"] + 0
    (owner,) = owners()
    assert owner.path.endswith(" -> dict['total'] -> Tensor -> AddBackward0")


def test_a_variable_of_the_user_s_is_named_before_one_of_torch_s(x, monkeypatch):
    looks = []

    class Looks(nn.Module):
        def forward(self, x):
            looks.append(owners()[0].path.partition(" -> ")[0])
            return x

    theirs = types.ModuleType("theirs")
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    theirs.model = nn.Sequential(Looks())
    theirs.model.kept = [x.exp()]
    theirs.model(x)
    assert looks == ["model.kept (attribute of Sequential; model is global of theirs)"]
    del theirs.model

    model = nn.Sequential(Looks())
    model.kept = [x.exp()]

    def run():
        model(x)  # the variable lies in a cell

    run()
    assert looks[1].startswith("model.kept (attribute of Sequential; model is local of ")


class OnCtx(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.doubled = x * 2
        return x + ctx.doubled

    @staticmethod
    def backward(ctx, gradient):
        return gradient + ctx.doubled


class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        made = cls._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, requires_grad=inner.requires_grad)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        out = func(*(each.inner if isinstance(each, cls) else each for each in args), **(kwargs or {}))
        return cls(out) if isinstance(out, torch.Tensor) else out


@pytest.mark.parametrize(
    ("apply", "nbytes"),
    [
        (lambda x: OnCtx.apply(x), 2 * 64),  # what is kept, and what lies on its ctx
        (lambda x: Wrapper(x.detach()).requires_grad_().exp().sin(), 2 * 64),
    ],
    ids=["ctx", "wrapper"],
)
def test_growth_counts_what_lies_inside_of_what_graphs_keep(x, apply, nbytes):
    kept = []
    found = memlab.growth(lambda: kept.append(apply(x)), steps=6)
    assert found.bytes_per_step == nbytes
    assert [(each.name, each.bytes_per_step) for each in found.owners] == [("kept", nbytes)]


def test_a_list_of_losses_is_one_owner_and_freed_at_once_without_gc(x):
    losses = [x.exp().mean() for _ in range(412)]
    alive = [weakref.ref(loss) for loss in losses]
    (owner,) = memlab.owners(losses[7])
    assert (owner.name, owner.kind, owner.elements, owner.bytes) == ("losses", "local", 412, 412 * 64)
    line = sys._getframe().f_lineno - 2
    where = f"local of {frames.describe(sys._getframe()).rpartition(':')[0]}:{line}"
    assert owner.path == f"losses ({where}) -> list[411] -> Tensor -> MeanBackward0"
    with no_collection():
        del losses
        assert not any(each() for each in alive)


def test_shared_graphs_count_for_both_and_are_exclusive_to_none(x):
    with memlab.watch() as seen:
        shared = x.exp()
        one, two = shared.sin().sum(), shared.cos().tan().sum()
        del shared
        found = {owner.name: owner for owner in owners()}
        # exp's output is saved by exp, sin and cos: 64 bytes; tan saves its output, and its input is not needed
        assert {name: (each.bytes, each.exclusive_bytes) for name, each in found.items()} == {
            "one": (64, 0),
            "two": (128, 64),
        }
        for name in ("two", "one"):
            before, exclusive = seen.saved.bytes, {each.name: each for each in owners()}[name].exclusive_bytes
            if name == "two":
                del two
            else:
                del one
            assert before - seen.saved.bytes == exclusive
        assert seen.saved.bytes == 0


def test_two_names_of_one_list_keep_it_together(x):
    losses = [x.exp().sum()]
    again = losses
    found = memlab.owners(losses[0])
    assert sorted(owner.name for owner in found) == ["again", "losses"]
    assert all((owner.bytes, owner.exclusive_bytes) == (64, 0) for owner in found)
    assert again is losses


def test_without_a_watch_the_bytes_are_the_bill(x):
    loss = (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)(torch.randn(2, 5, 8)) * 2).square().mean()
    bill, (owner,) = memlab.bill(loss), memlab.owners(loss)
    assert (owner.bytes, owner.nodes, owner.born) == (bill.bytes, bill.nodes, "unknown")


def test_wrong_arguments_and_the_limit(x):
    with pytest.raises(TypeError, match="one tensor"):
        memlab.owners([x])
    with pytest.raises(ValueError, match="at least 1"):
        memlab.owners(limit=0)
    one, two = x.exp(), x.sin()
    assert len(memlab.owners(limit=1)) == 1 and one is not two


class Hostile(type):
    def __getattribute__(cls, name):
        raise AssertionError("metaclass code ran")

    def __hash__(cls, *args):
        raise AssertionError("metaclass code ran")

    def __instancecheck__(cls, thing):
        raise AssertionError("metaclass code ran")

    __eq__ = __repr__ = __dir__ = __subclasscheck__ = __hash__


def raises(*args, **kwargs):
    raise AssertionError("user code ran")


_NAMES = "getattribute getattr eq hash repr str bool len iter getitem contains dir call get set index sizeof format"
_TRAPS = dict.fromkeys((f"__{name}__" for name in _NAMES.split()), raises)
_TRAPS |= {"__class__": property(raises), "__dict__": property(raises), "prop": property(raises)}
Trap = Hostile("Trap", (), {**_TRAPS, "__slots__": ("value", "__weakref__")})
TrapWithDict = Hostile("TrapWithDict", (types.SimpleNamespace,), dict(_TRAPS))
TrapList = Hostile("TrapList", (list,), dict(_TRAPS))


def test_no_user_code_runs(x):
    trap = object.__new__(Trap)
    Trap_value = type.__dict__["__dict__"].__get__(Trap)["value"]
    Trap_value.__set__(trap, x.exp().sum())
    with_dict, trap_list = types.SimpleNamespace.__new__(TrapWithDict), list.__new__(TrapList)
    object.__setattr__(with_dict, "loss", x.exp()[:3].sum())
    list.append(trap_list, x.exp()[:2].sum())
    proxy = weakref.proxy(x)
    found = [owner.name for owner in owners()]
    assert sorted(found) == ["trap.value", "trap_list", "with_dict.loss"], (found, proxy is None)


def test_a_debugger_s_frames_keep_their_variables_and_let_them_go(x):
    """A trace function makes Python before 3.13 write a snapshot of the locals back into the frame."""
    lines = []

    def trace(frame, event, argument):
        lines.append(event)
        return trace

    def traced():
        kept, losses = 5, [x.exp().sum()]
        alive = weakref.ref(losses[0])
        (owner,) = memlab.owners(losses[0])
        del losses
        return kept, alive(), owner.name

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with no_collection():
            found = traced()
    finally:
        sys.settrace(before)
    assert lines and found == (5, None, "losses")


def test_threads_and_their_generators_may_run_meanwhile(x):
    stop, errors = threading.Event(), []

    def work():
        try:
            kept, table = [], {}
            while not stop.is_set():
                kept.append(x.exp().sum())
                table[len(kept)] = kept[-1]
                if len(kept) > 50:
                    kept.clear()
                    table.clear()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    names = {owner.name for _ in range(3) for owner in owners()}
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors and names <= {"kept", "table", "a value in use", "(no Python name)"}


def chain(x, count, every=0):
    y, kept = x, []
    for index in range(count):
        y = y.sin()
        if every and index % every == 0:
            kept.append(y)
    return y, kept


@pytest.mark.parametrize("order", ["whole", "tail first"])
def test_a_deep_chain_can_be_dropped_afterwards_in_any_order(x, order):
    y, kept = chain(x[:1], 60_000, every=0 if order == "whole" else 1_100)
    with no_collection():
        found = owners(seconds=None)
    assert {owner.name for owner in found} == {"y"} | ({"kept"} if order != "whole" else set())
    assert found[0].nodes >= 60_000
    assert all(owner.complete for owner in found)
    if order == "tail first":
        del y
    kept.clear()


@pytest.mark.parametrize("order", ["whole", "tail first"])
def test_out_of_time_says_at_least_and_gives_the_chain_to_nobody_else(x, order):
    y, kept = chain(x[:1], 60_000, every=0 if order == "whole" else 1_100)
    small = torch.ones(5, requires_grad=True).exp()
    whole = {owner.name: owner for owner in owners(seconds=None)}
    for _ in range(2):  # the second finds the nodes that the first has seen, and what keeps them freeable
        with no_collection():
            found = {owner.name: owner for owner in owners(seconds=1e-9)}
        assert found.keys() == whole.keys()
        assert found["small"].complete and found["small"].bytes == whole["small"].bytes
        for name in found.keys() - {"small"}:
            assert 0 < found[name].bytes < whole[name].bytes
            assert found[name].nodes < whole[name].nodes
            assert not found[name].complete
            assert f"(at least: stopped after reading {reach.LEAST // 1000}," in found[name].path
    assert small.requires_grad
    if order == "tail first":
        del y
    kept.clear()


def test_of_more_tensors_than_can_be_followed_some_from_all_over_stand_for_all(x, monkeypatch):
    monkeypatch.setattr(look_at_heap, "LEAST", 40)
    kept = {"losses": [x.exp() for _ in range(300)], "outputs": [x.exp() for _ in range(100)]}
    losses, outputs = kept.values()
    after = x.exp().exp()
    del kept
    whole = {owner.name: owner for owner in owners(seconds=None)}
    found = {owner.name: owner for owner in owners(seconds=1e-9) if owner.name in whole}  # other tests may leave graphs
    assert {"losses", "outputs"} <= found.keys()
    for name, owner in found.items():
        assert not owner.complete and whole[name].complete
        assert (owner.kind, owner.through) == (whole[name].kind, whole[name].through)
        assert 0 < owner.bytes <= whole[name].bytes
        assert re.search(r"\(at least: followed 40 of \d{3} tensors\)", owner.path)
    assert len(losses) / 12 <= found["losses"].elements <= len(losses) / 8
    assert len(outputs) / 20 <= found["outputs"].elements <= len(outputs) / 7
    (mine,) = (owner for owner in memlab.owners(after, seconds=1e-9) if owner.name == "after")
    assert mine.complete and mine.bytes == whole["after"].bytes  # of one tensor nothing is left out
    made = {origins.storage_key(each): 8 for each in losses}
    (grown,) = (owner for owner in look_at_heap.survey(made=made, seconds=1e-9).owners if owner.name == "losses")
    assert grown.elements == len(losses)  # growth is the difference of two looks, which must see the same


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises(ValueError, match="more than 0, or None"):
        memlab.owners(seconds=seconds)


def test_growth_names_who_grows_in_the_classic_loops(x):
    layer, data, target = nn.Linear(8, 4), torch.randn(16, 8), torch.randint(0, 4, (16,))
    total, after, detached, cache = torch.zeros(()), [], [], torch.zeros(0, 4)

    def step():
        nonlocal total, cache
        loss = F.cross_entropy(layer(data), target)
        total = total + loss
        spent = F.cross_entropy(layer(data), target)
        spent.backward()
        after.append(spent)
        detached.append(layer(data).detach())
        cache = torch.cat([cache, layer(data)[:2].detach()])

    found = memlab.growth(step, steps=4, warmup=1)
    owners = {
        owner.name: (owner.kind, owner.holds, owner.bytes_per_step, owner.nodes_per_step) for owner in found.owners
    }
    assert owners == {
        "total": ("local", "graph", 260, 5),
        "detached": ("local", "tensors", 256, 0),
        "cache": ("local", "tensors", 32, 0),
        "after": ("local", "graph", 4, 4),
    }
    assert sum(owner.bytes_per_step for owner in found.owners) - found.bytes_per_step in (-4, 0)
    assert total.requires_grad


def test_sparse_gradients_that_pile_up_are_named_by_what_they_are_made_of():
    """A sparse tensor has no storage: its indices and values have, 8 bytes and a row of 16 for each of 5 rows."""
    embedding, gradients = torch.nn.Embedding(10, 4, sparse=True), []

    def step():
        embedding.weight.grad = None
        embedding(torch.arange(5)).exp().sum().backward()
        gradients.append(embedding.weight.grad)

    found = memlab.growth(step, steps=4, warmup=1)
    line = step.__code__.co_firstlineno + 2
    (owner,) = found.owners
    assert (owner.name, owner.holds, owner.bytes_per_step) == ("gradients", "tensors", 5 * 8 + 5 * 16)
    assert owner.bytes_per_step == found.bytes_per_step and owner.born.endswith(f"test_owners.py:{line}")
    assert "-> list[4] -> sparse Tensor -> Tensor" in owner.path
    seen = makeup.seen_by_python()
    assert all(seen[each._values().untyped_storage()._cdata] == 5 * 16 for each in gradients)


def test_a_clean_step_costs_no_look_at_the_heap(x, monkeypatch):
    monkeypatch.setattr("memlab.watching.survey", None)
    assert memlab.growth(lambda: x.exp().sum().backward(), steps=4, warmup=1).owners == ()


def test_cycles_are_named_and_whether_gc_frees_them(x):
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.out = x.exp()
            return ctx.out

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.out

    class Holder:
        pass

    with no_collection():
        Keeps.apply(x)
        holder = Holder()
        holder.me, holder.loss = holder, x.exp()
        del holder
        weight = torch.ones(3, requires_grad=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weight.exp().sum().backward(create_graph=True)
        gradient = weakref.ref(weight.grad)
        del weight
        found = {owner.name: (owner.kind, owner.freed_by_gc) for owner in owners()}
        assert found == {
            "ctx.out": ("cycle", True),
            "Holder <-> itself": ("cycle", True),
            "Parameter.grad" if "Parameter.grad" in found else "Tensor.grad": ("cycle", False),
        }
        gc.collect()
        assert [owner.freed_by_gc for owner in owners()] == [False]
        gradient().grad_fn  # noqa: B018


@pytest.mark.parametrize(
    "wrap, way",
    [
        (zip, "zip -> tuple[0] -> list_iterator"),
        (enumerate, "enumerate -> list_iterator"),
        (itertools.cycle, "cycle -> list_iterator"),
        (lambda losses: types.MappingProxyType({"a": losses}), "mappingproxy -> dict['a']"),
        (lambda losses: {"a": losses}.values(), "dict_values -> dict['a']"),
    ],
)
def test_what_has_no_attributes_is_passed_by(x, wrap, way):
    """An object of C's that leads to what it holds has nothing that a name could end in."""
    kept = wrap([x.exp(), x.exp()])
    (owner,) = [each for each in owners() if each.kind != "cycle"]  # a test above leaves one
    assert (owner.name, owner.kind, owner.elements) == ("kept", "local", 2)
    assert f" -> {way} -> list[1] -> Tensor -> ExpBackward0" in owner.path
    assert not {"zip", "object"} & set(owner.through)
    del kept


def test_a_cycle_is_named_after_what_is_in_it(x):
    with no_collection():
        ring = [x.exp()]
        ring.append({"back": ring})
        del ring
        found = {owner.name: (owner.kind, owner.freed_by_gc) for owner in owners() if owner.freed_by_gc}
        assert found == {"dict <-> list": ("cycle", True)}


def test_a_leaf_and_the_graph_of_its_attribute_are_a_cycle_that_gc_leaves(x):
    """The way back goes through C++: the graph leads to the leaf, and no collector sees that."""

    def make():
        weight = torch.nn.Parameter(torch.ones(3))
        weight.extra = {"out": weight.exp()}
        return weakref.ref(weight)

    weight = make()
    gc.collect()
    (owner,) = [each for each in owners() if each.name == "Parameter.extra"]
    assert (owner.kind, owner.freed_by_gc, owner.exclusive_bytes) == ("cycle", False, 12)
    assert "a Parameter and the graph of its attribute hold each other" in owner.path
    weight().extra.clear()
    assert weight() is None


def test_a_module_of_two_names_goes_by_its_first(monkeypatch, x):
    module = types.ModuleType("first_name")
    module.kept = x.exp()
    monkeypatch.setitem(sys.modules, "first_name", module)
    monkeypatch.setitem(sys.modules, "__second_name__", module)  # as multiprocessing does with __main__
    (owner,) = [each for each in owners() if each.name == "kept"]
    assert owner.where == "global of first_name"


def test_asyncio_goes_on_after_a_look():
    """Python 3.12's own list of freed iterators is broken by whoever looks into it; then gc.collect() never ends."""
    code = """
import asyncio, gc, memlab, torch

async def wait():
    await asyncio.get_running_loop().run_in_executor(None, int)

asyncio.run(wait())
loss = torch.ones(3, requires_grad=True).exp().sum()
memlab.owners()
gc.collect()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


class Losses(list):
    pass


def test_an_attribute_of_a_list_belongs_to_the_list(make):
    losses = Losses()
    vars(losses)["last"] = make()
    found = [(owner.name, owner.kind) for owner in owners() if owner.kind != "cycle"]  # a test above leaves one
    assert found == [("losses", "local")]
    losses.clear()


@pytest.mark.parametrize("store", [lambda x: [x], lambda x: {"x": x}, lambda x: {"a": ({x},)}])
def test_a_variable_and_a_container_of_it_keep_it_together(store):
    one = torch.ones(100, requires_grad=True).exp().sum()
    several = store(one)
    found = {each.name: each.exclusive_bytes for each in memlab.owners(one)}
    assert found == {"one": 0, "several": 0}
    del one
    found = {each.name: each.exclusive_bytes for each in memlab.owners()}
    assert found["several"] == 400
    several.clear()


def test_of_a_traceback_the_variable_that_holds_most_is_shown():
    weight = torch.ones(8, requires_grad=True)

    def inner(x):
        raise RuntimeError(str(x.shape))

    def train():
        outs = [weight.exp() for _ in range(5)]
        inner(outs[0] * 2)  # newer, and alone

    try:
        train()
    except RuntimeError as error:
        (owner,) = (each for each in memlab.owners() if each.kind == "traceback" and each.name.startswith("error."))
        assert ": outs -> list[4] -> Tensor -> ExpBackward0" in owner.path
        del error
