"""The gradient of W needs the input, the gradient of the input needs W: Linear keeps only what is asked for.

So a frozen backbone costs nothing; frozen layers *behind* a trainable one still cost what the way back through them
needs. Conv2d makes no difference: it keeps input and W both as soon as either requires a gradient. Parameters and
inputs do not count as saved, so the single layers get clones, made in every step as a cast would make them.
"""

import torch
from torch.nn import GELU, Linear, Sequential
from torch.nn.functional import conv2d, linear

from memlab.experiment import Arm, Experiment, nothing

SIZES = {"batch": 16, "width": 48, "channels": 3, "filters": 8, "image": 12}


def setup(s):
    backbone = Sequential(Linear(s.width, s.width), GELU(), Linear(s.width, s.width), GELU())
    model = Sequential(backbone, Linear(s.width, s.width))
    x, images = torch.randn(s.batch, s.width), torch.randn(s.batch, s.channels, s.image, s.image)
    return model, x, torch.randn(s.width, s.width), images, torch.randn(s.filters, s.channels, 3, 3)


def fresh(tensor, requires_grad):
    """Return an activation that requires a gradient or not; clone itself saves nothing."""
    return tensor.requires_grad_(requires_grad).clone()


def linear_neither(model, x, weight, images, filters):
    """Linear, no gradient asked for: keeps nothing."""
    outputs = []
    while True:
        outputs.append(linear(fresh(x, False), fresh(weight, False)))
        yield


def linear_weight(model, x, weight, images, filters):
    """Linear, only W requires a gradient: keeps the input."""
    outputs = []
    while True:
        outputs.append(linear(fresh(x, False), fresh(weight, True)))
        yield


def linear_input(model, x, weight, images, filters):
    """Linear, only the input requires a gradient: keeps W."""
    outputs = []
    while True:
        outputs.append(linear(fresh(x, True), fresh(weight, False)))
        yield


def linear_both(model, x, weight, images, filters):
    """Linear, both require a gradient: keeps both."""
    outputs = []
    while True:
        outputs.append(linear(fresh(x, True), fresh(weight, True)))
        yield


def conv2d_neither(model, x, weight, images, filters):
    """Conv2d, no gradient asked for: keeps nothing."""
    outputs = []
    while True:
        outputs.append(conv2d(fresh(images, False), fresh(filters, False), padding=1))
        yield


def conv2d_weight(model, x, weight, images, filters):
    """Conv2d, only W requires a gradient: keeps both all the same."""
    outputs = []
    while True:
        outputs.append(conv2d(fresh(images, False), fresh(filters, True), padding=1))
        yield


def conv2d_input(model, x, weight, images, filters):
    """Conv2d, only the input requires a gradient: keeps both all the same."""
    outputs = []
    while True:
        outputs.append(conv2d(fresh(images, True), fresh(filters, False), padding=1))
        yield


def conv2d_both(model, x, weight, images, filters):
    """Conv2d, both require a gradient: keeps both."""
    outputs = []
    while True:
        outputs.append(conv2d(fresh(images, True), fresh(filters, True), padding=1))
        yield


def all_trainable(model, x, weight, images, filters):
    """A whole model: Linear and GELU keep their inputs."""
    outputs = []
    while True:
        outputs.append(model(x))
        yield


def frozen_backbone(model, x, weight, images, filters):
    """Backbone frozen, head trainable: keeps the head's input."""
    model[0].requires_grad_(False)
    outputs = []
    while True:
        outputs.append(model(x))
        yield


def frozen_rest(model, x, weight, images, filters):
    """First layer trainable, rest frozen: GELU keeps its input all the same."""
    model.requires_grad_(False)
    model[0][0].requires_grad_(True)
    outputs = []
    while True:
        outputs.append(model(x))
        yield


def frozen_between(model, x, weight, images, filters):
    """requires_grad_(False) on an activation raises; detach() cuts."""
    backbone, head = model
    outputs = []
    while True:
        hidden = backbone(x)
        try:
            hidden.requires_grad_(False)
        except RuntimeError as error:
            assert "leaf" in str(error), error
        else:
            raise AssertionError("a tensor with a history was frozen")
        hidden = hidden.detach()
        outputs.append(head(hidden))
        yield


def state(s):
    return 4 * s.batch * s.width


def linear_outputs(s, k):
    return {"outputs": (k, state(s))}


def linear_inputs(s, k):
    return {"inputs of linear": (k, state(s))}


def linear_weights(s, k):
    return {"W of linear": (k, 4 * s.width**2)}


def linear_both_kept(s, k):
    return linear_inputs(s, k) | linear_weights(s, k)


def conv2d_outputs(s, k):
    return {"outputs": (k, 4 * s.batch * s.filters * s.image**2)}


def conv2d_both_kept(s, k):
    images, filters = 4 * s.batch * s.channels * s.image**2, 4 * s.filters * s.channels * 3 * 3
    return {"inputs of conv2d": (k, images), "W of conv2d": (k, filters)}


def ways_back(s, k):
    return {"inputs of gelu": (2 * k, state(s))}


def everything(s, k):
    return ways_back(s, k) | {"inputs of second linear and head": (2 * k, state(s))}


def head_inputs(s, k):
    return {"inputs of head": (k, state(s))}


def and_outputs(saved, outputs=linear_outputs):
    return lambda s, k: saved(s, k) | outputs(s, k)


experiment = Experiment(
    setup=setup,
    sizes=SIZES,
    arms=[
        Arm(linear_neither, saved=nothing, allocated=linear_outputs),
        Arm(linear_weight, saved=linear_inputs, allocated=and_outputs(linear_inputs)),
        Arm(linear_input, saved=linear_weights, allocated=and_outputs(linear_weights)),
        Arm(linear_both, saved=linear_both_kept, allocated=and_outputs(linear_both_kept)),
        Arm(conv2d_neither, saved=nothing, allocated=conv2d_outputs),
        Arm(conv2d_weight, saved=conv2d_both_kept, allocated=and_outputs(conv2d_both_kept, conv2d_outputs)),
        Arm(conv2d_input, saved=conv2d_both_kept, allocated=and_outputs(conv2d_both_kept, conv2d_outputs)),
        Arm(conv2d_both, saved=conv2d_both_kept, allocated=and_outputs(conv2d_both_kept, conv2d_outputs)),
        Arm(all_trainable, saved=everything, allocated=and_outputs(everything)),
        Arm(frozen_backbone, saved=head_inputs, allocated=and_outputs(head_inputs)),
        Arm(frozen_rest, saved=ways_back, allocated=and_outputs(ways_back)),
        Arm(frozen_between, saved=head_inputs, allocated=and_outputs(head_inputs)),
    ],
)
