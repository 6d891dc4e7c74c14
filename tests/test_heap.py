"""The heap that memory checks read after every run: small, complete, and given back as it was."""

import gc

import pytest
import torch

from memlab.guard.heap import read, small_heap


def nodes_left():
    gc.collect()  # garbage from before stays where it is meanwhile
    with small_heap() as older:
        return read([], older).nodes


def test_walks_inside_visit_only_what_is_made_inside():
    with small_heap() as older:
        inside = len(gc.get_objects())
        held = torch.ones(3, requires_grad=True).exp()
        assert any(each is held for each in gc.get_objects())
    assert inside < len(gc.get_objects()) / 10
    assert all(each is not held for each in older())


def test_tensors_from_before_are_read_too():
    before = nodes_left()
    held = torch.ones(3, requires_grad=True).exp()
    assert nodes_left() == before + 2
    del held
    assert nodes_left() == before


@pytest.fixture
def frozen():
    gc.freeze()
    yield
    gc.unfreeze()


def test_what_somebody_froze_stays_frozen(frozen):
    count = gc.get_freeze_count()
    with small_heap():
        assert gc.get_freeze_count() == count
    assert gc.get_freeze_count() == count
