"""What a look for owners costs for each tensor: counted in lines of Python, which no other process can delay."""

import sys

import holders
import pytest
import torch
from torch import nn

from memlab import origins
from memlab.ownership.survey import survey

pytestmark = [holders.NEEDS_PACKED, pytest.mark.usefixtures("small_heap")]
_WALKS = ("memlab.ownership.anchors", "memlab.ownership.heap", "memlab.ownership.frames")  # over the whole heap


class Thing:
    def __init__(self, tensor):
        self.tensor = tensor


def attributes(tensors):
    thing = Thing(tensors[0])
    vars(thing).update({f"number{index}": each for index, each in enumerate(tensors)})
    return thing


def buffers(tensors):
    module = nn.Module()
    for index, each in enumerate(tensors):
        module.register_buffer(f"number{index}", each)
    return module


STORES = {  # and lines for each tensor that lies there
    "list": (list, 50),
    "dict": (lambda tensors: dict(enumerate(tensors)), 50),
    "lists": (lambda tensors: [tensors[start::10] for start in range(10)], 50),
    "objects": (lambda tensors: [Thing(each) for each in tensors], 120),
    "closures": (lambda tensors: [lambda each=each: each for each in tensors], 300),
    "attributes": (attributes, 500),
    "buffers": (buffers, 500),
}


@pytest.mark.parametrize("store", STORES)
def test_cost_grows_with_the_tensors_and_not_with_pairs_of_them(store):
    make, most = STORES[store]
    few, more, many = (lines(make, count) for count in (250, 500, 1000))
    assert many - more <= 1.1 * 2 * (more - few)
    assert many - more <= most * 500


def lines(make, count):
    """Return how many lines of Python one look runs, those of walks over the heap aside."""
    tensors = [torch.ones(2) for _ in range(count)]
    made = {origins.storage_key(each): 8 for each in tensors}
    held = make(tensors)
    del tensors
    ran = 0

    def trace(frame, event, _):
        nonlocal ran
        name = frame.f_globals["__name__"]
        if name.startswith("memlab.ownership") and name not in _WALKS:
            ran += event == "line"
            return trace
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        owners = survey(made=made).owners
    finally:
        sys.settrace(before)
    assert sum(each.elements for each in owners if each.name.startswith("held")) == count
    del held
    return ran
