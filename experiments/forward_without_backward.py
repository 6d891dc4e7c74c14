"""A graph lives exactly as long as something you hold leads to it.

2017's text says: "if you run forward multiple times, but no backward, all the intermediate states would be saved". That
is true only of what you keep: drop the outputs and nothing is saved, keep the losses and every forward is.
"""

import torch
from torch.nn import Linear, Sequential, Tanh

from memlab.experiment import Arm, Experiment, nothing

SIZES = {"batch": 32, "width": 48}


def setup(s):
    model = Sequential(Linear(s.width, s.width), Tanh(), Linear(s.width, s.width))
    return model, torch.randn(s.batch, s.width)


def outputs_dropped(model, x):
    """Nothing leads to the graph: it goes with the name that held it."""
    while True:
        model(x)
        yield


def outputs_kept(model, x):
    """Every output leads to its whole graph."""
    outputs = []
    while True:
        outputs.append(model(x))
        yield


def losses_kept(model, x):
    """One float each, and the whole graph behind it."""
    losses = []
    while True:
        losses.append(model(x).mean())
        yield


def numbers_kept(model, x):
    """`.item()` is a Python number: no graph."""
    losses = []
    while True:
        losses.append(model(x).mean().item())
        yield


def detached_kept(model, x):
    """`.detach()` keeps the value, four bytes, and leads nowhere."""
    losses = []
    while True:
        losses.append(model(x).mean().detach())
        yield


def kept_after_backward(model, x):
    """backward() frees what the graph saved; the loss keeps its nodes, which are no tensors."""
    losses = []
    while True:
        loss = model(x).mean()
        loss.backward()
        losses.append(loss)
        yield


def total_loss(model, x):
    """`total += loss` without detaching: one number that leads to every graph so far."""
    total = 0
    while True:
        total = total + model(x).mean()
        yield


def total_of_numbers(model, x):
    """`total += loss.item()`: a number, and no graph."""
    total = 0
    while True:
        total = total + model(x).mean().item()
        yield


def graph(s):
    return {"tanh output": 4 * s.batch * s.width}


def graphs(s, k):
    return {"tanh output": (k, 4 * s.batch * s.width)}


def gradients(s):
    return {"weight gradients": (2, 4 * s.width**2), "bias gradients": (2, 4 * s.width)}


experiment = Experiment(
    setup=setup,
    sizes=SIZES,
    arms=[
        Arm(outputs_dropped, saved=nothing, allocated=nothing),
        Arm(outputs_kept, saved=graphs, allocated=lambda s, k: {**graphs(s, k), "outputs": (k, 4 * s.batch * s.width)}),
        Arm(losses_kept, saved=graphs, allocated=lambda s, k: {**graphs(s, k), "losses": (k, 4)}),
        Arm(numbers_kept, saved=nothing, allocated=nothing),
        Arm(detached_kept, saved=nothing, allocated=lambda s, k: {"losses": (k, 4)}),
        Arm(kept_after_backward, saved=nothing, allocated=lambda s, k: {**gradients(s), "losses": (k, 4)}),
        Arm(total_loss, saved=graphs, allocated=lambda s, k: {**graphs(s, k), "total": 4}),
        Arm(total_of_numbers, saved=nothing, allocated=nothing),
    ],
)
