"""Many functions of one code: the store that holds them is named if each step leaves one, else each one's variable."""

import functools
import gc

import holders
import pytest
import torch
from holders import owners
from torch import nn

from memlab.ownership import bound

pytestmark = [holders.NEEDS_PACKED, pytest.mark.usefixtures("small_heap", "nothing_else_alive")]


def reporter(loss):
    return lambda: loss


def later(loss):
    yield
    print(loss)


def started(generator):
    next(generator)
    return generator


async def awaited(loss):
    await Pause()
    return loss


class Pause:
    def __await__(self):
        yield


def sent(coroutine):
    coroutine.send(None)
    return coroutine


def decorated(function):
    @functools.wraps(function)
    def wrapper():
        return function()

    return wrapper


EACH_STEP = {
    "a closure": reporter,
    "a closure in a tuple": lambda loss: ("loss", reporter(loss)),
    "a partial of a closure": lambda loss: functools.partial(reporter(loss)),
    "a closure in a closure": lambda loss: decorated(reporter(loss)),
    "a closure over a tuple": lambda loss: reporter((loss, 1)),
    "a default": lambda loss: lambda loss=loss: loss,
    "a keyword's default": lambda loss: lambda *, loss=loss: loss,
    "a generator": lambda loss: started(later(loss)),
    "a coroutine": lambda loss: sent(awaited(loss)),
}


@pytest.mark.parametrize("way", EACH_STEP)
def test_a_store_of_functions_is_the_owner(way, make):
    store = [EACH_STEP[way](make()) for _ in range(3)]
    found = owners()
    assert [(owner.name, owner.kind, owner.elements, owner.tensors) for owner in found] == [("store", "local", 3, 3)]
    within = found[0].path.partition(" -> list[2] -> ")[2]
    assert within.startswith("tuple[1] -> ") is (way == "a closure in a tuple")
    assert "() -> Tensor" in within or "() -> tuple[0] -> Tensor" in within
    last = store[-1]
    assert [owner.name for owner in owners() if owner.exclusive_bytes] == ["store"]
    assert last is not None


def bare(make):
    one, two = reporter(make()), reporter(make())
    return (one, two), {"loss"}


def a_list_each(make):
    def keeper():
        kept = [make()]
        return lambda: kept

    return [keeper() for _ in range(3)], {"kept"}


def a_total_each(make):
    def adder():
        total = make()

        def add():
            nonlocal total
            total = total + make()

        return add

    return [adder() for _ in range(3)], {"total"}


def a_total_bound_further_in(make):
    def adder():
        total = make()

        def outer():
            def inner():
                nonlocal total
                total = total + make()

            return inner

        return outer

    return [adder() for _ in range(3)], {"total"}


def one_for_all(make):
    shared = make()
    return [lambda: shared for _ in range(3)], {"shared"}


def streams(make):
    def stream():
        state = make()
        while True:
            yield
            state = state + make()

    return [started(stream()) for _ in range(3)], {"state"}


def a_hook_for_each_layer(make):
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    for layer in model:
        layer.register_forward_hook(reporter(make()))
    return model, {"loss"}


def nobody_holds_them(make):
    store = [reporter(make()), reporter(make())]
    store.append(store)
    return None, {"loss"}


@pytest.mark.parametrize(
    "way",
    [
        a_list_each,
        a_total_each,
        a_total_bound_further_in,
        one_for_all,
        streams,
        a_hook_for_each_layer,
        nobody_holds_them,
    ],
    ids=lambda way: way.__name__,
)
def test_a_variable_that_may_grow_by_itself_is_the_owner(way, make):
    gc.disable()
    try:
        before = {owner.name for owner in owners()}
        kept, expected = way(make)
        assert {owner.name for owner in owners()} - before == expected
        assert kept is not make
    finally:
        gc.enable()
        gc.collect()


def test_functions_of_one_code_with_a_name_each_keep_their_variables(make):
    (one, two), expected = bare(make)
    assert {owner.name for owner in owners()} == expected
    assert one is not two


def test_hooks_of_a_tensor_are_named(make):
    weight, other = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    for _ in range(3):
        weight.register_hook(reporter(make()))
        other.register_post_accumulate_grad_hook(reporter(make()))
    assert sorted((owner.name, owner.kind, owner.elements) for owner in owners()) == [
        ("other._post_accumulate_grad_hooks", "hook", 3),
        ("weight._backward_hooks", "hook", 3),
    ]


def binds_before_and_after():
    early = 1
    for _ in ():
        carried = early
        yield carried
    while True:
        late = 2
        yield late
        break
    last = 3
    yield last


def test_what_a_generator_binds_in_a_loop():
    found = {
        name
        for name in ("early", "carried", "late", "last", "_")
        if bound.rebinds_in_loop(binds_before_and_after.__code__, name)
    }
    assert found >= {"carried", "_"} and not found & {"early", "last"}
