"""What wrapper subclasses hold is counted in their place: their own storage has a size and no memory."""

import pytest
import torch
from holders import NEEDS_PACKED
from hypothesis import given, settings
from hypothesis import strategies as st

import memlab
from memlab import graph, wrappers
from memlab.node_names import READS_PACKED

pytestmark = pytest.mark.skipif(
    not graph.NODES_KEEP_WRAPPERS, reason="below this torch's modes inner tensors are unseen"
)


class Silent(torch.Tensor):
    """Wraps a tensor; does not tell torch.compile."""

    @staticmethod
    def __new__(cls, inner):
        found = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        return found.requires_grad_(inner.requires_grad)

    def __init__(self, inner):
        self.inner = inner.detach()

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        out = op(*map(unwrapped, args), **{name: unwrapped(each) for name, each in (kwargs or {}).items()})
        return cls(out) if isinstance(out, torch.Tensor) else out


class Telling(Silent):
    def __tensor_flatten__(self):
        return ["inner"], None


class Broken(Silent):
    def __tensor_flatten__(self):
        raise ValueError("not today")


def unwrapped(thing):
    return thing.inner if isinstance(thing, Silent) else thing


def two_layers(x, weight, bias):
    return (x @ weight).exp().mul(2).sin().add(bias).tanh().mean()


def saved(make):
    """Return the bytes counted by a watch, by a bill read beside it, and by one read without."""
    given = [make(torch.ones(4, 8)), make(torch.ones(8, 8)).requires_grad_(), make(torch.ones(8)).requires_grad_()]
    with memlab.watch() as seen:
        out = two_layers(*given)
    told = seen.saved.bytes, memlab.bill(out).bytes, memlab.bill(two_layers(*given)).bytes
    out.backward(make(torch.ones(())))
    assert seen.saved.bytes == 0
    assert all(each.grad is not None for each in given[1:])
    return told, seen


@NEEDS_PACKED
@pytest.mark.parametrize("make", [Telling, lambda x: Telling(Telling(x))], ids=["one", "in another"])
def test_a_wrapped_program_keeps_what_the_plain_one_keeps(make):
    plain, _ = saved(lambda x: x)
    assert plain[0] == 3 * 4 * 32  # exp's own output, the input of sin, the output of tanh
    assert saved(make)[0] == plain


def test_parameters_and_inputs_that_are_wrapped_are_given():
    weight = torch.nn.Parameter(Telling(torch.ones(8, 8)))
    x = Telling(torch.ones(4, 8))
    with memlab.watch() as seen:
        out = x @ weight
    assert [(line.kind, line.bytes) for line in seen.saved.lines] == [("input", 4 * 32)]
    del out
    with memlab.watch() as seen:
        y = (x.requires_grad_() @ weight).exp()
    assert {(line.kind, line.bytes) for line in seen.saved.lines} == {
        ("input", 4 * 32),
        ("parameter", 8 * 32),
        ("own output", 4 * 32),
    }
    assert seen.saved.bytes == 4 * 32
    del y
    assert seen.saved.bytes == 0 and not seen.saved.lines


@settings(deadline=None)  # the first one loads torch's own module
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_jagged_nested_tensors_count_their_values(lengths):
    parts = [torch.ones(length, 3) for length in lengths]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
    with memlab.watch() as seen:
        out = (nested * 2).sin()
    assert seen.saved.bytes == 4 * 3 * sum(lengths)
    del out
    assert seen.saved.bytes == 0


@pytest.mark.parametrize("kind", [Silent, Broken])
def test_a_wrapper_that_does_not_say_where_its_data_is_is_named(kind):
    _, seen = saved(kind)
    if kind is Silent:
        assert seen.blind == ["what a Silent holds is not seen: it has no __tensor_flatten__"]
    else:
        assert seen.blind == ["what a Broken holds is not seen: it has no __tensor_flatten__"]
    assert wrappers.inner(kind(torch.ones(4))) == []
    if READS_PACKED:
        bill = memlab.bill(kind(torch.ones(4)).requires_grad_().exp())
        assert bill.unseen == {f"ExpBackward0 ({kind.__name__})": 1}


@NEEDS_PACKED
@pytest.mark.parametrize("watched", [True, False])
def test_a_bill_counts_each_of_several_tensors_that_a_users_hook_keeps(watched):
    def pack(tensor):
        return tensor.to(torch.int8), tensor.abs().amax(0)

    def unpack(kept):
        return kept[0].float() * kept[1]

    x = torch.ones(64, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        if watched:
            with memlab.watch() as seen, torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                out = x.exp().sin()
            assert seen.saved.bytes == 2 * (64 * 64 + 4 * 64)
        else:
            out = x.exp().sin()
    assert memlab.bill(out).bytes == 2 * (64 * 64 + 4 * 64)
