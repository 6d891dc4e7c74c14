"""eval() changes what layers compute, not what autograd records: only no_grad and its kin keep nothing.

2017 had a type instead of a mode: a `volatile` input made all that was computed from it volatile, and none of it was
recorded. Two things still spread from tensor to tensor like that: `requires_grad` makes autograd record all that
follows, and what was made in inference mode can never be saved for backward.
"""

import torch
from torch.nn import Dropout, Linear, Sequential, Tanh

from memlab.experiment import Arm, Experiment, nothing

SIZES = {"batch": 32, "width": 48}


class Volatile(torch.Tensor):
    """2017's `Variable(x, volatile=True)`: no op on it is recorded, and what comes out is volatile again."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch.no_grad():
            return super().__torch_function__(function, types, args, kwargs or {})


def setup(s):
    body = Sequential(Linear(s.width, s.width), Tanh(), Linear(s.width, s.width), Tanh(), Dropout(0.5))
    return body, Linear(s.width, s.width), torch.randn(s.batch, s.width)


def train(body, head, x):
    """Training mode: the whole graph, dropout's mask included."""
    outputs = []
    while True:
        outputs.append(head(body(x)))
        yield


def eval_alone(body, head, x):
    """eval(): no dropout, and everything else is recorded as before."""
    body.eval()
    outputs = []
    while True:
        outputs.append(head(body(x)))
        yield


def no_grad(body, head, x):
    """no_grad: nothing is recorded."""
    outputs = []
    while True:
        with torch.no_grad():
            outputs.append(head(body(x)))
        yield


def inference_mode(body, head, x):
    """inference_mode: nothing is recorded, not even versions."""
    outputs = []
    while True:
        with torch.inference_mode():
            outputs.append(head(body(x)))
        yield


def set_grad_enabled(body, head, x):
    """no_grad as a switch that takes a bool."""
    outputs = []
    while True:
        with torch.set_grad_enabled(False):
            outputs.append(head(body(x)))
        yield


def no_grad_body(body, head, x):
    """no_grad around the body only: the head still keeps its input."""
    outputs = []
    while True:
        with torch.no_grad():
            features = body(x)
        outputs.append(head(features))
        yield


def volatile(body, head, x):
    """2017's volatile, emulated: the type of the input is enough."""
    outputs = []
    x = x.as_subclass(Volatile)
    while True:
        outputs.append(head(body(x)))
        assert isinstance(outputs[-1], Volatile)
        yield


def volatile_contaminates(body, head, x):
    """One volatile term among recorded ones: the whole sum is volatile."""
    outputs = []
    offset = x.as_subclass(Volatile)
    while True:
        output = head(body(x)) + offset
        assert isinstance(output, Volatile) and not output.requires_grad
        outputs.append(output)
        yield


def all_frozen(body, head, x):
    """Nothing requires a gradient: there is nothing to record."""
    body.requires_grad_(False)
    head.requires_grad_(False)
    outputs = []
    while True:
        outputs.append(head(body(x)))
        yield


def requires_grad_spreads(body, head, x):
    """All frozen but the first bias: everything after it is recorded."""
    body.requires_grad_(False)
    head.requires_grad_(False)
    body[0].bias.requires_grad_(True)
    outputs = []
    while True:
        outputs.append(head(body(x)))
        assert outputs[-1].requires_grad
        yield


def inference_tensor_refuses(body, head, x):
    """An inference tensor refuses to be saved for backward; a clone does not."""
    outputs = []
    while True:
        with torch.inference_mode():
            features = body(x)
        try:
            head(features)
        except RuntimeError as error:
            assert "Inference tensors cannot be saved for backward" in str(error), error
        else:
            raise AssertionError("an inference tensor was saved for backward")
        outputs.append(head(features.clone()))
        del features
        yield


def outputs(s, k):
    return {"outputs": (k, 4 * s.batch * s.width)}


def tanhs(s, k):
    return {"tanh outputs": (2 * k, 4 * s.batch * s.width)}


def tanhs_and_masks(s, k):
    """On the CPU dropout multiplies by a mask of the input's dtype; on CUDA one kernel keeps a byte an element."""
    mask = s.batch * s.width * (1 if s.device == "cuda" else 4)
    return tanhs(s, k) | {"dropout masks": (k, mask)}


def features(s, k):
    return {"inputs of head": (k, 4 * s.batch * s.width)}


def everything(s, k):
    return tanhs_and_masks(s, k) | features(s, k)


def and_outputs(saved):
    return lambda s, k: saved(s, k) | outputs(s, k)


experiment = Experiment(
    setup=setup,
    sizes=SIZES,
    arms=[
        Arm(train, saved=everything, allocated=and_outputs(everything)),
        Arm(eval_alone, saved=tanhs, allocated=and_outputs(tanhs)),
        Arm(no_grad, saved=nothing, allocated=outputs),
        Arm(inference_mode, saved=nothing, allocated=outputs),
        Arm(set_grad_enabled, saved=nothing, allocated=outputs),
        Arm(no_grad_body, saved=features, allocated=and_outputs(features)),
        Arm(volatile, saved=nothing, allocated=outputs),
        Arm(volatile_contaminates, saved=nothing, allocated=outputs),
        Arm(all_frozen, saved=nothing, allocated=outputs),
        Arm(requires_grad_spreads, saved=tanhs_and_masks, allocated=and_outputs(tanhs_and_masks)),
        Arm(inference_tensor_refuses, saved=features, allocated=and_outputs(features)),
    ],
)
