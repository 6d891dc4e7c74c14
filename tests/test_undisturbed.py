"""The instrument must not disturb what it measures. Each check is also broken once: `test_each_check_can_fail`."""

import gc
import re
import threading
import time
import weakref
from collections import deque
from contextlib import nullcontext
from unittest import mock

import graphs
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import memlab
from memlab import hook_stack
from memlab.node_names import READS_PACKED

AUTOGRAD = torch._C._autograd


@pytest.fixture(params=[True, False], ids=["storages", "saved only"])
def storages(request):
    return request.param


def small_model():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(layer, nn.Linear(8, 3), nn.Tanh())


def gradients(model, **options):
    """Return loss and gradients of one step, under a watch if any options are given."""
    torch.manual_seed(1)
    model.zero_grad()
    x = torch.randn(2, 5, 8, requires_grad=True)
    if options:
        with memlab.watch(**options):
            loss = model(x).square().mean()
            loss.backward()
    else:
        loss = model(x).square().mean()
        loss.backward()
    return [loss.detach(), x.grad, *(each.grad.clone() for each in model.parameters())]


def check_gradients():
    model = small_model()
    plain = gradients(model)
    for watched in (gradients(model, storages=True), gradients(model, storages=False)):
        assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))


def check_own_outputs_go_without_gc():
    gc.disable()
    try:
        x = torch.ones(8, requires_grad=True)
        with memlab.watch():
            y = x.exp()
        storage = weakref.ref(y.untyped_storage())
        del y
        assert storage() is None, "an own output survives the graph"
    finally:
        gc.enable()


def check_in_place_error():
    assert in_place_error("own output", watched=True) == in_place_error("own output", watched=False)


def check_user_hooks_still_apply():
    calls = []

    def pack(tensor):
        calls.append("pack")
        return tensor.cpu()

    x = torch.ones(4, requires_grad=True)
    with memlab.watch() as seen, saved_tensors_hooks(pack, lambda packed: calls.append("unpack") or packed):
        y = x.exp().sum()
    assert seen.saved.bytes == 16, "what user hooks pack is not counted"
    y.backward()
    assert calls == ["pack", "unpack"] and torch.equal(x.grad, torch.ones(4).exp())


def check_hooks_are_restored():
    push = AUTOGRAD._push_saved_tensors_default_hooks
    with pytest.raises(KeyError), memlab.watch():
        raise KeyError
    assert AUTOGRAD._push_saved_tensors_default_hooks is push
    assert hook_stack.top() is None
    assert torch._C._len_torch_dispatch_stack() == 0


def check_user_modes_see_no_extra_ops():
    class Recorder(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.ops = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.ops.append(str(func))
            return func(*args, **(kwargs or {}))

    def ops(watched):
        model = small_model()
        with Recorder() as recorder, memlab.watch() if watched else nullcontext():
            loss = model(torch.ones(1, 2, 8)).sum()
            forward = len(recorder.ops)
            loss.backward()
        return recorder.ops[:forward], recorder.ops[forward:]

    def real(names):  # torch's own unpacking detaches, which moves no byte; it does so differently under any hooks
        return [name for name in names if name != "aten.detach.default"]

    (forward, backward), (watched_forward, watched_backward) = ops(False), ops(True)
    assert real(forward) == real(watched_forward) and real(backward) == real(watched_backward)
    assert watched_forward.count("aten.detach.default") <= forward.count("aten.detach.default")


def check_deep_graphs_can_be_freed():
    """Touching the nodes of a chain would make torch 2.13 free it recursively: one for each operator is asked."""
    asked = []
    original = torch.Tensor.grad_fn
    x = torch.ones(1, requires_grad=True)
    torch.Tensor.grad_fn = property(lambda tensor: asked.append(1) or original.__get__(tensor))
    try:
        with memlab.watch():
            y = x
            for _ in range(20):
                y = (y.sin() + y.exp()).tanh()
    finally:
        del torch.Tensor.grad_fn
    assert len(asked) <= 4
    del y


class Hesitant(deque):
    """Between seeing that something is left and taking it, another thread has its turn."""

    def __bool__(self):
        left = len(self) > 0
        time.sleep(1e-6)
        return left


def check_readers_in_other_threads():
    """Whoever reads the account settles it: several at once must not settle one release twice."""
    errors = []

    def read(start, seen):
        start.wait()
        try:
            assert seen.saved.bytes >= 0 and seen.storages.bytes >= 0
        except Exception as error:
            errors.append(error)

    x = torch.ones(1, requires_grad=True)
    with (
        mock.patch("memlab.ledger.deque", Hesitant),
        mock.patch("memlab.storage_ledger.deque", Hesitant),
        memlab.watch() as seen,
    ):
        kept = [x.exp().sin() * x for _ in range(200)]
        start = threading.Barrier(4)
        threads = [threading.Thread(target=read, args=(start, seen)) for _ in range(4)]
        for thread in threads[:3]:
            thread.start()
        kept.clear()
        threads[3].start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert (seen.saved.bytes, seen.saved.tensors, seen.storages.bytes) == (0, 0, 0)


class Forgetful(dict):
    def __contains__(self, key):
        return False


CHECKS = {
    check_gradients: ("memlab.hooks._unpack", lambda packed: packed.value * 1.0000001),
    check_own_outputs_go_without_gc: ("memlab.hooks._make_subclass", lambda _kind, tensor: tensor),
    check_in_place_error: ("memlab.hooks._unpack", lambda packed: packed.value),
    check_user_hooks_still_apply: ("memlab.hooks._push", hook_stack.push),
    check_hooks_are_restored: ("memlab.hooks._remove_pair_of", lambda ledger: None),
    check_user_modes_see_no_extra_ops: ("memlab.hooks._make_subclass", lambda _kind, tensor: tensor.detach()),
    check_readers_in_other_threads: ("memlab.ledger.RLock", nullcontext),
    check_deep_graphs_can_be_freed: ("memlab.node_names.done", Forgetful()),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_undisturbed(check):
    check()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_each_check_can_fail(check, monkeypatch):
    target, broken = CHECKS[check]
    monkeypatch.setattr(target, broken)
    try:
        with pytest.raises((AssertionError, RuntimeError, KeyError)):
            check()
            pytest.fail(f"{check.__name__} passes although {target} is broken", pytrace=False)
    except pytest.fail.Exception:
        raise
    finally:
        while hook_stack.top() is not None:
            hook_stack.pop()


@settings(max_examples=60, deadline=None)
@given(program=graphs.instructions, requires_grad=graphs.leaves)
def test_gradients_of_random_graphs(program, requires_grad):
    requires_grad = [True, *requires_grad]

    def backward(watched):
        leaves = graphs.make_leaves(requires_grad)
        with memlab.watch() if watched else nullcontext():
            out = graphs.run(program, leaves)
            try:
                if out.requires_grad:
                    out.sum().backward()
            except RuntimeError as error:
                return str(error)
        return [leaf.grad for leaf in leaves]

    plain, watched = backward(False), backward(True)
    if isinstance(plain, str):
        assert watched == plain
    else:
        for one, other in zip(plain, watched, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one.nan_to_num(), other.nan_to_num())


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x * 2
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return grad * 2 + 0 * x + 0 * y


def _changed(tensor):
    with torch.no_grad():
        tensor.add_(1)


def _in_place_cases():
    def leaf():
        x = torch.ones(2, 3, requires_grad=True)
        y = x * x
        _changed(x)
        return y

    def own_output():
        y = torch.ones(3, requires_grad=True).exp()
        _changed(y)
        return y

    def input_of(op):
        def case():
            x = torch.ones(3, 3, requires_grad=True).tanh()
            other = torch.ones(3, 3, requires_grad=True).sigmoid().clone()
            y = op(x * 1, other)
            _changed(other)
            return y

        return case

    def first_input():
        x = torch.ones(3, 3, requires_grad=True).clone()
        y = x * torch.ones(3, 3, requires_grad=True).sigmoid()
        _changed(x)
        return y

    def second_of_several():
        least, most = torch.aminmax(torch.rand(4, 3, requires_grad=True) * 2, dim=0)
        y = most.sin() + least.sum()
        _changed(most)
        return y

    def custom():
        y = Doubles.apply(torch.ones(5, requires_grad=True) * 1)
        _changed(y)
        return y

    def custom_input():
        x = torch.ones(5, requires_grad=True).cos()
        y = Doubles.apply(x)
        _changed(x)
        return y

    def half():
        y = torch.ones(2, 2, dtype=torch.float64, requires_grad=True).exp()
        _changed(y)
        _changed(y)
        return y

    return {
        "leaf": leaf,
        "own output": own_output,
        "mul other": input_of(torch.mul),
        "matmul other": input_of(torch.matmul),
        "linear weight": input_of(torch.nn.functional.linear),
        "mul first": first_input,
        "output 1": second_of_several,
        "custom own output": custom,
        "custom input": custom_input,
        "double": half,
    }


IN_PLACE = _in_place_cases()


def in_place_error(name, *, watched, storages=True, anomaly=False):
    with torch.autograd.set_detect_anomaly(anomaly):
        if watched:
            with memlab.watch(storages=storages):
                y = IN_PLACE[name]()
        else:
            y = IN_PLACE[name]()
        try:
            y.sum().backward()
        except RuntimeError as error:
            return type(error), str(error)
    return None


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_changes_raise_the_same_error(name, storages):
    plain, watched = in_place_error(name, watched=False), in_place_error(name, watched=True, storages=storages)
    if not READS_PACKED:  # which of several inputs it was cannot be told there: the text may name the other one
        plain, watched = (re.sub(r" of \w+, ", " of one, ", str(each)) for each in (plain, watched))
    assert plain is not None and watched == plain


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_in_place_error_under_anomaly_detection():
    plain = in_place_error("own output", watched=False, anomaly=True)
    assert "Good luck!" in plain[1] and in_place_error("own output", watched=True, anomaly=True) == plain


def test_second_backward_raises_the_same_error(storages):
    def error(watched):
        x = torch.ones(3, requires_grad=True)
        with memlab.watch(storages=storages) if watched else nullcontext():
            y = x.exp().sum()
            y.backward()
            with pytest.raises(RuntimeError) as caught:
                y.backward()
        return str(caught.value)

    assert error(True) == error(False)


def test_double_backward(storages):
    def second(watched):
        x = torch.linspace(0.1, 1, 5, requires_grad=True)
        with memlab.watch(storages=storages) if watched else nullcontext():
            (first,) = torch.autograd.grad((x.sin() * x.exp()).sum(), x, create_graph=True)
            (found,) = torch.autograd.grad(first.square().sum(), x)
        return found

    assert torch.equal(second(True), second(False))


def test_retain_graph_keeps_and_the_last_backward_frees():
    model = small_model()
    with memlab.watch() as seen:
        loss = model(torch.ones(2, 5, 8)).sum()
        kept = seen.saved.bytes
        loss.backward(retain_graph=True)
        assert seen.saved.bytes == kept > 0
        loss.backward()
        assert seen.saved.bytes == 0


def test_ctx_cycle_lives_as_long_as_without():
    """``ctx.y = y`` makes a cycle that only the garbage collector ends, with a watch as without."""

    class Cycle(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.y = x * 2
            return ctx.y

        @staticmethod
        def backward(ctx, grad):
            return grad

    def alive(watched):
        with memlab.watch() if watched else nullcontext():
            y = Cycle.apply(torch.ones(3, requires_grad=True))
        storage = weakref.ref(y.untyped_storage())
        del y
        before = storage() is not None
        gc.collect()
        return before, storage() is not None

    gc.collect()
    assert alive(True) == alive(False)


def test_graph_goes_with_its_exception():
    with memlab.watch() as seen:
        try:
            y = torch.ones(4, requires_grad=True).exp()
            raise ValueError(y.sum().item())
        except ValueError:
            del y
        assert seen.saved.bytes == 0


def test_peak_is_the_same():
    """Bytes that the C++ allocator has handed out at most, by its own events, with a watch and without."""
    from torch.profiler import ProfilerActivity, profile

    def peak(watched):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 50)), torch.randn(40, 50)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
            with memlab.watch() if watched else nullcontext():
                model(x).sum().backward()
        events = recorded.profiler.kineto_results.events()
        now, most = 0, 0
        for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        return most

    assert peak(True) == peak(False) > 0


def test_nested_watches_see_the_same():
    model, x = small_model(), torch.ones(1, 2, 8)
    with memlab.watch() as outer:
        with memlab.watch() as inner:
            loss = model(x).sum()
        assert outer.saved.bytes == inner.saved.bytes > 0
        assert outer.storages.bytes == inner.storages.bytes
        second = model(x).sum()
        assert outer.saved.bytes == 2 * inner.saved.bytes
    loss.backward()
    assert (inner.saved.bytes, outer.saved.exclusive) == (0, outer.saved.bytes)
    del second
    assert outer.saved.bytes == 0


def test_watch_inside_users_hooks_keeps_them():
    packed = []
    x = torch.ones(3, requires_grad=True)
    with saved_tensors_hooks(lambda t: packed.append(t) or t.detach(), lambda p: p):
        with memlab.watch() as seen:
            y = x.exp()
        z = x.exp()
    assert len(packed) == 2 and seen.saved.bytes == 12
    packed.clear()
    del y, z


def test_watches_may_close_out_of_order():
    first, second = memlab.watch(storages=False), memlab.watch(storages=False)
    x = torch.ones(2, requires_grad=True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    y = x.exp()
    second.__exit__(None, None, None)
    assert (first.saved.bytes, second.saved.bytes) == (0, 8)
    assert hook_stack.top() is None
    del y


def test_save_on_cpu_inside(storages):
    x = torch.ones(4, requires_grad=True)
    with memlab.watch(storages=storages) as seen, save_on_cpu():
        y = x.exp().sum()
    assert seen.saved.bytes == 16
    y.backward()
    assert seen.saved.bytes == 0 and torch.equal(x.grad, torch.ones(4).exp())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_inside(reentrant, storages):
    def block(x):
        return x.exp().sin().tanh()

    def step(watched):
        x = torch.linspace(0, 1, 6, requires_grad=True)
        with memlab.watch(storages=storages) if watched else nullcontext() as seen:
            y = checkpoint(block, x.clone(), use_reentrant=reentrant)
            kept = seen.saved.bytes if watched else None
            y.sum().backward()
        if watched:
            assert kept == 24, "checkpoint keeps its input, and that alone"
            assert seen.saved.bytes == 0 and seen.saved.peak > 24
        return x.grad

    assert torch.equal(step(True), step(False))


def test_torch_func_works_inside_and_is_named():
    x = torch.ones(3)
    with memlab.watch() as seen:
        found = torch.func.grad(lambda v: (v * v).sum())(x)
        y = x.requires_grad_().exp()
    assert torch.equal(found, 2 * torch.ones(3)) and seen.saved.bytes == 12
    assert any("torch.func" in sentence for sentence in seen.blind)
    with saved_tensors_hooks(lambda t: t, lambda t: t), pytest.raises(RuntimeError, match="saved tensor hooks"):
        torch.func.grad(lambda v: (v * v).sum())(torch.ones(3))
    del y


def test_threads_do_not_mix():
    seen = {}

    def work(name, size):
        with memlab.watch() as seen[name]:
            for _ in range(50):
                y = torch.ones(size, requires_grad=True).exp()
        seen[name].last = y

    threads = [threading.Thread(target=work, args=(f"t{size}", size)) for size in (10, 100, 1000)]
    with memlab.watch() as outside:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {name: each.saved.bytes for name, each in seen.items()} == {"t10": 40, "t100": 400, "t1000": 4000}
    assert outside.saved.bytes == 4440  # it started them
    assert AUTOGRAD._push_saved_tensors_default_hooks is hook_stack.push


def test_graph_freed_by_another_thread():
    with memlab.watch() as seen:
        held = [torch.ones(100, requires_grad=True).exp()]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert seen.saved.bytes == 0 and seen.storages.bytes == 400 - 400


def test_a_chain_of_a_hundred_thousand_nodes_is_freed():
    y = torch.ones(1, requires_grad=True)
    with memlab.watch() as seen:
        for _ in range(100_000):
            y = y.sin()
    assert seen.saved.bytes == 4 * 99_999
    del y
    assert seen.saved.bytes == 0


@pytest.mark.compiles
@pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "ignore_compile_internals"), reason="this torch compiles nothing under any mode"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch 2.11's own compiler
def test_compiled_regions_go_on_compiling():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)), torch.ones(3, 4)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    before = dict(torch._dynamo.utils.counters["stats"])
    with memlab.watch() as seen:
        loss = compiled(x).sum()
    assert torch._dynamo.utils.counters["stats"] != before
    assert seen.saved.bytes == 2 * 48
    loss.backward()
    assert seen.saved.bytes == 0


def test_inference_mode_and_no_grad_inside():
    with memlab.watch() as seen:
        with torch.inference_mode():
            one = torch.ones(4).exp()
        with torch.no_grad():
            two = torch.ones(4, requires_grad=True).exp()
    assert seen.saved.bytes == 0 and seen.storages.bytes == 2 * 16
    del one, two


def test_meta_and_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with memlab.watch() as seen:
        y = torch.ones(8, device="meta", requires_grad=True).exp()
    assert seen.saved.bytes == 32
    del y
    assert seen.saved.bytes == 0
    with FakeTensorMode(), memlab.watch() as seen:
        y = (torch.ones(8, requires_grad=True) * 1.0).exp()
        assert seen.saved.bytes == 32
        y.sum().backward()
        assert seen.saved.bytes == 0


def test_a_card_raises_torchs_own_error_in_the_users_frame():
    x = torch.ones(1 << 20)
    with memlab.watch(card="24 MiB") as seen:
        kept = []
        with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 20\.00 MiB") as caught:
            for _ in range(10):
                kept.append(x + 1)
        assert caught.traceback[-1].path.name != "test_undisturbed.py" or len(kept) == 5
        assert len(kept) == 5 and seen.card.read()["allocated"] == 5 * 4 << 20
        kept.clear()
        assert seen.card.read()["allocated"] == 0
    with pytest.raises(ValueError, match="there is no card 'lots'"):
        memlab.watch(card="lots")
    with pytest.raises(ValueError, match="leave storages=True"):
        memlab.watch(card="1 GiB", storages=False)
