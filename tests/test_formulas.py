"""Under a dispatch mode autograd does not write to its temporaries; under ours it does, as without one."""

import gc
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import memlab
from memlab import formulas
from memlab.allocator import Allocator
from memlab.as_cuda import Gpu
from memlab.as_cuda.storages import CudaStorages
from memlab.probes.storages import Storages


def used_three_times(x):
    c = x.detach()
    h = x * c
    return (h * c).sum() + (h * c).sum() + (h * c).sum()


CALLS = {
    "index": lambda x, rows: x[rows],
    "index with a mask": lambda x, rows: x[x > 2],
    "gather": lambda x, rows: x.gather(0, rows[:, None].expand(-1, x.shape[1])),
    "index_select": lambda x, rows: x.index_select(0, rows),
    "take": lambda x, rows: x.take(rows),
    "max": lambda x, rows: x.max(0).values,
    "median": lambda x, rows: x.median(1).values,
    "kthvalue": lambda x, rows: x.kthvalue(1, 0).values,
    "sort": lambda x, rows: x.sort(0).values,
    "topk": lambda x, rows: x.topk(1).values,
    "cummax": lambda x, rows: x.cummax(0).values,
    "index_put": lambda x, rows: x.index_put((rows,), x.detach()[rows]),
    "put": lambda x, rows: x.put(rows, x.detach().take(rows)).exp(),
    "scatter": lambda x, rows: x.scatter(0, torch.zeros_like(x, dtype=torch.long)[:1], x[:1]),
    "var_mean": lambda x, rows: torch.stack(torch.var_mean(x, 1, correction=0)),
    "lerp": lambda x, rows: x.exp().lerp(x.sin(), 0.3),
    "used twice": lambda x, rows: torch.where(x > 2, x, x.exp()),
    "residual": lambda x, rows: (x.sin() + x.sin().cos() * x.sin()).exp(),
    "three uses": lambda x, rows: used_three_times(x),
    "ten uses": lambda x, rows: torch.stack([x.sin() for _ in range(10)]),
}


def step(call, rows, columns, device="cpu"):
    x = torch.linspace(0, 4, rows * columns, device=device).view(rows, columns).requires_grad_()
    picked = torch.arange(0, rows, 2, device=device)

    def run():
        call(x, picked).sum().backward()
        x.grad = None

    return run


def peak(run):
    """The most bytes at a time, by the events of the C++ allocator itself."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        time.sleep(0.001)  # what happens at once may count as before
        run()
        time.sleep(0.001)
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


class Empty(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def needs_released_nodes(name):
    if name in {"scatter", "lerp", "used twice", "residual", "put", "three uses"} and not formulas.READS_PACKED:
        pytest.skip("this torch cannot show whether a node is done: sums of gradients stay as they are")


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("name", CALLS)
@given(rows=st.integers(2, 40), columns=st.integers(1, 40))
@settings(max_examples=8, deadline=None)
def test_the_peak_is_that_without_watching(name, rows, columns, history):
    if history or name == "three uses":
        needs_released_nodes(name)
    run = step(CALLS[name], rows, columns)
    bare = peak(run)
    with memlab.watch(history=history):
        assert peak(run) == bare


def test_an_empty_mode_alone_raises_the_peak():
    run = step(CALLS["gather"], 64, 64)
    bare = peak(run)
    with Empty():
        assert peak(run) > bare  # else there is nothing for memlab.formulas to do


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("retain", [False, True])
def test_gradients_are_the_same_bit_for_bit(name, retain, history):
    def grads():
        x = torch.linspace(0, 4, 35).view(7, 5).requires_grad_()
        loss = (CALLS[name](x, torch.tensor([1, 3, 3])) * 1.1).sum()
        loss.backward(retain_graph=retain)
        if retain:
            loss.backward()
        return x.grad

    expected = grads()
    with memlab.watch(history=history):
        assert torch.equal(grads(), expected)


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_double_backward_has_the_same_values(name, history):
    def grads():
        x = torch.linspace(0, 4, 35).view(7, 5).requires_grad_()
        loss = CALLS[name](x.sin() + x.cos(), torch.tensor([1, 3, 3])).exp().sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return first.detach().clone(), torch.autograd.grad(first.square().sum(), x)[0]

    expected = grads()
    with memlab.watch(history=history):
        assert all(map(torch.equal, grads(), expected))


class Spread(torch.autograd.Function):
    """Its backward keeps the zeros that it spreads the gradient over."""

    zeros = None

    @staticmethod
    def forward(ctx, x):
        return x[:2].clone()

    @staticmethod
    def backward(ctx, grad):
        Spread.zeros = torch.zeros(4)
        return Spread.zeros.scatter(0, torch.tensor([0, 1]), grad)


@pytest.mark.parametrize("history", [False, True])
def test_zeros_that_python_code_holds_are_not_written_to(history):
    x = torch.ones(4, requires_grad=True)
    with memlab.watch(history=history):
        Spread.apply(x).sum().backward()
    assert torch.equal(Spread.zeros, torch.zeros(4))
    assert torch.equal(x.grad, torch.tensor([1.0, 1.0, 0.0, 0.0]))


@pytest.mark.parametrize("history", [False, True])
def test_a_gradient_that_a_hook_keeps_is_not_written_to(history):
    def kept():
        found = []
        x = torch.linspace(0, 1, 6, requires_grad=True)
        y = x.exp()
        a, b, c = y.sin(), y.cos(), y.tanh()
        for each in (a, b, c):
            each.grad_fn.register_hook(lambda inputs, outputs: found.append(inputs[0]))
        (a + b + c).sum().backward()
        return [*found, x.grad]

    expected = kept()
    with memlab.watch(history=history):
        got = kept()
    assert len(got) == 4 and all(map(torch.equal, got, expected))


@pytest.mark.parametrize("history", [False, True])
def test_a_gradient_that_shares_its_storage_is_not_written_to(history):
    def grads():
        x, y = torch.linspace(0, 1, 6, requires_grad=True), torch.linspace(1, 2, 6, requires_grad=True)
        a, b = x.exp(), y.exp()
        rest = a.sin() + b.cos()
        both = a.view(2, 3) + b.view(2, 3)  # each gets a view of the same gradient
        (both.tanh().sum() + rest.sum()).backward()
        return x.grad, y.grad

    expected = grads()
    with memlab.watch(history=history):
        assert all(map(torch.equal, grads(), expected))


@pytest.mark.parametrize("history", [False, True])
def test_a_gradient_given_to_two_is_not_written_to_while_one_waits(history):
    def grads():
        x, y = torch.linspace(0, 1, 6, requires_grad=True), torch.linspace(1, 2, 6, requires_grad=True)
        h = x * y
        z = h + (h + h.sin())  # one gradient goes to three places
        z.retain_grad()
        z.exp().sum().backward()
        return x.grad, y.grad, z.grad

    expected = grads()
    with memlab.watch(history=history):
        assert all(map(torch.equal, grads(), expected))


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.torch.jit.script.:FutureWarning")  # of torch's own
def test_transforms_have_the_same_values(history):
    def spread(x):
        return x.gather(0, torch.tensor([0, 0, 1])).sin().sum()

    x = torch.linspace(0, 1, 12).view(3, 4)
    expected = torch.func.vmap(torch.func.grad(spread))(x), torch.func.hessian(spread)(x[0])
    with memlab.watch(history=history):
        got = torch.func.vmap(torch.func.grad(spread))(x), torch.func.hessian(spread)(x[0])
    assert all(map(torch.equal, got, expected))


def test_what_is_left_under_a_history_is_what_any_mode_does():
    """As README says, prod's gradient comes from another formula under any mode; a watch has none but for a history."""

    def grads():
        x = torch.linspace(0.3, 1.7, 60).view(6, 10).requires_grad_()
        x.prod(1).sum().backward()
        return x.grad

    with Empty():
        expected = grads()
    with memlab.watch(history=True):
        assert torch.equal(grads(), expected)
    bare = grads()
    assert not torch.equal(bare, expected)
    with memlab.watch():
        assert torch.equal(grads(), bare)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
@pytest.mark.parametrize("name", sorted({*CALLS} - {"index with a mask"}))  # how many it picks, kernels must compute
def test_predicted_as_measured(name):
    # What was asked for: a free block beside another test's tensor may be handed out whole, and counts whole.
    gc.collect()
    run = step(CALLS[name], 300, 700, "cuda")
    run()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    run()
    measured = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    device = torch.cuda.get_device_properties(0)
    card = Allocator(total=device.total_memory)
    with CudaStorages(card, Gpu((device.major, device.minor), device.multi_processor_count)) as storages:
        run = step(CALLS[name], 300, 700)
        run()
        storages.ledger.settle()
        card.reset_peak()
        before = card.requested
        run()
        storages.ledger.settle()
    assert card.memory_stats()["requested_bytes.all.peak"] - before == measured


def test_what_a_temporary_looks_like_is_learned_unseen(monkeypatch):
    monkeypatch.setattr(formulas, "_TEMPORARY", {})
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t)
    with Storages() as storages, Recorder(), hooks, torch.device("meta"), torch.inference_mode():
        formulas.learn()
    assert storages.peak == 0 and seen == [] and formulas._TEMPORARY.keys() == formulas.IN_PLACE.keys()


def test_importing_runs_no_backward():
    """A process that has run one on a machine with a GPU cannot be forked, and arms are."""
    code = "import memlab.watching, memlab.formulas; assert memlab.formulas._TEMPORARY == {}"
    subprocess.run([sys.executable, "-c", code], check=True)
