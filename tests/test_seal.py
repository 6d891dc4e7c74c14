"""Spreading sets of names over what containers hold: against a loop that tries every link until nothing changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memlab.ownership import seal

IDS = st.integers(1, 30)
LINKS = st.lists(st.tuples(IDS, IDS), max_size=150)
MASKS = st.dictionaries(IDS, st.integers(1, 1 << 90), max_size=6)


def until_nothing_changes(masks, links):
    found = dict(masks)
    before = None
    while before != found:
        before = dict(found)
        for holder, held in links:
            mask = found.get(holder, 0) | found.get(held, 0)
            if mask:
                found[held] = mask
    return found


@pytest.mark.parametrize("few", [0, 3, 1000], ids=["all at once", "both", "one by one"])
@settings(deadline=None)
@given(masks=MASKS, links=LINKS)
def test_spreads_as_far_as_links_lead(few, masks, links):
    ends = np.array(links, np.intp).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal, "_FEW", few)
        assert seal.spread(masks, *ends.T) == until_nothing_changes(masks, links)


def test_many_names_of_one_object():
    holders = np.arange(1, 301)
    masks = {each: 1 << each for each in holders.tolist()}
    assert seal.spread(masks, holders, np.full(300, 999))[999] == sum(masks.values())
