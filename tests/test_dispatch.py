"""Where the kernel's key is torch's own, a dispatch mode feeds the ledgers: it sees the same, and disturbs no more."""

import threading

import graphs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from test_undisturbed import CHECKS

import memlab
from memlab import kernel
from memlab.dispatch import Mode


@pytest.fixture
def by_mode(monkeypatch):
    monkeypatch.setattr(kernel, "_others", None)


def facts(line):
    return line.bytes, line.kind, line.shape, line.dtype, line.node, line.saved, line.exclusive


def watched(program, leaves):
    with memlab.watch() as seen:
        kept = graphs.run(program, leaves)
        lines = sorted(facts(line) for line in seen.saved.lines)
        held = seen.storages.sizes
        if kept.requires_grad:
            kept.sum().backward()
    return lines, held, seen.storages.bytes, seen.saved.peak


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=graphs.instructions, requires_grad=graphs.leaves)
def test_both_ways_see_the_same(program, requires_grad, monkeypatch):
    """But for the lines' operators that a mode makes torch run out of place: those have another name alone."""
    leaves = graphs.make_leaves([True for _ in requires_grad])
    by_kernel = watched(program, leaves)
    for leaf in leaves:
        leaf.grad = None
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "_others", None)
        by_mode = watched(program, leaves)
    assert by_mode == by_kernel


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_mode_does_not_disturb(check, by_mode):
    check()


def test_a_mode_is_taken_where_the_key_is_not_free(by_mode):
    with memlab.watch() as seen:
        assert type(seen.storages._mode) is Mode
        assert not torch._C._dispatch_tls_is_dispatch_key_included(kernel._KEY)
    assert kernel._take_key() is None  # as where torch has a kernel there: this one is taken, by ours


def test_threads_are_seen_by_a_mode(by_mode):
    held = []
    with memlab.watch() as seen:
        worker = threading.Thread(target=lambda: held.append(torch.ones(100)))
        worker.start()
        worker.join()
        assert seen.storages.sizes == [400]
