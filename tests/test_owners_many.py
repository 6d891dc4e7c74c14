"""What a look for owners costs for each tensor: counted in lines of Python, which no other process can delay."""

import sys
from collections import deque

import holders
import pytest
import torch
from torch import nn

import memlab
from memlab import origins
from memlab.ownership.survey import survey

pytestmark = [holders.NEEDS_PACKED, pytest.mark.usefixtures("small_heap")]
_WALKS = ("memlab.ownership.anchors", "memlab.ownership.heap", "memlab.ownership.frames")  # over the whole heap


_ON_THE_WAY = {f"memlab.ownership.{each}" for each in ("heap", "links", "climb", "assign", "seal")}


class Slotted:
    __slots__ = ("tensor",)

    def __init__(self, tensor):
        self.tensor = tensor


class Link:
    def __init__(self, tensor, after):
        self.tensor, self.after = tensor, after


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


ALIKE = {
    "objects": lambda tensors: [Thing(each) for each in tensors],
    "slots": lambda tensors: [Slotted(each) for each in tensors],
    "tuples": lambda tensors: [(0.5, each) for each in tensors],
    "transitions": lambda tensors: deque(zip(tensors, tensors[1:] + tensors[:1], strict=True)),
    "three deep": lambda tensors: {index: Thing({"step": [each]}) for index, each in enumerate(tensors)},
    "with a __dict__": lambda tensors: [with_dict(Thing(each)) for each in tensors],
    "some here, some there": lambda tensors: ([Thing(each) for each in tensors], tensors[::2]),
}


@pytest.mark.parametrize("store", ALIKE)
def test_alike_holders_are_climbed_through_at_once(store):
    """No line of Python runs for each of them on the way from tensors to names, nor back: some do for 512 objects."""
    few, many = (lines(ALIKE[store], count, _ON_THE_WAY.__contains__) for count in (500, 1500))
    assert many - few < 400


def with_dict(thing):
    """From Python 3.11 on an object has none before somebody asks."""
    assert vars(thing)
    return thing


def test_the_path_leads_through_an_object_that_has_a_dict():
    loss = torch.ones(1, requires_grad=True).exp()
    held = {"last": [with_dict(Thing(loss))]}
    del loss
    (owner,) = (each for each in memlab.owners() if each.name == "held")
    assert owner.path.partition(") -> ")[2] == "dict['last'] -> list[0] -> Thing.tensor -> Tensor -> ExpBackward0"
    assert owner.through == ("dict", "list", "object")
    assert held


def chain(tensors):
    last = None
    for each in tensors:
        last = Link(each, last)
    return last


def test_a_long_chain_takes_steps_for_each_link_but_not_for_pairs_of_them():
    few, more, many = (lines(chain, count, _ON_THE_WAY.__contains__) for count in (250, 500, 1000))
    assert more - few < many - more <= 1.1 * 2 * (more - few)


def is_counted(name):
    return name.startswith("memlab.ownership") and name not in _WALKS


def lines(make, count, counts=is_counted):
    """Return how many lines of Python one look runs in the modules that ``counts`` names."""
    tensors = [torch.ones(2) for _ in range(count)]
    made = {origins.storage_key(each): 8 for each in tensors}
    held = make(tensors)
    del tensors
    ran = 0

    def trace(frame, event, _):
        nonlocal ran
        name = frame.f_globals["__name__"]
        if counts(name):
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
