"""Ways of keeping a graph alive: each holds one, says what its owner must be called, and lets it go again.

A way is a generator function: it is given a function that makes a loss, keeps the loss, yields the expected
``(name, kind)``, and on being resumed drops it.
"""

import asyncio
import collections
import contextlib
import functools
import gc
import sys
import threading
import types

import pytest
import torch

import memlab
from memlab.node_names import READS_PACKED

NEEDS_PACKED = pytest.mark.skipif(
    not READS_PACKED, reason="this torch shows what a node keeps only by running unpack hooks"
)

ways = {}
kept_globally = None
CACHE = {}


def way(function):
    ways[function.__name__] = function
    return function


class Plain:
    pass


class Slotted:
    __slots__ = ("last",)


class Shared:
    history = None


class OwnList(list):
    pass


def variable(make):
    loss = make()
    yield "loss", "generator"
    del loss


for _name, _wrap in {
    "in_a_list": lambda loss: [loss],
    "in_a_tuple": lambda loss: (loss,),
    "in_a_dict": lambda loss: {"loss": loss},
    "as_a_key": lambda loss: {loss: 1},
    "in_a_set": lambda loss: {loss},
    "in_a_deque": lambda loss: collections.deque([loss]),
    "in_a_list_subclass": lambda loss: OwnList([loss]),
    "in_a_default_dict": lambda loss: collections.defaultdict(list, {1: [loss]}),
    "nested": lambda loss: [{"a": ({"b": [loss]},)}],
    "in_an_iterator": lambda loss: iter([loss]),
    "in_a_partial": lambda loss: functools.partial(print, loss),
    "in_a_bound_method": lambda loss: loss.backward,
    "in_a_namespace": lambda loss: [types.SimpleNamespace(loss=loss)],
    "node_only": lambda loss: loss.grad_fn,
}.items():

    def _held(make, wrap=_wrap):
        kept = wrap(make())
        yield "kept", "generator"
        del kept

    # Several generators of one code count as what holds them: each has a code of its own.
    _held.__code__ = _held.__code__.replace(co_name=_name)
    ways[_name] = _held


@way
def module_global(make):
    global kept_globally
    kept_globally = make()
    yield "kept_globally", "global"
    kept_globally = None


@way
def instance(make):
    trainer = Plain()
    trainer.history = [make()]
    yield "trainer.history", "instance attribute"
    del trainer.history


@way
def deep_instance(make):
    app = Plain()
    app.trainer = Slotted()
    app.trainer.last = make()
    yield "app.trainer.last", "instance attribute"
    del app.trainer.last


@way
def records(make):
    history = [Plain(), Plain()]
    history[1].loss = make()
    yield "history", "generator"
    history.clear()


@way
def class_attribute(make):
    Shared.history = [make()]
    yield "Shared.history", "class attribute"
    Shared.history = None


@way
def closure(make):
    def outer():
        losses = [make()]

        def step():
            return losses

        return step

    step = outer()
    yield "losses", "closure"
    del step


@way
def default_argument(make):
    def step(x=None, cache=None):
        return cache

    step.__defaults__ = (None, (make(),))
    yield "cache", "default argument"
    step.__defaults__ = None


@way
def keyword_default(make):
    def step(*, cache=None):
        return cache

    step.__kwdefaults__ = {"cache": make()}
    yield "cache", "default argument"
    step.__kwdefaults__ = None


@way
def function_attribute(make):
    def step():
        pass

    step.last = make()
    yield "step.last", "function attribute"
    del step.last


@way
def lru_cache(make):
    @functools.lru_cache(maxsize=3)
    def load(key):
        return make()

    load(1)
    yield "lru_cache.<locals>.load", "lru_cache"
    load.cache_clear()


@way
def unbounded_cache(make):
    @functools.cache
    def load(key):
        return make()

    load(1)
    yield "unbounded_cache.<locals>.load", "lru_cache"
    load.cache_clear()


@way
def generator(make):
    def batches():
        inside = make()
        yield inside

    it = batches()
    next(it)
    yield "inside", "generator"
    it.close()


@way
def coroutine(make):
    async def work():
        inside = make()
        await asyncio.sleep(0)
        return inside

    pending = work()
    pending.send(None)
    yield "inside", "coroutine"
    pending.close()


@way
def async_generator(make):
    async def work():
        inside = make()
        yield 1
        del inside

    stream = work()
    with contextlib.suppress(StopIteration):
        stream.__anext__().send(None)
    yield "inside", "coroutine"
    with contextlib.suppress(StopIteration):
        stream.aclose().send(None)


def fails(make):
    losses = [make()]
    raise KeyError(len(losses))


@way
def exception(make):
    try:
        fails(make)
    except KeyError as caught:
        error = caught
    yield "error.__traceback__", "traceback"
    error.__traceback__ = None


@way
def last_error(make):
    try:
        fails(make)
    except KeyError as caught:
        sys.last_value = caught
    yield "sys.last_value", "traceback"
    del sys.last_value


@way
def thread_local(make):
    local = threading.local()
    local.last = make()
    yield "local.last", "thread-local"
    del local.last


@way
def running_thread(make):
    ready, leave, given = threading.Event(), threading.Event(), [make()]

    def work():
        in_thread = given.pop()
        ready.set()
        leave.wait()
        del in_thread

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ready.wait()
    yield "in_thread", "local"
    leave.set()
    thread.join()


@way
def tensor_attribute(make):
    x = torch.ones(3)
    x.last = make()
    yield "x.last", "tensor attribute"
    del x.last


@way
def module_attribute(make):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    model[1].last = make()
    yield "model.1.last", "instance attribute"
    del model[1].last


@way
def buffer(make):
    model = torch.nn.BatchNorm1d(3)
    model.running_mean = make().expand(3)
    yield "model.running_mean", "instance attribute"
    model.running_mean = None


@way
def forward_hook(make):
    model = torch.nn.ReLU()

    def install():
        captured = make()
        model.register_forward_hook(lambda *_: captured)

    install()
    yield "captured", "closure"
    model._forward_hooks.clear()


@way
def gradient(make):
    weight = torch.ones(3, requires_grad=True)
    weight.grad = make().expand(3)
    yield "weight.grad", "tensor attribute"
    weight.grad = None


ways["variable"] = variable


_others: set[tuple[str, int]] = set()


def leave_out_what_there_is():
    """What tests before these have compiled keeps graphs: let it go, and leave out what stays."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    _others.clear()
    _others.update((owner.name, owner.bytes) for owner in memlab.owners())


def owners(**options):
    return [owner for owner in memlab.owners(**options) if (owner.name, owner.bytes) not in _others]
