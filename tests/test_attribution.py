"""Who keeps a saved tensor and why: line, module and node, against a walk over the graph and the modules' own hooks."""

import gc
import logging
import sys
import threading
import weakref
from collections import Counter
from contextlib import nullcontext

import graphs
import pytest
import torch
from holders import NEEDS_PACKED
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import memlab
from memlab import node_names, reasons
from memlab.lines import GIVEN, GROUPS
from memlab.node_names import READS_PACKED

NEWER = {"Aminmax", "BatchNormWithUpdate", "FusedRmsNorm", "SafeSoftmax"}  # than the oldest torch


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x * 2
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class Block(nn.Module):
    """A residual convolution, as in a ResNet."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.norm(self.conv(x)) + x).mul_(x.sigmoid())


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.head = nn.Linear(4, 2)
        self.again = self.head  # a shared module

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = Doubles.apply(x.mean((2, 3)))
        return self.head(x).exp() * self.again(x)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, x):
        return checkpoint(self.inner, x.sin(), use_reentrant=self.reentrant).tanh()


def make(kind):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return {
        "transformer": lambda: (nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 3, 8)),
        "pictures": lambda: (Pictures(), torch.randn(2, 3, 9, 9)),
        "lstm": lambda: (nn.Sequential(nn.Embedding(9, 5), nn.LSTM(5, 6, batch_first=True)), torch.ones(2, 3).long()),
        "non-reentrant": lambda: (Checkpointed(False), torch.randn(3, 4, requires_grad=True)),
        "reentrant": lambda: (Checkpointed(True), torch.randn(3, 4, requires_grad=True)),
    }[kind]()


MODELS = ["transformer", "pictures", "lstm", "non-reentrant", "reentrant"]


def run(model, x):
    torch.manual_seed(1)
    output = model(x)
    return output[0] if isinstance(output, tuple) else output


def check_views(seen):
    for what in GROUPS:
        assert sum(seen.by(what).values()) == seen.bytes
    assert seen.tree().bytes == seen.bytes
    stack = [seen.tree()]
    while stack:
        branch = stack.pop()
        assert branch.bytes == branch.own + sum(child.bytes for child in branch.children)
        stack.extend(branch.children)


def facts(lines):
    """What a ledger and a walk must agree on, but for fields: only the walk reads those, and says why by them."""
    return Counter(
        (each.bytes, each.kind, each.shape, each.where, each.module, each.module_class, each.node, each.shared)
        for each in lines
    )


@NEEDS_PACKED
@settings(max_examples=30, deadline=None)
@given(program=graphs.instructions, requires_grad=graphs.leaves)
def test_random_graphs_line_by_line(program, requires_grad):
    leaves = graphs.make_leaves([True, *requires_grad])
    with memlab.watch() as seen:
        output = graphs.run(program, leaves)
    walked = memlab.bill(output)
    assert facts(seen.saved.lines) == facts(walked.lines)
    assert all(each.node != "unknown" for each in seen.saved.lines)
    check_views(seen.saved)
    check_views(walked)


@NEEDS_PACKED
@pytest.mark.parametrize("kind", MODELS)
def test_models_line_by_line(kind):
    model, x = make(kind)
    with memlab.watch() as seen:
        output = run(model, x)
    walked = memlab.bill(output)
    assert facts(seen.saved.lines) == facts(walked.lines)
    assert all(each.why for each in walked.lines), {each.node for each in walked.lines if not each.why}
    check_views(seen.saved)
    check_views(walked)


class Oracle:
    """Bytes by module, by a hook on every module and plain saved-tensor hooks; a storage counts where it came first."""

    def __init__(self, model):
        self.stack, self.storages, self.totals = [], {}, Counter()
        self.given = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
        self.handles = []
        for name, module in model.named_modules():
            self.handles += [
                module.register_forward_pre_hook(lambda module, args, name=name: self.stack.append(name)),
                module.register_forward_hook(lambda module, args, result: self.stack.pop() and None, always_call=True),
            ]

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.given and storage._cdata not in self.storages:
            self.storages[storage._cdata] = storage  # held: no other storage gets its address
            self.totals[self.stack[-1] if self.stack else None] += storage.nbytes()
        return tensor.detach()


@pytest.mark.parametrize(
    ("kind", "storages"),
    [("transformer", True), ("transformer", False), ("pictures", True), ("pictures", False), ("lstm", True)],
)
def test_modules_against_their_own_hooks(kind, storages):
    """Without storages, the zeros that nn.LSTM holds while it saves them read as an input."""
    model, x = make(kind)
    oracle = Oracle(model)
    oracle.given.add(x.untyped_storage()._cdata)
    with torch.autograd.graph.saved_tensors_hooks(oracle.pack, lambda packed: packed):
        run(model, x)
    for handle in oracle.handles:
        handle.remove()
    with memlab.watch(storages=storages) as seen:
        output = run(model, x)
    found = Counter()
    for line in seen.saved.lines:
        if line.kind not in GIVEN:
            found[line.module] += line.bytes
    assert found == oracle.totals
    del output


def test_names_and_classes():
    model, x = make("pictures")
    loss = nn.CrossEntropyLoss()
    with memlab.watch() as seen:
        run(model.stem, x)  # a part, before the whole is met
        output = loss(run(model, x), torch.tensor([0, 1]))
        outside = output.exp()
    lines = seen.saved.lines
    expected = {name: type(module).__name__ for name, module in model.named_modules()}
    expected |= {"CrossEntropyLoss": "CrossEntropyLoss"}
    named = {(line.module, line.module_class) for line in lines if line.module_class}
    assert named <= set(expected.items()) and ("blocks.1.conv", "Conv2d") in named and ("", "Pictures") in named
    assert "again" not in {line.module for line in lines}, "a shared module has its first name"
    assert {line.module_class for line in lines if line.node == "ExpBackward0" and not line.module} == {"Pictures", ""}
    assert seen.saved.by("module")["outside of modules"] == 4
    tree = {child.name: child for child in seen.saved.tree().children}
    assert {"stem", "blocks", "Pictures", "outside of modules"} <= set(tree) and tree["blocks"].own == 0
    assert {child.name for child in tree["blocks"].children} == {"0", "1"}
    del outside


def test_two_models_do_not_mix():
    one, other = (nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2))
    x = torch.ones(2, 3)
    with memlab.watch() as seen:
        y = other(one(x))
    assert seen.saved.by("module") == {"1": 24, "Sequential#2.1": 24}
    del y


def test_forward_called_directly_counts_in_the_enclosing_module():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Tanh()

        def forward(self, x):
            return self.inner.forward(x)

    with memlab.watch() as seen:
        y = Calls()(torch.ones(2, requires_grad=True))
    (line,) = [each for each in seen.saved.lines if each.kind not in GIVEN]
    assert (line.module, line.module_class) == ("", "Calls")
    del y


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_exceptions_and_generators_leave_the_right_module(error):
    class Raises(nn.Module):
        def forward(self, x):
            raise error

    class Yields(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Tanh()

        def forward(self, x):
            while True:
                yield self.inner(x).exp()

    model = nn.Sequential(nn.Sigmoid(), Raises())
    x = torch.ones(2, requires_grad=True)
    with memlab.watch() as seen:
        with pytest.raises(error):
            model(x)
        y = x.exp()
        stream = Yields()(x)
        one = next(stream)
        z = model[0](next(stream))
    found = {(line.node, line.module, line.module_class) for line in seen.saved.lines if line.kind == "own output"}
    assert found == {
        ("ExpBackward0", "", ""),  # outside, and in the body of a generator whose forward has returned
        ("TanhBackward0", "Yields.inner", "Tanh"),
        ("SigmoidBackward0", "0", "Sigmoid"),
    } or found == {
        ("ExpBackward0", "", ""),
        ("TanhBackward0", "Tanh", "Tanh"),
        ("SigmoidBackward0", "0", "Sigmoid"),
    }
    del y, z, one


def test_recomputation_names_the_modules_of_the_model():
    """In backward, where no call of the model is among the frames."""
    model, x = make("reentrant")
    during = []

    class Looks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            during.append({line.module for line in seen.saved.lines if line.node == "GeluBackward0"})
            return grad

    model.inner.insert(2, nn.Identity())
    model.inner[2].forward = Looks.apply
    with memlab.watch() as seen:
        run(model, x).sum().backward()
    assert during == [{"inner.1"}]


@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_what_checkpoint_keeps_is_not_the_last_operators(kind):
    model, x = make(kind)
    with memlab.watch() as seen:
        output = run(model, x)
    lines = {line.node: line for line in seen.saved.lines if line.kind not in GIVEN}
    names = ("CheckpointFunctionBackward", "checkpoint", "_NoopSaveInputsBackward")  # the last one on torch 2.6
    (kept,) = [lines.pop(name) for name in names if name in lines]
    assert kept.why == "an input of the checkpointed region, which backward computes again from it"
    assert set(lines) == {"TanhBackward0"}
    del output


@NEEDS_PACKED
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("watched", [True, False])
def test_a_bill_knows_what_checkpoint_keeps_once_for_each_region(debug, watched, monkeypatch):
    """Inputs of a region within a region are computed again, too: only the outer region's are kept."""
    monkeypatch.setattr(logging.getLogger("LoggingTensor"), "propagate", False)  # torch's; pytest cannot format it
    layer = nn.Linear(4, 4)

    def inner(x):
        return checkpoint(layer, layer(x).exp(), use_reentrant=False).sin()

    def innermost(x):
        return checkpoint(layer, x, use_reentrant=False)

    def outer(region, size):
        return checkpoint(region, torch.ones(size, 4) * layer.bias, use_reentrant=False, debug=debug)

    with memlab.watch() if watched else nullcontext():
        regions = [outer(inner, 2), outer(inner, 3), outer(innermost, 5)]
    line = outer.__code__.co_firstlineno + 1
    loss = sum(each.sum() for each in regions)
    for _ in range(2):  # reading neither runs the region again nor uses up what it keeps
        kept = [
            (each.bytes, each.where) for each in memlab.bill(loss).lines if each.node == "checkpoint" and each.bytes
        ]
        where = f"tests/test_attribution.py:{line}" if watched else "unknown"
        assert sorted(kept) == [(size * 16, where) for size in (2, 3, 5)]
    loss.backward()
    assert not any(each.bytes for each in memlab.bill(loss).lines)


@NEEDS_PACKED
def test_what_a_region_is_given_counts_as_without_checkpoint():
    layer, given = nn.Linear(4, 4), torch.ones(2, 4)
    for region in (layer, lambda *given: checkpoint(layer, *given, use_reentrant=False)):
        bills = [memlab.bill(region(given)), memlab.bill(region(torch.ones(2, 4)))]
        kinds = [[line.kind for line in bill.lines if line.shape == (2, 4)] for bill in bills]
        assert kinds == [["input"], ["mask or statistic"]]


def test_threads_keep_their_modules_apart():
    found = {}

    def work(name, model):
        x = torch.ones(2, 3)
        with memlab.watch(storages=False) as seen:
            for _ in range(20):
                y = model(x)
            found[name] = set(seen.saved.by("module")), {line.shape for line in seen.saved.lines}
        del y

    models = {"one": nn.Sequential(nn.Linear(3, 3), nn.Tanh()), "other": nn.Sequential(nn.Linear(3, 5), nn.Sigmoid())}
    threads = [threading.Thread(target=work, args=each) for each in models.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["one"][0] == found["other"][0] == {"1"}
    assert (2, 5) in found["other"][1] - found["one"][1]


def test_a_custom_function_is_not_the_next_operator():
    x = torch.ones(3, requires_grad=True)
    with memlab.watch() as seen:
        y = Doubles.apply(x)
        z = y.cos()
    lines = {line.node: line for line in seen.saved.lines if line.kind not in GIVEN}
    assert set(lines) == {"DoublesBackward"}
    assert (lines["DoublesBackward"].op, lines["DoublesBackward"].kind) == ("Doubles", "own output")
    assert lines["DoublesBackward"].shared[0].startswith("CosBackward0 at ")
    with memlab.watch(storages=False) as cheap:
        y = Doubles.apply(x)
    assert cheap.saved.by("node") == {"DoublesBackward": 12}
    del y, z


@pytest.mark.skipif(not hasattr(torch._C._autograd, "_make_saved_tensor"), reason="this torch has nothing to save with")
def test_what_no_operator_saves_is_unknown():
    """As a Function of C++ does: a node is made, operators run without autograd, then tensors are saved."""

    class Saves(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            result = x * 2
            kept.append(torch._C._autograd._make_saved_tensor(x, is_output=False))
            return result

    kept = []
    x = torch.ones(3, requires_grad=True)
    with memlab.watch() as seen:
        y = x.exp()
        z = Saves.apply(x)
        torch.zeros(3)
        z.sum()
    assert {line.node for line in seen.saved.lines} == {"ExpBackward0", "unknown"}
    kept.clear()
    del y


def test_an_operator_that_teaches_nothing_is_asked_a_few_times_only(monkeypatch):
    monkeypatch.setattr(node_names, "done", {})
    monkeypatch.setattr(node_names, "_asked", Counter())
    op, x = torch.ops.aten.sinc.default, torch.ones(2, requires_grad=True)
    for _ in range(20):
        y = x.exp()  # whose node is not this operator's
        if id(op) not in node_names.done:
            node_names.watch(op, y, sequence=-1)
            node_names.learn()
    assert node_names._asked[id(op)] == 8
    assert node_names.node_name(op) == "SincBackward0", "nothing wrong was learned"


def test_in_place_operators_are_not_their_clone():
    x, factor = torch.ones(2, 3, requires_grad=True), torch.full((2, 3), 2.0, requires_grad=True)
    with memlab.watch() as seen:
        y = (x + 1).mul_(factor)
        base = torch.zeros(2, 2, 3)
        base[0].mul_(x)
    assert {(line.op, line.node) for line in seen.saved.lines} == {("mul_", "MulBackward0")}
    del y


def test_the_rest_of_a_shared_storage_is_told():
    x = torch.ones(4, requires_grad=True)
    with memlab.watch() as seen:
        h = x + 1
        first, second = h.sin(), h.cos()
    (line,) = seen.saved.lines
    assert line.node == "SinBackward0" and len(line.shared) == 1 and line.shared[0].startswith("CosBackward0 at ")
    del first
    (line,) = seen.saved.lines
    assert (line.node, line.shared, line.saved) == ("CosBackward0", (), 1), "who is gone keeps nothing"
    del second
    assert seen.saved.lines == [] and seen.saved.tensors == 0


def test_lines_in_ignored_libraries_are_those_of_their_caller(tmp_path, monkeypatch):
    (tmp_path / "libraryofours.py").write_text("def activate(x):\n    return x.exp()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import libraryofours

    def where(ignore):
        with memlab.watch(ignore=ignore) as seen:
            y = libraryofours.activate(torch.ones(2, requires_grad=True))
        (line,) = seen.saved.lines
        del y
        return line.where

    mine = f"test_attribution.py:{where.__code__.co_firstlineno + 2}"
    assert where(()).endswith("libraryofours.py:2")
    for ignore in ("libraryofours", ["libraryofours"], [tmp_path], [str(tmp_path / "libraryofours.py")]):
        assert where(ignore).endswith(mine)
    assert where([tmp_path, __file__]).endswith("python.py:166") or "_pytest" in where([tmp_path, __file__])


def test_reasons():
    x, target = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 2])
    layer = nn.Linear(4, 4)
    loss = F.cross_entropy(F.layer_norm(layer(x * 1).softmax(-1), (4,)), target)
    told = {(line.node, line.why) for line in memlab.bill(loss).lines} if READS_PACKED else set()
    assert (
        not READS_PACKED
        or {
            ("AddmmBackward0", "needed for the gradient of mat2 (the weight)"),
            ("AddmmBackward0", "needed for the gradient of mat1 (the input)"),
            ("SoftmaxBackward0", "its own result, from which the gradient of its input is computed"),
            ("NllLossBackward0", "the target, needed for the gradient of the prediction"),
        }
        <= told
    )
    assert reasons.why("MulBackward", "") == "its forward gave it to ctx.save_for_backward"  # a Function named Mul
    assert reasons.why("NeverHeardOfBackward0", "self") == reasons.why("unknown", "") == ""


def test_reasons_name_nodes_and_fields_that_exist():
    functions = torch._C._functions
    known = {name: getattr(functions, name) for name in dir(functions) if name[-1].isdigit()}
    bases = {name.rpartition("Backward")[0] for name in known}
    fields = {field.removeprefix("_raw_saved_") for kind in known.values() for field in dir(kind)}
    assert set(reasons.REASONS) - bases <= NEWER
    for told in reasons.REASONS.values():
        assert "" in told and set(told) - {""} <= fields


def test_node_names_are_unknown_rather_than_wrong(monkeypatch):
    monkeypatch.setattr(node_names, "_learned", {})
    monkeypatch.setattr(node_names, "done", {})
    assert node_names.node_name(torch.ops.aten.gelu.default) == "GeluBackward0"
    assert node_names.node_name(torch.ops.aten.mul.Tensor) == "unknown"  # MulBackward0 or 1
    assert node_names.node_name(None) == "unknown"
    one, other = (torch.ones(2, requires_grad=True) for _ in range(2))
    with memlab.watch() as seen:
        y = one.exp().mul_(other)
        assert seen.saved.by("node") == {"ExpBackward0": 8, "MulBackward0": 8}
    assert node_names.node_name(torch.ops.aten.mul.Tensor) == "MulBackward0", "learned from its in-place twin"
    del y


def check_module_lives_no_longer():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    x = torch.ones(2, 3)
    with memlab.watch() as seen:
        y = model(x)
        alive = weakref.ref(model)
        del model
        assert alive() is None
    assert seen.saved.by("module") == {"1": 24}
    del y


def check_inputs_live_no_longer(watched):
    """A user's hook that replaces the result: the first one goes as soon as nobody holds it."""
    gone = []

    class Two(nn.Module):
        def forward(self, x):
            return x.exp()

    def replace(module, args, result):
        gone.append(weakref.ref(result.untyped_storage()))
        x.sin()
        return result.detach() * 2

    def look(module, args, result):
        gone[0] = gone[0]() is None

    model, x = Two(), torch.ones(3, requires_grad=True)
    model.register_forward_hook(replace)
    model.register_forward_hook(look)
    gc.disable()
    try:
        with memlab.watch() if watched else nullcontext():
            model(x)
    finally:
        gc.enable()
    return gone


def test_lifetimes():
    check_module_lives_no_longer()
    assert check_inputs_live_no_longer(True) == check_inputs_live_no_longer(False) == [True]


def test_no_hooks_are_installed_and_the_users_see_the_same():
    def calls(watched):
        found = []
        model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        handles = [
            nn.modules.module.register_module_forward_pre_hook(lambda m, args: found.append(("pre", type(m)))),
            nn.modules.module.register_module_forward_hook(lambda m, args, out: found.append(("post", type(m)))),
            model[0].register_forward_hook(lambda m, args, out: found.append("own")),
        ]
        with memlab.watch() if watched else nullcontext():
            model(torch.ones(1, 2)).sum().backward()
        for handle in handles:
            handle.remove()
        return found

    assert calls(True) == calls(False) != []
    with memlab.watch():
        assert not nn.modules.module._has_any_global_hook()


@pytest.mark.compiles
@pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "ignore_compile_internals"), reason="this torch compiles nothing under any mode"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch 2.11's own compiler
def test_compiled_regions_are_neither_compiled_again_nor_silent():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.GELU()), torch.ones(3, 4)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with memlab.watch() as seen:
        loss = compiled(x).sum()
    graphs_made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled(x)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs_made
    assert any("compiled region" in sentence for sentence in seen.blind)
    assert {line.node for line in seen.saved.lines} == {"CompiledFunctionBackward"}
    assert {line.module_class for line in seen.saved.lines} == {"Sequential"}
    loss.backward()


def test_a_tracer_sees_its_locals():
    """Reading whom a frame calls empties only the copy of its locals: the frame itself goes on unharmed."""
    lines = []

    def trace(frame, event, arg):
        if frame.f_code is nn.Module._call_impl.__code__:
            lines.append("self" in frame.f_locals)
        return trace

    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    before, x = sys.gettrace(), torch.ones(1, 2)
    with memlab.watch() as seen:
        sys.settrace(trace)
        try:
            y = model(x)
        finally:
            sys.settrace(before)
    assert all(lines) and lines and seen.saved.by("module") == {"1": 8}
    del y
