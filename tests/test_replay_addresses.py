"""A driver gives returned addresses again; up to torch 2.11 the lowest one decided between free blocks of one size."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memlab.allocator import Allocator
from memlab.allocator.driver import Device
from memlab.snapshots import content, pickles, replay

MIB = 1 << 20
SIZES = [MIB * 3 // 2, 9 * MIB, 18 * MIB + 1]
"""Few, so that free blocks of one size meet."""


class Driver(Device):
    """Gives its addresses in another order than theirs."""

    def __init__(self, total, numbers):
        super().__init__(total, 0)
        self.numbers = list(numbers)

    def reserve(self, nbytes):
        return super().reserve(0) + (self.numbers.pop() << 32)


def recorded(rule, numbers, requests, total=1 << 32):
    """Return what a program of mallocs (a size) and frees (the number of a block) wrote down, and the card after it."""
    card = Allocator(total=total, tie_break=rule)
    card.device = Driver(total, numbers)
    card.record_history(10_000)
    live = []
    for what, number in requests:
        if what == "malloc":
            live.append(card.malloc(SIZES[number % len(SIZES)]))
        elif live:
            card.free(live.pop(number % len(live)))
    return replay.history(content.load(io.BytesIO(pickles.dumps(card.snapshot()))), 0, capacity=total), card


def same(outcome, card):
    return outcome.died is None and (
        (outcome.allocated, outcome.peak_allocated, outcome.reserved, outcome.peak_reserved)
        == (card.allocated, card.peak_allocated, card.reserved, card.peak_reserved)
    )


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(replay.TIE_BREAKS),
    st.permutations(range(100)),
    st.lists(st.tuples(st.sampled_from(["malloc", "free"]), st.integers(0, 100)), min_size=60, max_size=100),
)
def test_a_replay_is_exact_wherever_the_driver_put_the_segments(rule, numbers, requests):
    found, card = recorded(rule, numbers, requests)
    assert same(replay.replay(found, found.conf, rule), card)
    assert same(replay.closest(found)[1], card)


@pytest.mark.parametrize("rule", replay.TIE_BREAKS)
def test_the_rule_of_the_torch_that_wrote_it_is_found(rule):
    # Two segments, the younger one below, have 2 MiB left: that which serves the small block is not whole at the end.
    requests = [("malloc", 1)] * 4 + [("malloc", 0), ("free", 0), ("free", 0), ("malloc", 2)]
    found, card = recorded(rule, [2, 0, 1], requests)
    assert replay.closest(found)[0] == rule
    assert same(replay.closest(found)[1], card)


def runs(found, monkeypatch):
    """Return the rules by which a history is replayed when its outcomes are asked for."""
    made = []

    def card(history, conf, rule):
        made.append(rule)
        return real(history, conf, rule)

    real = replay._card
    monkeypatch.setattr(replay, "_card", card)
    outcomes = found.outcomes
    assert set(outcomes) == set(replay.TIE_BREAKS)
    return made


@pytest.mark.parametrize(("numbers", "rules"), [([2, 1, 0], ["segment"]), ([2, 0, 1], ["segment", "address"])])
def test_where_addresses_ascend_one_run_is_that_of_both_rules(numbers, rules, monkeypatch):
    requests = [("malloc", 1)] * 4 + [("malloc", 0), ("free", 0), ("free", 0), ("malloc", 2)]
    found, _ = recorded("segment", numbers, requests)
    assert runs(found, monkeypatch) == rules
