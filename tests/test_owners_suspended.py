"""What a suspended generator or coroutine holds is named, on every Python, and let go when the generator lets go."""

import asyncio
import gc
import sys
import types
import weakref

import holders
import pytest
from holders import owners

from memlab.ownership import frames

pytestmark = [holders.NEEDS_PACKED, pytest.mark.usefixtures("small_heap", "nothing_else_alive")]


def advanced(generator):
    next(generator)
    return generator


def in_a_local(make):
    kept = make()
    yield
    del kept
    yield


def in_a_cell_of_nobody_else(make):
    kept = [make()]
    (lambda: kept)()
    yield


def in_a_call_under_way(make):
    print(make(), (yield))


def in_a_loop(make):
    for _ in iter([[make()]]):
        _ = None
        yield


def in_an_inner_one(make):
    yield from in_a_local(make)


def while_an_error_is_handled(make):
    try:
        raise_with(make())
    except KeyError:
        yield


def raise_with(loss):
    raise KeyError(len(loss.shape))


@pytest.mark.parametrize(
    ("waits", "name", "where"),
    [
        (in_a_local, "kept", "local of generator in_a_local(), "),
        (in_a_cell_of_nobody_else, "kept", "local of generator in_a_cell_of_nobody_else(), "),
        (in_a_call_under_way, "a value in use", "in generator in_a_call_under_way(), "),
        (in_a_loop, "a value in use", "in generator in_a_loop(), "),
        (in_an_inner_one, "kept", "local of generator in_a_local(), "),
        (while_an_error_is_handled, "a value in use", "in generator while_an_error_is_handled(), "),
    ],
)
def test_what_a_suspended_generator_holds_has_a_name(make, waits, name, where):
    generator = advanced(waits(make))
    (owner,) = owners()
    assert owner.name.startswith(name) and where in owner.where, owner
    assert owner.exclusive_bytes == owner.bytes > 0 and not owner.freed_by_gc
    generator.close()
    del generator
    assert owners() == []


def test_a_coroutine_that_awaits_another_is_not_its_owner(make):
    @types.coroutine
    def pause():
        yield

    async def inner():
        deep = make()
        await pause()
        return deep

    async def outer():
        await inner()

    coroutine = outer()
    coroutine.send(None)
    (owner,) = owners()
    assert (owner.name, owner.kind) == ("deep", "coroutine")
    coroutine.close()


def test_tasks_of_a_loop_are_named_from_within(make):
    async def work():
        mine = make()
        await asyncio.sleep(3600)
        return mine

    async def main():
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        (owner,) = owners()
        task.cancel()
        return owner

    owner = asyncio.run(main())
    assert (owner.name, owner.kind) == ("mine", "coroutine")


def test_a_running_generator_s_variable_counts_once(make):
    def run():
        mine = make()
        yield owners()
        del mine

    (owner,) = next(run())
    assert (owner.name, owner.kind, owner.exclusive_bytes) == ("mine", "local", owner.bytes)


def test_a_generator_that_holds_itself_is_freed_by_gc(make):
    def alone():
        me = yield
        loss = make()
        yield me, loss

    gc.disable()
    try:
        generator = advanced(alone())
        generator.send(generator)
        (owner,) = owners()
        assert owner.name in ("generator", "me", "loss") and not owner.freed_by_gc
        del generator
        (owner,) = owners()
        assert (owner.name, owner.freed_by_gc) == ("loss", True)
    finally:
        gc.enable()
    gc.collect()
    assert owners() == []


def only_tensor_of(frame):
    """Look at the variable without asking for ``f_locals``, which is what must not happen."""
    kept = dict(frames.slots(frame))["kept"]
    return next(each for each in gc.get_objects() if id(each) == kept)


@pytest.mark.parametrize("is_traced", [False, True], ids=["plain", "under a trace function"])
def test_a_look_leaves_nothing_in_the_frame(make, is_traced):
    before = sys.gettrace()
    generator = advanced(in_a_local(lambda: make().clone()))
    frame = generator.gi_frame
    alive = weakref.ref(only_tensor_of(frame))
    held = sorted(map(id, gc.get_referents(frame)))
    if is_traced:
        sys.settrace(lambda *_: None)
    try:
        (owner,) = owners()
    finally:
        sys.settrace(before)
    assert owner.name == "kept"
    assert sorted(map(id, gc.get_referents(frame))) == held
    next(generator)
    assert alive() is None


def test_a_snapshot_that_somebody_else_took_is_said(make):
    """Before Python 3.13, ``f_locals`` leaves a dict in the frame that holds what the generator has dropped since."""
    generator = advanced(in_a_local(make))
    assert "kept" in generator.gi_frame.f_locals
    next(generator)
    found = owners()
    if sys.version_info >= (3, 13):
        assert found == []
    else:
        (owner,) = found
        assert (owner.name, owner.kind) == ("a value in use", "temporary")
        assert "dict['kept']" in owner.path
    generator.close()


def test_names_are_found_where_the_slots_cannot_be_read(make, monkeypatch):
    monkeypatch.setattr(frames, "READS_SLOTS", False)
    monkeypatch.setattr(frames, "SHOWS_CONTENT", True)
    for waits in (in_a_local, in_a_cell_of_nobody_else):
        generator = advanced(waits(make))
        (owner,) = owners()
        assert (owner.name, owner.kind) == ("kept", "generator")
        generator.close()
