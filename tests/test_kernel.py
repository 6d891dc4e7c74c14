"""The kernel between autograd and the backends: sees all that is made, and torch does what it does without it."""

import subprocess
import sys
import textwrap
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

import memlab
from memlab import kernel
from memlab.probes.storages import Storages

KEY = torch._C._dispatch_key_parse("Fake")
is_on = torch._C._dispatch_tls_is_dispatch_key_included
CALLS = {
    "add a number": lambda x: x + 1,
    "number first": lambda x: 1 - x,
    "divide by a number": lambda x: x / 3,
    "scaled sum": lambda x: torch.add(x, x, alpha=2),
    "in place": lambda x: x.exp().mul_(2.5).sub_(x),
    "complex number": lambda x: x * 1j,
    "promoted": lambda x: (x > 1) * 2.5 + x.to(torch.float64),
    "copy": lambda x: x.new_zeros(x.shape).copy_(x),
    "no tensor given": lambda x: torch.arange(6.0) + torch.full((6,), 2.0),
    "several outputs": lambda x: x.view(2, 3).topk(2).values,
    "list of tensors": lambda x: torch.cat([x, x]).split(4)[0],
    "foreach": lambda x: torch._foreach_add([x, x], 1.0)[0],
    "out": lambda x: torch.sin(x, out=torch.empty(0)),
    "made of others": lambda x: torch.nn.functional.linear(x.view(2, 3), torch.ones(4, 3)),
    "sparse": lambda x: (x.view(2, 3).to_sparse() * 2).to_dense(),
}


def sizes(seen):
    return sorted(seen.sizes)


@pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])
@pytest.mark.parametrize("name", CALLS)
def test_values_and_layouts_are_the_same(name, inference):
    with torch.inference_mode(inference):
        x = torch.linspace(0.5, 3, 6)
        expected = CALLS[name](x)
        with Storages() as seen:
            got = CALLS[name](x)
        assert torch.equal(got, expected)
        assert (got.dtype, got.stride(), got.requires_grad) == (expected.dtype, expected.stride(), False)
        assert seen.bytes >= got.untyped_storage().nbytes() > 0


@pytest.mark.parametrize(
    "name", ["add a number", "divide by a number", "several outputs", "made of others", "promoted"]
)
def test_no_memory_is_missed_or_invented(name):
    """torch.profiler's allocations, from C++, minus what kernels take inside and free before they return."""
    with Storages() as seen, torch.profiler.profile(profile_memory=True, acc_events=True) as profiler:
        kept = CALLS[name](torch.linspace(0.5, 3, 6))
    events = [each.nbytes() for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    assert sum(events) == seen.bytes == kept.untyped_storage().nbytes()


def test_inference_mode_sees_inside_what_is_made_of_others():
    x, w, b = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)

    def peak(context):
        with context, Storages() as seen:
            torch.nn.functional.layer_norm(torch.nn.functional.linear(x, w, b), (4,)).reshape(-1)
        return seen.peak

    assert peak(torch.inference_mode()) == peak(torch.no_grad()) > 0


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.prod(1),
        lambda x: x.cumprod(1),
        lambda x: torch.linalg.det(x @ x.T + torch.eye(6)),
        lambda x: x[:, 1:],
    ],
    ids=["prod", "cumprod", "det", "slice"],
)
def test_autograd_takes_the_same_formulas(call):
    """Under an empty TorchDispatchMode some of these differ in the last bits."""

    def grads():
        x = torch.linspace(0.3, 1.7, 60).view(6, 10).requires_grad_()
        call(x).sum().backward()
        return x.grad

    expected = grads()
    with memlab.watch():
        assert torch.equal(grads(), expected)


class Calls(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def test_a_function_mode_sees_the_same_calls():
    def calls():
        x = torch.linspace(0, 1, 4, requires_grad=True)
        with Calls() as calls:
            ((x + 1) * 2).exp().sum().backward()
        return calls.seen

    expected = calls()
    with memlab.watch():
        assert calls() == expected


class Twice(TorchDispatchMode):
    """Makes a tensor of its own for each operator."""

    def __init__(self):
        super().__init__()
        self.seen, self.kept = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        self.kept.append(torch.ones(100))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("outside", [True, False])
def test_what_users_modes_make_is_seen_and_they_see_the_same(outside):
    x = torch.ones(4)
    with Twice() as plain:
        x.view(2, 2).exp()
    seen, twice = Storages(), Twice()
    first, second = (twice, seen) if outside else (seen, twice)
    with first, second:
        held = x.view(2, 2).exp()
    assert twice.seen == plain.seen
    if kernel._IS_ABOVE_MODES:
        assert seen.sizes == [16] and any("TorchDispatchMode" in each for each in seen.blind)
        return
    assert sizes(seen) == [16, *[400] * len(twice.kept)]
    del held


class Wrapper(Tensor):
    """A tensor around another, as quantised and distributed tensors are."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def unwrap(each):
            return each.inner if isinstance(each, Wrapper) else each

        def wrap(each):
            return Wrapper(each) if isinstance(each, Tensor) else each

        out = tree_map(wrap, func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {})))
        return return_and_correct_aliasing(func, args, kwargs or {}, out)


def test_the_memory_inside_wrapped_tensors_is_seen():
    x = Wrapper(torch.ones(8))
    with Storages() as seen:
        y = (x + 1).mul(2)
        counted = y if kernel._IS_ABOVE_MODES else y.inner  # the outer one's storage has a size, and no memory
        assert seen.ledger.live() == {counted.untyped_storage()._cdata: 32}
    assert torch.equal(y.inner, torch.full((8,), 4.0))


def test_fake_tensors_count_as_if_they_were_real():
    def kept():
        return torch.ones(8, 8) @ torch.ones(8, 2)

    with Storages() as real:
        held = [kept()]
        expected = real.bytes
    for first, second in ((FakeTensorMode(), Storages()), (Storages(), FakeTensorMode())):
        with first, second:
            held.append(kept())
            assert (first if isinstance(first, Storages) else second).bytes == expected


def test_it_is_off_after_the_last_ledger_and_after_errors():
    assert not is_on(KEY)
    with Storages(), Storages():
        assert is_on(KEY)
        with pytest.raises(RuntimeError):
            torch.ones(2) @ torch.ones(3)
        assert is_on(KEY)
    assert not is_on(KEY) and kernel._here.ledgers == ()


def test_errors_are_torchs_own():
    def error():
        with pytest.raises(RuntimeError) as caught:
            torch.ones(2, 3) @ torch.ones(2, 3)
        return type(caught.value), str(caught.value)

    expected = error()
    with Storages():
        assert error() == expected


def test_a_ledger_closed_out_of_reach_is_taken_off_at_the_next_operator():
    seen = Storages()
    seen.__enter__()
    with torch.inference_mode():
        seen.__exit__()
    assert is_on(KEY)  # inference_mode has put back what was on when it began
    torch.ones(3)
    assert not is_on(KEY) and seen.bytes == 0


def test_what_inference_mode_takes_off_is_told():
    seen = Storages()
    with torch.inference_mode():
        seen.__enter__()
    seen.__exit__()
    assert any("inference_mode" in each for each in seen.blind)


def test_backward_of_another_thread_is_seen_from_the_thread_that_calls_it():
    x = torch.ones(256, requires_grad=True)
    with memlab.watch() as seen:
        y = x.exp().sum()
        assert seen.storages.sizes == [x.nbytes, y.nbytes]
        worker = threading.Thread(target=y.backward)
        worker.start()
        worker.join()
        assert seen.storages.sizes == [y.nbytes, x.grad.nbytes]


def test_ledgers_are_counted_right_and_go():
    """Torch's thread-local state takes references that it was not given, up to 2.11."""

    def counted():
        seen, x = Storages(), torch.ones(4, requires_grad=True)
        counts = []
        for _ in range(20):
            with seen:
                x.exp().sum().backward()
            counts.append(sys.getrefcount(seen.ledger))
        assert len(set(counts)) == 1
        return weakref.ref(seen.ledger)

    assert counted()() is None


def test_reentrant_backward_is_seen():
    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            with torch.enable_grad():
                z = torch.ones(1000, requires_grad=True)
                z.exp().sum().backward()
            return grad * 2

    x = torch.ones(4, requires_grad=True)
    with Storages() as seen:
        Inner.apply(x).sum().backward()
    assert torch.equal(x.grad, torch.full((4,), 2.0)) and seen.peak >= 4000


def test_operators_defined_meanwhile_are_seen_from_the_next_step_on():
    with memlab.watch() as seen:
        library = torch.library.Library("memlab_test", "FRAGMENT")
        try:
            library.define("twice(Tensor x) -> Tensor")
            library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
            unseen = torch.ops.memlab_test.twice(torch.ones(3))
            before = seen.storages.bytes
            seen.step()
            held = torch.ops.memlab_test.twice(unseen)
            assert seen.storages.bytes - before == 12
            assert any("memlab_test::twice" in each for each in seen.blind)
        finally:
            library._destroy()
    del held


DEFINES = {
    "of torch's own": ("import torch._dynamo", []),
    "by torch.library.define": ("torch.library.define('mine::f', '(Tensor x) -> Tensor')", ["mine::f"]),
    "by a library": ("mine = torch.library.Library('mine', 'DEF'); mine.define('f(Tensor x) -> Tensor')", ["mine::f"]),
    "by custom_op": (
        "@torch.library.custom_op('mine::f', mutates_args=())\ndef f(x: torch.Tensor) -> torch.Tensor: return x + 1",
        ["mine::f"],
    ),
}


@pytest.mark.parametrize("how", DEFINES)
def test_operators_defined_meanwhile_are_told_unless_they_are_torchs_own(how):
    code, told = DEFINES[how]
    program = f"import torch, memlab\nwith memlab.watch() as seen:\n{textwrap.indent(code, '    ')}\n    seen.step()\n"
    program += "print([each.partition(': not seen before')[0] for each in seen.blind])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == str(told), found.stderr


def test_nothing_else_is_between_when_nothing_is_watched():
    """Without a ledger the key is off, and no operator goes through Python."""
    called = []
    with Storages():
        torch.ones(1)
    original = kernel._Operator.learn
    kernel._Operator.learn = lambda self: called.append(self.name) or original(self)
    try:
        torch.ones(3).erfinv().lgamma()
    finally:
        kernel._Operator.learn = original
    assert called == []


OPS = st.lists(st.sampled_from(["exp", "view", "add", "mul_", "cat", "drop", "matmul", "sum", "index"]), max_size=25)


@settings(max_examples=60, deadline=None)
@given(OPS, st.booleans())
def test_random_programs_hold_what_python_holds(ops, inference):
    """Arithmetic over what the program holds: each storage once."""
    with torch.inference_mode(inference), Storages() as seen:
        held = [torch.ones(4, 4)]
        for op in ops:
            x = held[-1]
            if op == "drop":
                del held[1:2]
            elif op == "mul_":
                x.mul_(0.5)
            else:
                held.append(
                    {
                        "exp": lambda x=x: x.exp(),
                        "view": lambda x=x: x.view(-1).view(x.shape),
                        "add": lambda x=x: x + 1,
                        "cat": lambda x=x: torch.cat([x, x])[: len(x)],
                        "matmul": lambda x=x: x @ x.T,
                        "sum": lambda x=x: x + x.sum(0),
                        "index": lambda x=x: x[torch.tensor([0] * len(x))],
                    }[op]()
                )
        storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in held}
        x = None
        assert seen.bytes == sum(storages.values())


def test_importing_memlab_changes_no_operator():
    code = """
import torch
before = torch.linspace(0, 1, 8).view(2, 4).softmax(1)
import memlab.watching
assert torch.equal(before, torch.linspace(0, 1, 8).view(2, 4).softmax(1))
with torch.inference_mode():
    assert torch.equal(before, torch.linspace(0, 1, 8).view(2, 4).softmax(1))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
