"""A checkpoint keeps its block's input instead of what its layers save: where it is cut decides what that saves.

Everything between is made again when backward comes there. Around every block one tensor is kept for each. Around the
whole model nothing is, until the middle of backward, where the whole graph is there at once: the peak is as it was. And
around every layer more is kept than without any checkpoint, for every layer's input is, needed or not.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from memlab.experiment import Arm, Experiment

SIZES = {"batch": 16, "width": 24, "blocks": 3}


def setup(s):
    def block():
        return nn.Sequential(nn.Linear(s.width, s.width), nn.Tanh(), nn.Linear(s.width, s.width), nn.Tanh())

    return nn.Sequential(*(block() for _ in range(s.blocks))), torch.randn(s.batch, s.width)


def plain(model, x):
    """Without checkpoints: both tanh outputs of every block."""
    while True:
        loss = model(x).mean()
        yield
        loss.backward()
        yield
        model.zero_grad()
        del loss


def every_block(model, x):
    """Around every block: its input, the output of the block before."""
    while True:
        hidden = x
        for block in model:
            hidden = checkpoint(block, hidden, use_reentrant=False, preserve_rng_state=False)
        loss = hidden.mean()
        del hidden
        yield
        loss.backward()
        yield
        model.zero_grad()
        del loss


def whole_model(model, x):
    """Around the whole model: nothing, until backward makes it all again."""
    while True:
        loss = checkpoint(model, x, use_reentrant=False, preserve_rng_state=False).mean()
        yield
        loss.backward()
        yield
        model.zero_grad()
        del loss


def every_layer(model, x):
    """Around every layer: more than without, every layer's input."""
    while True:
        hidden = x
        for block in model:
            for layer in block:
                hidden = checkpoint(layer, hidden, use_reentrant=False, preserve_rng_state=False)
        loss = hidden.mean()
        del hidden
        yield
        loss.backward()
        yield
        model.zero_grad()
        del loss


def state(s):
    return 4 * s.batch * s.width


def both(s):
    return {"tanh outputs": (2 * s.blocks, state(s))}


def inputs(s):
    return {"blocks' inputs": (s.blocks - 1, state(s))}


def all_inputs(s):
    """Every layer's input but the first, which was there before."""
    return {"layers' inputs": (4 * s.blocks - 1, state(s))}


def none(s):
    return {}


def loss(s):
    return {"loss": 4}


def gradients(s):
    return {"weight gradients": (2 * s.blocks, 4 * s.width**2), "bias gradients": (2 * s.blocks, 4 * s.width)}


def told(saved):
    """Two moments, again and again: after forward, and after backward, which leaves nothing saved."""

    def bill(s, k):
        return saved(s) if k % 2 else {}

    return bill


def held(saved):
    def bill(s, k):
        return (saved(s) if k % 2 else gradients(s)) | loss(s)

    return bill


experiment = Experiment(
    setup=setup,
    sizes=SIZES,
    steps=6,
    arms=[
        Arm(plain, saved=told(both), allocated=held(both)),
        Arm(every_block, saved=told(inputs), allocated=held(inputs)),
        Arm(whole_model, saved=told(none), allocated=held(none)),
        Arm(every_layer, saved=told(all_inputs), allocated=held(all_inputs)),
    ],
)
