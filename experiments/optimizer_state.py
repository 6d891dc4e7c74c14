"""An optimizer makes its state at its first step, once; gradients come with backward and go with zero_grad().

So the second step of a training needs more than the first, and every later one as much as the second: what runs out of
memory at step 2 need not leak, it is as large as it was going to be. `zero_grad()` gives the gradients back since torch
2.0; with set_to_none=False, as before, they stay and are filled with zeros.
"""

import torch
from torch.nn import Linear, Sequential, Tanh
from torch.optim import SGD, Adam

from memlab.experiment import Arm, Experiment, nothing

SIZES = {"batch": 16, "width": 24}


def setup(s):
    model = Sequential(Linear(s.width, s.width), Tanh(), Linear(s.width, s.width))
    return model, torch.randn(s.batch, s.width)


def sgd(model, x):
    """No state at all."""
    optimizer = SGD(model.parameters(), lr=0.1)
    while True:
        model(x).mean().backward()
        yield
        optimizer.step()
        yield
        optimizer.zero_grad()
        yield


def momentum(model, x):
    """One buffer for each parameter, from the first step on."""
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    while True:
        model(x).mean().backward()
        yield
        optimizer.step()
        yield
        optimizer.zero_grad()
        yield


def adam(model, x):
    """Two moments for each parameter, and a counter of four bytes."""
    optimizer = Adam(model.parameters(), lr=0.1, fused=True)  # fused keeps the counters on the device, too
    while True:
        model(x).mean().backward()
        yield
        optimizer.step()
        yield
        optimizer.zero_grad()
        yield


def gradients_zeroed(model, x):
    """zero_grad(set_to_none=False): the gradients stay, filled with zeros."""
    optimizer = SGD(model.parameters(), lr=0.1)
    while True:
        model(x).mean().backward()
        yield
        optimizer.step()
        yield
        optimizer.zero_grad(set_to_none=False)
        yield


def like_parameters(s, what, times=1):
    return {f"{what} of weights": (2 * times, 4 * s.width**2), f"{what} of biases": (2 * times, 4 * s.width)}


def gradients(s):
    return like_parameters(s, "gradients")


def no_state(s):
    return {}


def buffers(s):
    return like_parameters(s, "momentum")


def moments(s):
    return like_parameters(s, "moments", 2) | {"step counters": (4, 4)}


def held(state, *, zeroed=False):
    """What lives, again and again: after backward, after the step, after zero_grad()."""

    def bill(s, k):
        given_back = k % 3 == 0 and not zeroed
        return ({} if given_back else gradients(s)) | ({} if k == 1 else state(s))

    return bill


experiment = Experiment(
    setup=setup,
    sizes=SIZES,
    steps=9,
    arms=[
        Arm(sgd, saved=nothing, allocated=held(no_state)),
        Arm(momentum, saved=nothing, allocated=held(buffers)),
        Arm(adam, saved=nothing, allocated=held(moments)),
        Arm(gradients_zeroed, saved=nothing, allocated=held(no_state, zeroed=True)),
    ],
)
