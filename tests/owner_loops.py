"""Loops for every kind of owner that the corpus has not: module globals, classes, coroutines, defaults, attributes.

Made and labelled as in `corpus`: a function makes the material and returns ``step``; ``# born`` marks the line that
gives birth to what grows.
"""

import collections
import dataclasses
import functools
import threading
import types

import torch
from corpus import LOOPS as CORPUS
from corpus import Meter, batch, loop
from torch import nn
from torch.nn import functional as F

_BEFORE = set(CORPUS)
GLOBAL_HISTORY = []


@loop("A module's global list", owner="GLOBAL_HISTORY", pattern="kept losses")
def module_global():
    model, (x, y) = nn.Linear(8, 3), batch()

    def step():
        GLOBAL_HISTORY.append(F.cross_entropy(model(x), y))  # born

    return step


class Trainer:
    seen = []  # noqa: RUF012  (shared by all: the leak)

    def __init__(self):
        self.history = []


@loop("A class attribute", owner="Trainer.seen", pattern="kept outputs")
def class_attribute():
    model, (x, _) = nn.Linear(8, 8), batch()

    def step():
        Trainer.seen.append(model(x).exp())  # born

    return step


@loop("self.history of an instance", owner="trainer.history", pattern="kept outputs")
def instance_attribute():
    model, (x, _), trainer = nn.Linear(8, 8), batch(), Trainer()

    def step():
        trainer.history.append(model(x).exp())  # born

    return step


class Slotted:
    __slots__ = ("kept",)

    def __init__(self):
        self.kept = []


@loop("An attribute in a slot", owner="slotted.kept", pattern="kept outputs")
def slot_attribute():
    model, (x, _), slotted = nn.Linear(8, 8), batch(), Slotted()

    def step():
        slotted.kept.append(model(x).exp())  # born

    return step


@dataclasses.dataclass
class Record:
    values: list = dataclasses.field(default_factory=list)


@loop("A field of a dataclass", owner="record.values", pattern="kept outputs")
def dataclass_field():
    model, (x, _), record = nn.Linear(8, 8), batch(), Record()

    def step():
        record.values.append(model(x).exp())  # born

    return step


@loop("A default argument that is a list", owner="kept", pattern="kept outputs")
def default_argument():
    model, (x, _) = nn.Linear(8, 8), batch()

    def step(kept=[]):  # noqa: B006  (the leak)
        kept.append(model(x).exp())  # born

    return step


@loop("A keyword-only default argument", owner="kept", pattern="kept outputs")
def keyword_default():
    model, (x, _) = nn.Linear(8, 8), batch()

    def step(*, kept={}):  # noqa: B006  (the leak)
        kept[len(kept)] = model(x).exp()  # born

    return step


@types.coroutine
def pause():
    yield


async def serve(model, x):
    answers = []
    while True:
        answers.append(model(x).exp())  # born
        await pause()


@loop("A coroutine's local list", owner="answers", pattern="kept outputs")
def suspended_coroutine():
    running = serve(nn.Linear(8, 8), batch()[0])

    def step():
        running.send(None)

    return step


@loop("A thread-local's attribute", owner="local.kept", pattern="kept outputs")
def thread_local():
    model, (x, _), local = nn.Linear(8, 8), batch(), threading.local()
    local.kept = []

    def step():
        local.kept.append(model(x).exp())  # born

    return step


@loop("loss.backward(create_graph=True) into .grad, never cleared", owner="weight.grad", pattern="create_graph cycle")
def gradient_with_a_graph():
    weight = torch.randn(8, requires_grad=True)

    def step():
        (gradient,) = torch.autograd.grad(weight.exp().sum(), weight, create_graph=True)  # born
        weight.grad = gradient if weight.grad is None else weight.grad + gradient * weight

    return step


@loop("A list hung on a tensor as an attribute", owner="weight.history", pattern="kept outputs")
def attribute_of_a_tensor():
    weight = nn.Parameter(torch.randn(8))
    weight.history = []

    def step():
        weight.history.append(weight.exp())  # born

    return step


@loop("A module's buffer that is updated with its history", owner="model.running", pattern="average with history")
def buffer_with_history():
    model, (x, _) = nn.Linear(8, 8), batch()
    model.register_buffer("running", torch.zeros(4, 8))

    def step():
        model.running = 0.9 * model.running + model(x).tanh()  # born

    return step


@loop("A list inside a module", owner="model.outputs", pattern="kept outputs")
def attribute_of_a_module():
    model, (x, _) = nn.Linear(8, 8), batch()
    model.outputs = []

    def step():
        model.outputs.append(model(x).tanh())  # born

    return step


@loop("A dict of dicts of lists", owner="logs", pattern="kept outputs")
def nested_containers():
    model, (x, _), logs = nn.Linear(8, 8), batch(), {"train": {"outputs": []}}

    def step():
        logs["train"]["outputs"].append((0, model(x).tanh()))  # born

    return step


@loop("A set of outputs", owner="unique", pattern="kept outputs")
def set_of_outputs():
    model, (x, _), unique = nn.Linear(8, 8), batch(), set()

    def step():
        unique.add(model(x).tanh())  # born

    return step


@loop("The keywords of a partial function", owner="report", pattern="kept outputs")
def partial_function():
    model, (x, _), report = nn.Linear(8, 8), batch(), functools.partial(print)

    def step():
        nonlocal report
        report = functools.partial(report, model(x).tanh())  # born

    return step


@loop("A bound method whose instance holds the outputs", owner="callback", pattern="accumulated loss")
def bound_method():
    model, (x, _), callback = nn.Linear(8, 8), batch(), Meter().update

    def step():
        callback(model(x).tanh())  # born

    return step


class Stateful(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, before):
        ctx.before = before
        return x.exp()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@loop("ctx.before = the output before: a chain through ctx", owner="last", pattern="undetached recurrent state")
def chain_through_ctx():
    weight, last = torch.randn(8, requires_grad=True), None

    def step():
        nonlocal last
        last = Stateful.apply(weight.tanh(), last)  # born

    return step


@loop("A gradient hook that closes over its own step's output", owner="weight", pattern="hook store")
def hooks_that_pile_up():
    weight = torch.randn(8, requires_grad=True)

    def step():
        output = weight.exp()  # born
        weight.register_hook(lambda gradient: gradient + output.sum())

    return step


@loop("outputs.append(model(x)) after model.eval(), without no_grad", owner="outputs", pattern="eval without no_grad")
def evaluation_with_graphs():
    model, (x, _), outputs = nn.Linear(8, 8), batch(), []
    layers = nn.Sequential(model, nn.Tanh()).eval()

    def step():
        outputs.append(layers(x))  # born

    return step


@loop("replay.append((x, model(x))) into a deque", owner="replay", pattern="replay buffer")
def deque_of_transitions():
    model, replay = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), collections.deque()

    def step():
        x, _ = batch()
        replay.append((x, model(x)))  # born

    return step


@loop("state = state + f(state): a residual state, carried on", owner="state", pattern="undetached recurrent state")
def residual_state():
    cell, state = nn.Linear(8, 8), torch.zeros(2, 8)

    def step():
        nonlocal state
        state = state + cell(state).tanh()  # born

    return step


@loop("shadow.lerp_(value, 0.1) of a value with a graph", owner="shadow", pattern="average with history")
def average_by_lerp():
    weight, shadow = torch.randn(8, requires_grad=True), torch.zeros(8)

    def step():
        shadow.lerp_(weight.exp(), 0.1)  # born

    return step


@loop("sums['loss'] += loss: a dict of one sum", owner="sums", pattern="accumulated loss")
def sum_in_a_dict():
    model, (x, y), sums = nn.Linear(8, 3), batch(), {"loss": 0}

    def step():
        sums["loss"] += F.cross_entropy(model(x), y)  # born

    return step


@loop("model.outputs cleared in every step")
def attribute_that_is_cleared():
    model, (x, _) = nn.Linear(8, 8), batch()
    model.outputs = []

    def step():
        model.outputs.clear()
        model.outputs.append(model(x).tanh())

    return step


@loop("weight.grad set to None in every step")
def gradient_with_a_graph_cleared():
    weight = torch.randn(8, requires_grad=True)

    def step():
        (gradient,) = torch.autograd.grad(weight.exp().sum(), weight, create_graph=True)
        weight.grad = gradient
        weight.grad = None

    return step


OWNER_LOOPS = {name: each for name, each in CORPUS.items() if name not in _BEFORE}
for _name in OWNER_LOOPS:
    del CORPUS[_name]
