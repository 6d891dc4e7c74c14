"""A corpus of training and evaluation loops, clean and leaking, each labelled by hand with what memory does.

One function a loop: it makes the material and returns ``step``, which runs again and again. The label says whether
bytes pinned by tensors and graphs grow for ever, whether autograd nodes do, and the variable that holds what grows. The
line that gives birth to what grows ends with ``# born``. Plain PyTorch; nothing here knows memlab.
"""

import collections
import functools
import inspect
import sys
import weakref
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Loop:
    """One loop: its name and code, and what is true of it."""

    name: str
    title: str
    make: object
    grows: bool
    nodes_grow: bool
    owner: str | None
    asked: bool  # one of the nine that the issue names
    pattern: str | None = None  # of `memlab.patterns`

    @property
    def code(self):
        return inspect.getsource(self.make)

    @property
    def born(self):
        """``(file, line)`` of the line that makes what grows; None for a clean loop."""
        called = [self.make.__globals__.get(name) for name in self.make.__code__.co_names]
        for function in (self.make, *filter(inspect.isfunction, called)):
            lines, first = inspect.getsourcelines(function)
            marked = [first + index for index, line in enumerate(lines) if line.rstrip().endswith("# born")]
            if marked:
                return inspect.getsourcefile(function), marked[0]
        return None


LOOPS = {}


def loop(title, *, owner=None, nodes=None, grows=None, asked=False, pattern=None):
    """Register a loop; with an owner bytes and nodes grow unless told otherwise."""
    grows = owner is not None if grows is None else grows

    def register(make):
        nodes_grow = grows if nodes is None else nodes
        LOOPS[make.__name__] = Loop(make.__name__, title, make, grows, nodes_grow, owner, asked, pattern)
        return make

    return register


def batch(size=4):
    return torch.randn(size, 8), torch.zeros(size, dtype=torch.long)


# The nine of the issue.


@loop("total = total + cross_entropy(...)", owner="total", pattern="accumulated loss", asked=True)
def total_of_losses():
    model, (x, y), total = nn.Linear(8, 3), batch(), torch.zeros(())

    def step():
        nonlocal total
        total = total + F.cross_entropy(model(x), y)  # born

    return step


@loop("total += cross_entropy(...)", owner="total", pattern="accumulated loss", asked=True)
def total_in_place():
    model, (x, y), total = nn.Linear(8, 3), batch(), torch.zeros(())

    def step():
        nonlocal total
        total += F.cross_entropy(model(x), y)  # born

    return step


@loop(
    "cache = torch.cat([cache, key.detach()])", owner="cache", pattern="growing detached cache", nodes=False, asked=True
)
def cache_by_cat_and_detach():
    model, (x, _), cache = nn.Linear(8, 8), batch(1), torch.zeros(0, 8)

    def step():
        nonlocal cache
        cache = torch.cat([cache, model(x).detach()])  # born

    return step


@loop("total = total + loss of a TransformerEncoderLayer", owner="total", pattern="accumulated loss", asked=True)
def total_through_transformer():
    model, x, total = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 3, 8), torch.zeros(())

    def step():
        nonlocal total
        total = total + model(x).mean()  # born

    return step


@loop("losses.append(loss) without a backward", owner="losses", pattern="kept losses", asked=True)
def list_of_losses():
    model, (x, y), losses = nn.Linear(8, 3), batch(), []

    def step():
        losses.append(F.cross_entropy(model(x), y))  # born

    return step


@loop("An LSTM's state carried on without detach", owner="state", pattern="undetached recurrent state", asked=True)
def lstm_state():
    model, x, state = nn.LSTM(8, 8), torch.randn(1, 2, 8), None

    def step():
        nonlocal state
        _, state = model(x, state)  # born

    return step


@loop(
    "losses.append(loss) after backward: nodes, and no bytes but the losses' own",
    owner="losses",
    pattern="kept losses",
    grows=False,
    nodes=True,
    asked=True,
)
def list_of_losses_after_backward():
    model, (x, y), losses = nn.Linear(8, 3), batch(), []

    def step():
        loss = F.cross_entropy(model(x), y)  # born
        loss.backward()
        losses.append(loss)

    return step


class Cyclic(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        output = x.exp()
        ctx.y = output
        return output

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.y


@loop("ctx.y = output: a cycle that the garbage collector frees", asked=True)
def ctx_holds_output():
    weight = torch.randn(8, requires_grad=True)

    def step():
        Cyclic.apply(weight).sum()

    return step


@loop("backward(create_graph=True), and the gradients are kept", owner="grads", pattern="kept outputs", asked=True)
def create_graph_and_kept_grads():
    weight, grads = torch.randn(8, requires_grad=True), []

    def step():
        loss = weight.exp().sum()
        grads.append(torch.autograd.grad(loss, weight, create_graph=True))  # born

    return step


# Leaking ones.


@loop(
    "history.append(output.detach()): no graph, and yet a tensor a step",
    owner="history",
    pattern="growing detached cache",
    nodes=False,
)
def detached_losses_of_every_batch():
    model, (x, _), history = nn.Linear(8, 8), batch(), []

    def step():
        history.append(model(x).detach())  # born

    return step


@loop("logs[step] = loss", owner="logs", pattern="kept losses")
def dict_of_metrics():
    model, (x, y), logs = nn.Linear(8, 3), batch(), {}

    def step():
        logs[len(logs)] = {"loss": F.cross_entropy(model(x), y)}  # born

    return step


class Meter:
    def __init__(self):
        self.sum, self.count = 0, 0

    def update(self, value):
        self.sum, self.count = self.sum + value, self.count + 1  # an average meter, as in a thousand repositories


@loop("meter.update(loss) instead of loss.item()", owner="meter", pattern="accumulated loss")
def average_meter():
    model, (x, y), meter = nn.Linear(8, 3), batch(), Meter()

    def step():
        meter.update(F.cross_entropy(model(x), y))  # born

    return step


@loop("A forward hook appends each output", owner="seen", pattern="hook store")
def forward_hook_keeps_outputs():
    model, (x, _), seen = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), batch(), []
    model[1].register_forward_hook(lambda module, given, output: seen.append(output))

    def step():
        model(x).sum()  # born

    return step


@loop("A tensor's hook appends each gradient", owner="pile", pattern="growing detached cache", nodes=False)
def tensor_hook_keeps_gradients():
    weight, pile = torch.randn(8, requires_grad=True), []
    weight.register_hook(lambda gradient: pile.append(gradient.clone()))  # born

    def step():
        weight.exp().sum().backward()

    return step


@loop("An lru_cache without bound, keyed by a number that never repeats", owner="embed", pattern="lru_cache")
def lru_cache_of_graphs():
    model, calls = nn.Embedding(64, 8), []

    @functools.cache
    def embed(index):
        return model(torch.tensor(index % 64)).exp()  # born

    def step():
        calls.append(None)
        embed(len(calls))

    return step


@loop("Each step leaves a closure that reads its loss", owner="callbacks", pattern="closure")
def closures_over_losses():
    model, (x, y), callbacks = nn.Linear(8, 3), batch(), []

    def step():
        loss = F.cross_entropy(model(x), y)  # born
        callbacks.append(lambda: loss)

    return step


@loop("errors.append(error): its traceback holds the frame and the frame its loss", owner="errors", pattern="traceback")
def tracebacks_kept():
    model, (x, y), errors = nn.Linear(8, 3), batch(), []

    def fail():
        loss = F.cross_entropy(model(x), y)  # born
        raise ValueError(f"step failed at {loss.dim()}")

    def step():
        try:
            fail()
        except ValueError as error:
            errors.append(error)

    return step


@loop("hidden = tanh(cell(x) + hidden), for ever", owner="hidden", pattern="undetached recurrent state")
def rnn_cell_state():
    cell, (x, _), hidden = nn.Linear(8, 8), batch(), torch.zeros(4, 8)

    def step():
        nonlocal hidden
        hidden = torch.tanh(cell(x) + hidden)  # born

    return step


@loop("average = 0.9 * average + 0.1 * weight, without no_grad", owner="average", pattern="average with history")
def moving_average_of_weights():
    weight, average = torch.randn(8, requires_grad=True), torch.zeros(8)

    def step():
        nonlocal average
        average = 0.9 * average + (0.1 * weight) ** 2  # born

    return step


@loop("replay.append(features), with another batch size every step", owner="replay", pattern="kept outputs")
def replay_of_unequal_batches():
    model, replay = nn.Linear(8, 8), []

    def step():
        x, _ = batch(1 + len(replay) * 5 % 7)
        replay.append(model(x).exp())  # born

    return step


@loop(
    "views.append(batch[0]): a row that keeps its whole batch",
    owner="views",
    pattern="growing detached cache",
    nodes=False,
)
def small_views_of_large_storages():
    views = []

    def step():
        views.append(torch.randn(64, 8)[0])  # born

    return step


@loop("loss.backward(retain_graph=True), and the loss is kept", owner="retained", pattern="kept losses")
def retain_graph_and_kept_loss():
    model, (x, y), retained = nn.Linear(8, 3), batch(), []

    def step():
        loss = F.cross_entropy(model(x), y)  # born
        loss.backward(retain_graph=True)
        retained.append(loss)

    return step


@loop("Outputs of checkpoint keep what it recomputes from", owner="outputs", pattern="kept losses")
def checkpointed_outputs_kept():
    model, outputs = nn.Linear(8, 8), []

    def step():
        x = torch.randn(4, 8, requires_grad=True)
        outputs.append(checkpoint(model, x, use_reentrant=False).sum())  # born

    return step


@loop("trainer.last.previous.previous...: a linked list of results", owner="trainer", pattern="kept outputs")
def attribute_of_a_trainer():
    model, (x, _), trainer = nn.Linear(8, 8), batch(), type("Trainer", (), {"last": None})()

    def step():
        trainer.last = (model(x).exp(), trainer.last)  # born

    return step


@loop(
    "A new Adam each step, kept in a list with its state",
    owner="optimizers",
    pattern="growing detached cache",
    nodes=False,
)
def an_optimizer_each_step():
    weight, optimizers = nn.Parameter(torch.randn(8)), []

    def step():
        optimizer = torch.optim.Adam([weight])
        weight.grad = torch.ones(8)
        optimizer.step()  # born
        optimizers.append(optimizer)

    return step


@loop("penalty = penalty + grad(..., create_graph=True).norm()", owner="penalty", pattern="accumulated loss")
def gradient_penalty_kept():
    weight, penalty = torch.randn(8, requires_grad=True), torch.zeros(())

    def step():
        nonlocal penalty
        x = torch.randn(8, requires_grad=True)
        (gradient,) = torch.autograd.grad((weight * x).exp().sum(), x, create_graph=True)
        penalty = penalty + gradient.norm()  # born

    return step


@loop("A leak in every second step only", owner="buffer", pattern="kept outputs")
def every_second_step():
    model, (x, _), buffer, calls = nn.Linear(8, 8), batch(), [], []

    def step():
        calls.append(None)
        output = model(x).exp()  # born
        if len(calls) % 2:
            buffer.append(output)

    return step


def generator(model, x):
    kept = []
    while True:
        kept.append(model(x).exp())  # born
        yield


@loop("A generator's local list", owner="kept", pattern="kept outputs")
def suspended_generator():
    running = generator(nn.Linear(8, 8), batch()[0])

    def step():
        next(running)

    return step


# Clean ones.


@loop("zero_grad, forward, backward, step")
def train_with_sgd():
    model, (x, y) = nn.Linear(8, 3), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


@loop("Adam makes its state in the first step")
def train_with_adam():
    model, (x, y) = nn.Linear(8, 3), batch()
    optimizer = torch.optim.Adam(model.parameters())

    def step():
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


@loop("total += loss.item()")
def total_of_items():
    model, (x, y), total = nn.Linear(8, 3), batch(), 0.0

    def step():
        nonlocal total
        total += F.cross_entropy(model(x), y).item()

    return step


@loop("total += loss.detach(): one number, overwritten")
def total_detached():
    model, (x, y), total = nn.Linear(8, 3), batch(), torch.zeros(())

    def step():
        nonlocal total
        total += F.cross_entropy(model(x), y).detach()

    return step


@loop("The last eight losses with their graphs")
def bounded_deque():
    model, (x, y), last = nn.Linear(8, 3), batch(), collections.deque(maxlen=8)

    def step():
        last.append(F.cross_entropy(model(x), y))

    return step


@loop("An lru_cache of four that turns over")
def bounded_lru_cache():
    model, calls = nn.Embedding(64, 8), []

    @functools.lru_cache(maxsize=4)
    def embed(index):
        return model(torch.tensor(index % 64)).exp()

    def step():
        calls.append(None)
        embed(len(calls))

    return step


@loop("A cache of positions that is filled once, in the fifth step")
def lazily_filled_cache():
    cache, calls = {}, []

    def step():
        calls.append(None)
        if len(calls) == 5:
            cache["positions"] = torch.arange(64)

    return step


@loop("A mask for each of three lengths, made when first met")
def cache_of_three_shapes():
    masks, calls = {}, []

    def step():
        calls.append(None)
        size = 4 + len(calls) % 3
        masks.setdefault(size, torch.ones(size, size).tril())

    return step


@loop("Another batch size every step; only the last output is kept")
def varying_batches():
    model, output, calls = nn.Linear(8, 8), None, []

    def step():
        nonlocal output
        calls.append(None)
        output = model(batch(1 + len(calls) * 5 % 7)[0]).exp()
        return output

    return step


@loop("An LSTM's state, detached after each step")
def truncated_lstm():
    model, x, state = nn.LSTM(8, 8), torch.randn(1, 2, 8), None

    def step():
        nonlocal state
        output, state = model(x, state)
        output.sum().backward()
        state = tuple(each.detach() for each in state)

    return step


@loop("outputs replaced each step, under no_grad")
def evaluation_under_no_grad():
    model, (x, _), outputs = nn.Linear(8, 8), batch(), []

    def step():
        outputs[:] = []
        with torch.no_grad():
            outputs.append(model(x))

    return step


@loop("grad(..., create_graph=True), used and dropped")
def create_graph_and_dropped_grads():
    weight = torch.randn(8, requires_grad=True)

    def step():
        (gradient,) = torch.autograd.grad(weight.exp().sum(), weight, create_graph=True)
        gradient.norm().backward()
        weight.grad = None

    return step


@loop("A hook is registered and removed each step")
def hooks_that_are_removed():
    model, (x, _) = nn.Linear(8, 8), batch()

    def step():
        seen = []
        handle = model.register_forward_hook(lambda module, given, output: seen.append(output))
        model(x).sum().backward()
        handle.remove()

    return step


@loop("An error is caught and dropped each step")
def caught_errors():
    model, (x, _) = nn.Linear(8, 8), batch()

    def step():
        loss = model(x).sum()
        try:
            raise ValueError(loss.dim())
        except ValueError:
            pass

    return step


@loop("Objects that hold each other and a loss: garbage")
def cycles_through_objects():
    model, (x, _) = nn.Linear(8, 8), batch()

    def step():
        one, other = Meter(), Meter()
        one.sum, other.sum, one.loss = other, one, model(x).sum()

    return step


@loop("average.mul_(0.9).add_(weight.detach())")
def exponential_average_in_place():
    weight, average = torch.randn(8, requires_grad=True), torch.zeros(8)

    def step():
        average.mul_(0.9).add_(weight.detach())

    return step


@loop("checkpoint, backward, and nothing is kept")
def checkpointed_training():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def step():
        x = torch.randn(4, 8, requires_grad=True)
        checkpoint(model, x, use_reentrant=False).sum().backward()

    return step


@loop("A list of weak references grows; what they point to goes")
def weak_references_to_losses():
    model, (x, _), seen = nn.Linear(8, 8), batch(), []

    def step():
        seen.append(weakref.ref(model(x).sum()))

    return step


@loop("A ring buffer written in place")
def preallocated_ring():
    ring, calls = torch.zeros(16, 8), []

    def step():
        calls.append(None)
        ring[len(calls) % 16].copy_(torch.randn(8))

    return step


@loop("sys.last_value style: only the last traceback is kept")
def last_error_of_the_interpreter():
    model, (x, _), last = nn.Linear(8, 8), batch(), [None]

    def step():
        loss = model(x).sum()
        try:
            raise ValueError(loss.dim())
        except ValueError:
            last[0] = sys.exc_info()

    return step


@loop("retain_graph=True, and the loss goes")
def retain_graph_and_dropped_loss():
    model, (x, y) = nn.Linear(8, 3), batch()

    def step():
        loss = F.cross_entropy(model(x), y)
        loss.backward(retain_graph=True)
        loss.backward()

    return step
