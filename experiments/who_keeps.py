"""It does not matter where a graph is kept: whatever leads to one tensor of it keeps it whole; a value alone does not.

Averages, hooks, errors, caches, closures and buffers keep what they are given, and people do not think of them as
keeping anything. Each arm that keeps has a twin beside it that keeps the value and not the graph.
"""

from collections import deque
from functools import cache, lru_cache

import torch
from torch.nn import Linear, Sequential, Tanh

from memlab.experiment import Arm, Experiment, nothing

SIZES = {"batch": 32, "width": 48, "places": 3}


def setup(s):
    model = Sequential(Linear(s.width, s.width), Tanh(), Linear(s.width, s.width))
    return model, torch.randn(s.batch, s.width), s.places


def average_with_history(model, x, places):
    """A moving average leads to every value that went into it."""
    average = 0
    while True:
        average = 0.9 * average + 0.1 * model(x).mean()
        yield


def average_of_detached(model, x, places):
    """The same average, of values."""
    average = 0
    while True:
        average = 0.9 * average + 0.1 * model(x).mean().detach()
        yield


def hook_keeps_outputs(model, x, places):
    """A forward hook stores activations, and what leads to them."""
    activations = []
    hook = model[1].register_forward_hook(lambda module, inputs, output: activations.append(output))
    try:
        while True:
            model(x)
            yield
    finally:
        hook.remove()


def hook_keeps_detached(model, x, places):
    """Detached, and the store cleared in every step."""
    activations = []
    hook = model[1].register_forward_hook(lambda module, inputs, output: activations.append(output.detach()))
    try:
        while True:
            activations.clear()
            model(x)
            yield
    finally:
        hook.remove()


def error_kept(model, x, places):
    """An error keeps the frames that it went through, and their tensors."""
    errors = []
    try:
        while True:
            errors.append(error_of(model, x))
            yield
    finally:
        errors.clear()  # its frames lead back to this one, and so to errors: else only gc would free them


def error_text_kept(model, x, places):
    """Its text keeps nothing."""
    errors = []
    while True:
        errors.append(str(error_of(model, x)))
        yield


def error_of(model, x):
    try:
        check(model(x))
    except ValueError as error:
        return error


def check(output):
    raise ValueError(f"a batch of {len(output)} is refused")


def cache_of_losses(model, x, places):
    """A cached function keeps what it has returned."""

    @cache
    def loss(batch):
        return model(x).mean()

    batch = 0
    while True:
        batch += 1
        loss(batch)
        yield


def cache_of_detached(model, x, places):
    """The last few, detached."""

    @lru_cache(maxsize=places)
    def loss(batch):
        return model(x).mean().detach()

    batch = 0
    while True:
        batch += 1
        loss(batch)
        yield


def closures_of_losses(model, x, places):
    """A function keeps what it closes over."""
    callbacks = []
    while True:
        callbacks.append(reporter(model(x).mean()))
        yield


def closures_of_numbers(model, x, places):
    """The same function, closed over a number."""
    callbacks = []
    while True:
        callbacks.append(reporter(model(x).mean().item()))
        yield


def reporter(loss):
    return lambda: f"loss {loss:.3f}"


def replay_with_graphs(model, x, places):
    """A replay buffer of outputs: each with the graph that made it."""
    memory = deque()
    while True:
        memory.append((x, model(x)))
        yield


def replay_of_detached(model, x, places):
    """Made under no_grad, and the oldest are forgotten."""
    memory = deque(maxlen=places)
    while True:
        with torch.no_grad():
            memory.append((x, model(x)))
        yield


def piled_up(model, x, places):
    """Detached outputs pile up as well, without any graph."""
    results = {}
    while True:
        results[len(results)] = model(x).detach()
        yield


def bounded(model, x, places):
    """Only the last few."""
    results = deque(maxlen=places)
    while True:
        results.append(model(x).detach())
        yield


def state(s):
    return 4 * s.batch * s.width


def graphs(s, k):
    return {"tanh output": (k, state(s))}


def losses(s, k):
    return {"losses": (k, 4)}


def outputs(s, k):
    return {"outputs": (k, state(s))}


def last(bill):
    return lambda s, k: bill(s, min(k, s.places))


def average(s, k):
    return {"average": 4}


def activation(s, k):
    return {"tanh output of this step": state(s)}


def both(one, other):
    return lambda s, k: one(s, k) | other(s, k)


experiment = Experiment(
    setup=setup,
    sizes=SIZES,
    steps=6,
    arms=[
        Arm(average_with_history, saved=graphs, allocated=both(graphs, average)),
        Arm(average_of_detached, saved=nothing, allocated=average),
        Arm(hook_keeps_outputs, saved=graphs, allocated=graphs),
        Arm(hook_keeps_detached, saved=nothing, allocated=activation),
        Arm(error_kept, saved=graphs, allocated=both(graphs, outputs)),
        Arm(error_text_kept, saved=nothing, allocated=nothing),
        Arm(cache_of_losses, saved=graphs, allocated=both(graphs, losses)),
        Arm(cache_of_detached, saved=nothing, allocated=last(losses)),
        Arm(closures_of_losses, saved=graphs, allocated=both(graphs, losses)),
        Arm(closures_of_numbers, saved=nothing, allocated=nothing),
        Arm(replay_with_graphs, saved=graphs, allocated=both(graphs, outputs)),
        Arm(replay_of_detached, saved=nothing, allocated=last(outputs)),
        Arm(piled_up, saved=nothing, allocated=outputs),
        Arm(bounded, saved=nothing, allocated=last(outputs)),
    ],
)
