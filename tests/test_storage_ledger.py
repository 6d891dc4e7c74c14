"""The storages' ledger settles late; what it says is what one that settles at every operator says, and arithmetic."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import memlab
from memlab import kernel, storage_ledger
from memlab.node_names import READS_PACKED
from memlab.probes.storages import Storages

# Create so many bytes, drop one of what is there, or let it grow in place.
actions = st.lists(
    st.tuples(st.sampled_from(["create", "drop", "grow"]), st.integers(0, 2000), st.integers(0, 1 << 30)), max_size=60
)


def perform(actions, sizes):
    held = []
    for action, nbytes, choice in actions:
        if action == "create":
            held.append(torch.empty(nbytes, dtype=torch.uint8))
            sizes.append(nbytes)
        elif held and action == "drop":
            del sizes[choice % len(held)], held[choice % len(held)]
        elif held:
            index = choice % len(held)
            held[index].resize_(sizes[index] + nbytes)
            sizes[index] += nbytes
        yield
    held.clear()


@settings(max_examples=60, deadline=None)
@given(actions)
def test_bytes_peak_and_order_are_those_of_arithmetic(actions):
    late, at_once = Storages(), Storages(keep_peak=True)
    peak, sizes = 0, []
    with at_once, late:
        for _ in perform(actions, sizes):
            peak = max(peak, sum(sizes))
        assert late.bytes == at_once.bytes == 0
    assert late.peak == at_once.peak == peak


@settings(max_examples=60, deadline=None)
@given(actions)
def test_reading_between_operators_changes_nothing(actions):
    sizes = []
    with Storages() as seen:
        for _ in perform(actions, sizes):
            assert seen.bytes == sum(sizes)
            assert seen.sizes == sizes


def test_what_waits_is_bounded():
    with Storages() as seen:
        for _ in range(5 * storage_ledger.MANY):
            torch.empty(1)
            assert len(seen.ledger._events) <= storage_ledger.MANY + 1
            assert len(seen.ledger._live) <= storage_ledger.MANY + 1
    assert seen.bytes == 0
    assert seen.peak == 4


def test_a_new_storage_at_an_old_address_is_not_the_old_one():
    with Storages() as seen:
        keys = set()
        for nbytes in range(1, 100):
            tensor = torch.empty(nbytes, dtype=torch.uint8)
            key = tensor.untyped_storage()._cdata
            keys.add(key)
            assert seen.ledger.made(key).bytes == nbytes
            del tensor
            assert seen.ledger.made(key) is None
    assert len(keys) < 99  # addresses were used again, or this shows nothing


def test_two_watches_know_who_saves_without_an_operator():
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x + 1

        @staticmethod
        def backward(ctx, grad):
            return grad

    x = torch.ones(4, requires_grad=True) * 2
    with memlab.watch() as outer, memlab.watch() as inner:
        kept = Keeps.apply(x)
    assert [line.node for line in inner.saved.lines] == ["KeepsBackward"]
    assert [line.node for line in outer.saved.lines] == ["KeepsBackward"]
    del kept


def test_sizes_are_in_the_order_of_creation_when_an_address_is_used_again():
    def make(nbytes):
        return torch.empty(nbytes, dtype=torch.uint8)

    def key(tensor):
        return tensor.untyped_storage()._cdata

    with Storages() as seen:
        before = {key(make(1)) for _ in range(50)}
        held = [make(2), make(3)]
        while key(held[-1]) not in before:
            held.append(make(len(held) + 2))
            assert len(held) < 1000, "no address was used again: this shows nothing"
        held = held[:1] + held[-1:]
        assert seen.sizes == [2, held[1].nbytes]


def test_unsafe_splits_are_views_whatever_their_schema_says():
    x = torch.ones(8, 8)
    with memlab.watch() as seen:
        parts = [*x.unsafe_chunk(2), *x.unsafe_split(3), *x.unsafe_split_with_sizes([3, 5])]
    assert len(parts) == 7 and seen.storages.bytes == seen.storages.peak == 0


def test_what_torch_tensor_makes_is_counted_and_what_numpy_has_is_not():
    array = np.ones(100)
    with Storages() as seen:
        made = torch.tensor([1.0, 2.0, 3.0])
        copied = torch.tensor(array)
        shared = [torch.from_numpy(array), torch.as_tensor(array), made[torch.tensor([0, 1])].view(-1)]
        assert seen.sizes == [12, 800, 8]
    del made, copied, shared
    assert seen.bytes == 0


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("by_kernel", [True, False])
def test_what_python_makes_a_storage_for_is_counted_and_what_was_there_is_not(by_kernel, inference, monkeypatch):
    monkeypatch.setattr(kernel, "is_available", lambda: by_kernel)
    before, pickled = torch.ones(100), pickle.dumps(torch.ones(30))
    with torch.inference_mode(inference), Storages() as seen:
        shared = [torch.empty(0).set_(before.untyped_storage()), torch.empty(0).set_(before)]
        assert not any(seen.sizes)
        made = [copy.deepcopy(before), pickle.loads(pickled), torch.empty(0).set_(torch.UntypedStorage(8))]
        made.append(torch.empty(0).set_(made[0].untyped_storage(), 0, (50,)))
        assert [each for each in seen.sizes if each] == [400, 120, 8]
        del made[:2]
        assert sum(seen.sizes) == 400 + 8  # the last one shares it
    assert len(shared) == 2


@pytest.mark.parametrize("by_kernel", [True, False])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_what_a_file_or_another_process_hands_over_is_counted(by_kernel, monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "is_available", lambda: by_kernel)
    weights, data = torch.ones(100), [torch.ones(16)] * 4
    torch.save({"whole": weights, "part": weights[:50], "other": torch.ones(30)}, tmp_path / "weights.pt")
    for options in ({}, {"mmap": True}):
        with Storages() as seen:
            loaded = torch.load(tmp_path / "weights.pt", **options)
            assert [each for each in seen.sizes if each] == [400, 120]
            del loaded
            assert not sum(seen.sizes)
    with Storages() as seen:
        batches = list(DataLoader(data, batch_size=2, num_workers=1))
        assert [each for each in seen.sizes if each == 2 * 16 * 4] == [128, 128]
        del batches
    assert 128 not in seen.sizes


@pytest.mark.usefixtures("small_heap")
def test_copies_of_the_weights_that_pile_up_are_growth():
    model, kept = torch.nn.Linear(10, 10), []
    found = memlab.growth(lambda: kept.append(copy.deepcopy(model.state_dict())), steps=5)
    assert (found.grows, found.bytes_per_step) == (True, 440)
    assert [owner.name for owner in found.owners[:1]] == ["kept"] * READS_PACKED
