"""Threads that are started inside a watch are measured, and do not notice."""

import gc
import sys
import threading
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import memlab
from memlab import dispatch, stepping, threads

START = threading.Thread.start


@pytest.fixture(autouse=True)
def start_is_put_back():
    yield
    assert threading.Thread.start is START


def run(*works):
    started = [threading.Thread(target=work) for work in works]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def forward(keep, width=64):
    weight = torch.ones(width, width, requires_grad=True)
    keep.append((torch.ones(8, width) @ weight).exp().sum())  # saves the input (made here) and exp's output


def saved_by_forward(width=64):
    return 2 * 8 * width * 4


def test_what_a_thread_saves_is_seen_with_its_line_module_and_node():
    keep, model = [], torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
    with memlab.watch() as seen:
        run(lambda: keep.append(model(torch.ones(2, 4)).sum()))
        saved = [line for line in seen.saved.lines if line.node == "TanhBackward0"]
        assert [(line.bytes, line.kind, line.module) for line in saved] == [(2 * 8 * 4, "own output", "1")]
        assert "test_threads.py" in saved[0].where
        keep.clear()
        assert seen.saved.bytes == 0
        assert seen.storages.bytes == 0


def test_threads_of_threads_and_of_pools():
    keep = []
    with memlab.watch() as seen:
        run(lambda: run(lambda: forward(keep)))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: forward(keep), range(5)))
        assert seen.saved.bytes == 6 * saved_by_forward()


def test_a_thread_that_nobody_watching_started_is_not_seen():
    keep, go, started = [], threading.Event(), threading.Event()

    def starts_another():
        started.set()
        go.wait()
        run(lambda: forward(keep))

    unwatched = threading.Thread(target=starts_another)
    unwatched.start()
    started.wait()
    with memlab.watch() as seen:
        go.set()
        unwatched.join()
        assert len(keep) == 1
        assert (seen.saved.bytes, seen.storages.peak) == (0, 0)


def test_many_threads_add_up():
    def work():
        for _ in range(50):
            keep = []
            forward(keep, 16)
            keep[0].backward()
        forward(kept, 16)

    kept, before = [], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with memlab.watch() as seen:
            run(*[work] * 8)
            assert seen.saved.bytes == 8 * saved_by_forward(16)
            # Of each: weight, input, exp's output and the sum.
            assert seen.storages.bytes == 8 * (16 * 16 + 2 * 8 * 16 + 1) * 4
            kept.clear()
            assert seen.saved.bytes == seen.storages.bytes == 0
    finally:
        sys.setswitchinterval(before)


def test_threads_share_a_card():
    def work():
        held = [torch.empty(1 << 20, dtype=torch.uint8) for _ in range(4)]
        barrier.wait()
        held.clear()
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1 << 30, dtype=torch.uint8)
        failed.append(threading.get_ident())

    failed, barrier = [], threading.Barrier(4)
    with memlab.watch(card="100 MiB") as seen:
        run(*[work] * 4)
        numbers = seen.card.read()
    assert len(failed) == 4
    assert (numbers["allocated"], numbers["allocated_peak"]) == (0, 16 << 20)
    assert seen.storages.peak == 16 << 20


def test_a_thread_that_outlives_its_watch_is_left_alone():
    ended, keep = threading.Event(), []

    def work():
        forward(keep)
        entered.set()
        ended.wait()
        forward(keep)
        keep[-1].backward()

    entered, thread = threading.Event(), threading.Thread(target=work)
    with memlab.watch() as seen:
        thread.start()
        entered.wait()
    before = seen.read()
    ended.set()
    thread.join()
    assert len(keep) == 2
    assert seen.read() == before
    keep.clear()
    assert seen.saved.bytes == seen.storages.bytes == 0


def test_exceptions_read_as_without(monkeypatch):
    def frames(watched):
        told = []
        monkeypatch.setattr(threading, "excepthook", lambda args: told.append(traceback.extract_tb(args.exc_traceback)))
        with memlab.watch() if watched else torch.enable_grad():
            run(lambda: 1 / 0)
        return [(frame.filename, frame.name) for frame in told[0]]

    assert frames(watched=True) == frames(watched=False)


def test_a_thread_goes_without_garbage_collection_and_keeps_no_trace():
    gc.disable()
    try:
        with memlab.watch():
            thread = threading.Thread(target=lambda: None)
            before = set(thread.__dict__)
            thread.start()
            thread.join()
            assert set(thread.__dict__) <= before
            gone = weakref.ref(thread)
            del thread
            assert gone() is None
    finally:
        gc.enable()


def test_a_thread_starts_once_and_may_fail_to_start():
    with memlab.watch():
        thread = threading.Thread(target=lambda: None)
        thread.start()
        with pytest.raises(RuntimeError, match="threads can only be started once"):
            thread.start()
        thread.join()
        never = threading.Thread(target=lambda: None)
        never._initialized = False
        with pytest.raises(RuntimeError, match=r"thread.__init__\(\) not called"):
            never.start()
        assert "_bootstrap_inner" not in never.__dict__


def test_who_replaces_start_meanwhile_keeps_it():
    keep, calls = [], []
    with memlab.watch():
        ours = threading.Thread.start

        def over_ours(self):
            calls.append(self)
            ours(self)

        threading.Thread.start = over_ours
    try:
        assert threading.Thread.start is over_ours
        with memlab.watch() as seen:
            run(lambda: forward(keep))
            assert seen.saved.bytes == saved_by_forward()
        assert threading.Thread.start is over_ours
        assert len(calls) == 1
    finally:
        threading.Thread.start = START


def test_what_joins_badly_does_not_hang_the_starter(monkeypatch):
    told, ran = [], []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def joins_badly():
        raise ValueError("no")

    with threads.followed(joins_badly):
        run(lambda: ran.append(1))
    assert ran == [1]


def test_steps_told_in_a_thread_are_heard():
    def work():
        forward(keep)
        memlab.step()
        forward(keep)

    keep = []
    with memlab.watch() as seen:
        run(work)
        assert {line.step for line in seen.saved.lines} == {0, 1}
    assert stepping._here.heard == ()


def test_under_a_history_threads_are_told():
    keep = []
    with memlab.watch(history=True) as seen:
        run(lambda: forward(keep))
    assert "threads that were started meanwhile are not seen under a history" in seen.blind


def test_threads_may_meet_an_operator_at_the_same_time():
    packets = [getattr(torch.ops.aten, name) for name in dir(torch.ops.aten)]
    operators = [
        each.default for each in packets if hasattr(each, "default") and id(each.default) not in dispatch._rules
    ]
    assert len(operators) > 100
    barrier, rules = threading.Barrier(4), []

    def meet():
        barrier.wait()
        rules.append([dispatch._rule_of(each) for each in operators])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run(*[meet] * 4)
    finally:
        sys.setswitchinterval(before)
    assert len(rules) == 4 and all(each == rules[0] for each in rules)
