"""Cut from its graph, a tensor costs its own storage and no graph; what the cuts differ in, bytes do not show.

2017's way to cut was to wrap the data again, `Variable(x.data)`. It keeps as little as `.detach()` and shares the
storage as well. But `.data` hides in-place changes from autograd: backward goes wrong in silence where after
`.detach()` it refuses. Each arm yields first with the output still held beside its cut, then with the cut alone.
"""

import warnings

import torch
from torch.autograd import Variable
from torch.nn import Linear, Sequential, Tanh

from memlab.experiment import Arm, Experiment, nothing

SIZES = {"batch": 32, "width": 48}


def setup(s):
    model = Sequential(Linear(s.width, s.width), Tanh(), Linear(s.width, s.width), Tanh())
    return model, torch.randn(s.batch, s.width)


def as_is(model, x):
    """The output as it is leads to its whole graph."""
    while True:
        output = model(x)
        cut = output
        yield
        del output
        yield
        del cut


def detach(model, x):
    """`.detach()`: the same storage, no graph."""
    while True:
        output = model(x)
        cut = output.detach()
        yield
        del output
        yield
        del cut


def data(model, x):
    """`.data`: the same storage, no graph."""
    while True:
        output = model(x)
        cut = output.data
        yield
        del output
        yield
        del cut


def variable(model, x):
    """`Variable(x.data)`, 2017's wrapping again: the same storage, no graph."""
    while True:
        output = model(x)
        cut = Variable(output.data)
        yield
        del output
        yield
        del cut


def variable_of_copy(model, x):
    """`Variable(x.data.clone())`, 2017's copy: one storage more, no graph."""
    while True:
        output = model(x)
        cut = Variable(output.data.clone())
        yield
        del output
        yield
        del cut


def detach_clone(model, x):
    """`.detach().clone()`, today's copy: one storage more, no graph."""
    while True:
        output = model(x)
        cut = output.detach().clone()
        yield
        del output
        yield
        del cut


def new_tensor(model, x):
    """`torch.tensor(x)`: the same copy, and torch warns."""
    while True:
        output = model(x)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)
            cut = torch.tensor(output)
        yield
        del output
        yield
        del cut


def detach_changed(model, x):
    """Changed after `.detach()`: backward raises; a clone may change."""
    while True:
        output = model(x)
        output.detach().fill_(1)
        try:
            output.sum().backward()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error), error
        else:
            raise AssertionError("backward did not notice the change")
        output = model(x)  # the graph that refused goes
        cut = output.detach().clone().fill_(1)
        output.sum().backward()
        yield
        del output
        yield
        del cut


def data_changed(model, x):
    """Changed through `.data`: wrong gradients in silence."""
    while True:
        model(x).sum().backward()
        assert model[2].bias.grad.gt(0).all(), "what goes into a tanh has a gradient above 0"
        model.zero_grad()
        output = model(x)
        output.data.fill_(1)
        output.sum().backward()  # tanh's derivative is 1 - output**2, by now 0 everywhere
        assert not any(each.grad.any() for each in model.parameters()), "the change shows in the gradients"
        yield
        del output
        yield
        model.zero_grad()


def output(s):
    return {"second tanh, the output": 4 * s.batch * s.width}


def graph(s):
    return {"first tanh": 4 * s.batch * s.width} | output(s)


def graph_kept(s, k):
    return graph(s)


def while_output_held(s, k):
    return graph(s) if k % 2 else {}


def shared(s, k):
    return graph(s) if k % 2 else output(s)


def copy(s):
    return {"copy": 4 * s.batch * s.width}


def copied(s, k):
    return while_output_held(s, k) | copy(s)


def after_backward(s, k):
    """The output, but no graph any more; and the gradients."""
    weights, biases = (2, 4 * s.width**2), (2, 4 * s.width)
    return (output(s) if k % 2 else {}) | {"weight gradients": weights, "bias gradients": biases}


experiment = Experiment(
    setup=setup,
    sizes=SIZES,
    steps=6,
    arms=[
        Arm(as_is, saved=graph_kept, allocated=graph_kept),
        Arm(detach, saved=while_output_held, allocated=shared),
        Arm(data, saved=while_output_held, allocated=shared),
        Arm(variable, saved=while_output_held, allocated=shared),
        Arm(variable_of_copy, saved=while_output_held, allocated=copied),
        Arm(detach_clone, saved=while_output_held, allocated=copied),
        Arm(new_tensor, saved=while_output_held, allocated=copied),
        Arm(detach_changed, saved=nothing, allocated=lambda s, k: after_backward(s, k) | copy(s)),
        Arm(
            data_changed,
            saved=nothing,
            allocated=after_backward,
            proves="after a change through .data the gradients are wrong",
        ),
    ],
)
