"""backward() frees what the graph saved; retain_graph=True keeps every byte, and backward passes do not add up.

With create_graph=True the backward pass is recorded too and saves tensors of its own, as long as a gradient that leads
there is held. `torch.autograd.grad` hands that gradient to a name. `backward(create_graph=True)` puts it into `.grad`
and so makes a cycle: the parameter holds its gradient, and the gradient's graph leads back to the parameter.
Each arm is a story told again and again; its bill is given moment by moment.
"""

import copy
import gc
import warnings

import torch
from torch.nn import Linear, Sequential, Tanh

from memlab.experiment import Arm, Experiment

SIZES = {"batch": 32, "width": 48}


def setup(s):
    model = Sequential(Linear(s.width, s.width), Tanh(), Linear(s.width, s.width))
    return model, torch.randn(s.batch, s.width)


def freed(model, x):
    """backward() frees what was saved; a second one raises."""
    while True:
        loss = model(x).mean()
        yield
        loss.backward()
        yield
        try:
            loss.backward()
        except RuntimeError as error:
            assert "backward through the graph a second time" in str(error), error
        else:
            raise AssertionError("backward went through a freed graph")
        loss = model(x).mean()  # a new forward works
        loss.backward()
        yield
        model.zero_grad()
        del loss


def retained(model, x):
    """retain_graph=True: three passes keep as much as one, the last frees."""
    while True:
        loss = model(x).mean()
        yield
        loss.backward(retain_graph=True)
        yield
        loss.backward(retain_graph=True)
        loss.backward(retain_graph=True)
        yield
        loss.backward()
        yield
        model.zero_grad()
        del loss


def gradient_penalty(model, x):
    """Gradient penalty: both passes are saved; one backward() frees both."""
    x.requires_grad_()
    while True:
        score = model(x).mean()
        yield
        (gradient,) = torch.autograd.grad(score, x, create_graph=True)
        yield
        penalty = gradient.square().sum()
        yield
        (score + penalty).backward()
        yield
        del score, gradient, penalty
        model.zero_grad()
        x.grad = None


def gradients_replaced(model, x):
    """autograd.grad(create_graph=True): what it saved goes with the name."""
    while True:
        loss = model(x).mean()
        yield
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        yield
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        yield
        del gradients
        loss.backward()
        yield
        model.zero_grad()
        del loss


def backward_creates_graph(model, x):
    """backward(create_graph=True): `.grad` keeps both graphs until cleared."""
    try:
        while True:
            loss = model(x).mean()
            yield
            record_backward(loss)
            yield
            del loss
            yield
            model.zero_grad()
            yield
    finally:
        model.zero_grad()  # an arm may be left at any moment, and the model stays


def model_dropped(model, x):
    """The same, model dropped: the cycle stays, even after gc.collect()."""
    model = copy.deepcopy(model)
    record_backward(model(x).mean())
    del model
    gc.collect()
    while True:
        yield


def record_backward(loss):
    """Run backward(create_graph=True) without torch's warning of the cycle, which is what these arms are about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Using backward\(\) with create_graph=True", UserWarning)
        loss.backward(create_graph=True)


def state(s):
    return 4 * s.batch * s.width


def graph(s):
    return {"tanh output": state(s)}


def both_graphs(s):
    """Recorded, the backward pass keeps the gradients that it multiplies with W and with tanh's derivative."""
    return graph(s) | {"gradient of output": state(s), "gradient of tanh output": state(s)}


def down_to_x(s):
    """One layer further, down to x: the first Linear saves its output's gradient as well."""
    return both_graphs(s) | {"gradient of first linear's output": state(s)}


def loss(s):
    return {"loss": 4}


def gradients(s):
    return {"weight gradients": (2, 4 * s.width**2), "bias gradients": (2, 4 * s.width)}


def gradient(s):
    return {"gradient of x": state(s)}


def penalty(s):
    return {"penalty": 4}


def x_grad(s):
    return {"x.grad": state(s)}


def in_cycle(s):
    """Parameters whose gradients depend on parameters: all but the last bias."""
    weights, bias = (2, 4 * s.width**2), 4 * s.width
    return {"weights": weights, "first bias": bias, "weight gradients": weights, "first bias's gradient": bias}


def told(*moments):
    """The bill of a story: each moment is a list of its parts, and after the last comes the first again."""

    def bill(s, k):
        return {what: line for part in moments[(k - 1) % len(moments)] for what, line in part(s).items()}

    return bill


experiment = Experiment(
    setup=setup,
    sizes=SIZES,
    steps=12,
    arms=[
        Arm(
            freed,
            saved=told([graph], [], []),
            allocated=told([graph, loss], [loss, gradients], [loss, gradients]),
        ),
        Arm(
            retained,
            saved=told([graph], [graph], [graph], []),
            allocated=told([graph, loss], [graph, loss, gradients], [graph, loss, gradients], [loss, gradients]),
        ),
        Arm(
            gradient_penalty,
            saved=told([graph], [down_to_x], [down_to_x, gradient], []),
            allocated=told(
                [graph, loss],
                [down_to_x, loss, gradient],
                [down_to_x, loss, gradient, penalty],
                [loss, gradient, penalty, gradients, x_grad],
            ),
        ),
        Arm(
            gradients_replaced,
            saved=told([graph], [both_graphs], [graph], []),
            allocated=told([graph, loss], [both_graphs, loss, gradients], [graph, loss, gradients], [loss, gradients]),
        ),
        Arm(
            backward_creates_graph,
            saved=told([graph], [both_graphs], [both_graphs], []),
            allocated=told([graph, loss], [both_graphs, loss, gradients], [both_graphs, gradients], []),
        ),
        Arm(
            model_dropped,
            saved=told([both_graphs]),
            allocated=told([both_graphs, in_cycle]),
            left=lambda s: 3 * state(s),
        ),
    ],
)
