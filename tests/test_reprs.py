"""What a prompt and a notebook print of the results: one line each, in words and units."""

import pytest
import torch

import memlab

pytestmark = pytest.mark.usefixtures("small_heap")


def test_what_grows_and_who_holds_it():
    kept = []
    weight = torch.ones(1000, requires_grad=True)
    found = memlab.growth(lambda: kept.append(weight.exp()), steps=5)
    assert repr(found).startswith("<Growth: +3.91 KiB, nodes +1 every step; held by kept")
    (owner,) = (each for each in found.owners if each.name == "kept")
    assert repr(owner).startswith("<Owner kept (local of test_what_grows_and_who_holds_it(), tests/test_reprs.py:")
    assert " alone, 3.91 KiB more every step, born at tests/test_reprs.py:" in repr(owner)
    assert repr(memlab.bill(kept[0])) == "<Bill: 3.91 KiB kept for backward; nodes: 2>"
    assert repr(memlab.growth(lambda: None, steps=5)) == "<Growth: none in 5 steps>"


def test_a_prediction():
    weight = torch.ones(1000, requires_grad=True)
    found = repr(memlab.predict(lambda: weight.exp().sum().backward(), card="24 GiB", steps=1))
    assert found.startswith("<Prediction: ") and " fits; " in found and found.endswith(" reserved at the peak>")
