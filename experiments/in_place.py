"""In-place activations save memory only where their gradient needs the output: leaky_relu does, relu and silu do not.

"Use inplace=True to save memory" is true of what lives for a moment, and mostly not of what is kept for backward. The
gradient of relu needs the output anyway; leaky_relu, elu and hardtanh need their input unless they work in place, and
then their output; silu needs its input, and in place it keeps a copy. What an op overwrote, another may still need.
"""

import torch
from torch import nn
from torch.nn import functional as F

from memlab.experiment import Arm, Experiment

SIZES = {"batch": 32, "width": 48}


def setup(s):
    return nn.Linear(s.width, s.width), nn.Linear(s.width, s.width), torch.randn(s.batch, s.width)


def relu(first, second, x):
    """ReLU keeps its output, which is the next layer's input."""
    outputs = []
    while True:
        outputs.append(second(F.relu(first(x))))
        yield


def relu_in_place(first, second, x):
    """The same bytes: what it overwrites was not kept."""
    outputs = []
    while True:
        outputs.append(second(F.relu(first(x), inplace=True)))
        yield


def leaky_relu(first, second, x):
    """LeakyReLU keeps its input, the next layer the output: two tensors."""
    outputs = []
    while True:
        outputs.append(second(F.leaky_relu(first(x))))
        yield


def leaky_relu_in_place(first, second, x):
    """In place it keeps its output, which the next layer keeps too: one."""
    outputs = []
    while True:
        outputs.append(second(F.leaky_relu(first(x), inplace=True)))
        yield


def silu(first, second, x):
    """SiLU keeps its input, the next layer the output: two tensors."""
    outputs = []
    while True:
        outputs.append(second(F.silu(first(x))))
        yield


def silu_in_place(first, second, x):
    """In place it must copy its input first: two tensors again."""
    outputs = []
    while True:
        outputs.append(second(F.silu(first(x), inplace=True)))
        yield


def overwritten(first, second, x):
    """What tanh keeps, its output, is changed in place: backward raises."""
    outputs = []
    while True:
        hidden = first(x).tanh()
        hidden.mul_(2)
        outputs.append(second(hidden))
        try:
            outputs[-1].sum().backward()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error), error
        else:
            raise AssertionError("backward used a tensor that had been overwritten")
        first.zero_grad()
        second.zero_grad()
        yield


def state(s):
    return 4 * s.batch * s.width


def one(s, k):
    return {"activation's output, the next layer's input": (k, state(s))}


def two(s, k):
    return one(s, k) | {"activation's input": (k, state(s))}


def half_freed(s, k):
    """The pass that failed had freed the second layer before it came to tanh, whose output this is."""
    return {"tanh's output, overwritten": (k, state(s))}


def kept(saved):
    """What is saved, and the outputs that the arm keeps."""
    return lambda s, k: saved(s, k) | {"outputs": (k, state(s))}


experiment = Experiment(
    setup=setup,
    sizes=SIZES,
    arms=[
        Arm(relu, saved=one, allocated=kept(one)),
        Arm(relu_in_place, saved=one, allocated=kept(one)),
        Arm(leaky_relu, saved=two, allocated=kept(two)),
        Arm(leaky_relu_in_place, saved=one, allocated=kept(one)),
        Arm(silu, saved=two, allocated=kept(two)),
        Arm(silu_in_place, saved=two, allocated=kept(two)),
        Arm(overwritten, saved=half_freed, allocated=kept(half_freed)),
    ],
)
