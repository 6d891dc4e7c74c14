"""A CPU run as on CUDA: CUDA's saved tensors, the CPU's values, CUDA's allocations, and nothing left behind."""

import copy
import gc
import threading

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.nn import functional as F
from torch.optim import optimizer as torch_optimizer

import memlab
from memlab import threads, versions
from memlab.allocator import Allocator
from memlab.as_cuda import CudaStorages, Gpu, account
from memlab.as_cuda.choice import choose
from memlab.as_cuda.fakes import NEEDS_DATA, fake_tensors, why
from memlab.as_cuda.reductions import buffers
from memlab.experiment import find, load
from memlab.probes import cuda as cuda_probe
from memlab.probes.saved import Saved

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_fused_rms_norm_backward"), reason="this torch is older than CUDA's operators of today"
)
MIB = 1 << 20
H100, A100, RTX4090, T4 = Gpu((9, 0), 132), Gpu((8, 0), 108), Gpu((8, 9), 128), Gpu((7, 5), 40)


def as_on(gpu=H100, total=8 << 30):
    return CudaStorages(Allocator(total=total), gpu)


def qkv(batch=2, heads=4, length=50, width=64, dtype=torch.float32, grad=True):
    torch.manual_seed(0)
    return [torch.randn(batch, heads, length, width, dtype=dtype, requires_grad=grad) for _ in range(3)]


def node(tensor):
    return type(tensor.grad_fn).__name__


@pytest.mark.parametrize(
    ("gpu", "dtype", "options", "expected"),
    [  # each as torch 2.13's CUDA build answers torch._fused_sdp_choice
        (H100, torch.float32, {}, "Efficient"),
        (H100, torch.bfloat16, {}, "Cudnn"),
        (A100, torch.bfloat16, {}, "Flash"),
        (H100, torch.bfloat16, {"dropout_p": 0.1}, "Flash"),
        (A100, torch.bfloat16, {"attn_mask": torch.ones(50, 50, dtype=torch.bool)}, "Efficient"),
        (T4, torch.float16, {}, "Efficient"),
    ],
)
def test_attention_takes_the_kernel_that_cuda_takes(gpu, dtype, options, expected):
    with as_on(gpu):
        assert node(F.scaled_dot_product_attention(*qkv(dtype=dtype), **options)) == (
            f"ScaledDotProduct{expected}AttentionBackward0"
        )


def test_the_choice_respects_what_kernels_cannot_do():
    wide = qkv(width=320, dtype=torch.bfloat16)
    odd = qkv(width=63)
    assert choose(H100, *wide, None, 0.0, False, False) == "efficient"
    assert choose(H100, *odd, None, 0.0, False, False) == "math"
    assert choose(T4, *odd, None, 0.0, False, False) == "efficient"
    assert choose(RTX4090, *qkv(width=208, dtype=torch.bfloat16), None, 0.0, False, False) == "efficient"
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert choose(H100, *qkv(), None, 0.0, False, False) == "math"


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"attn_mask": "bool"}, {"attn_mask": "float"}, {"scale": 0.3}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_has_the_values_and_gradients_of_the_cpu(options, dtype):
    mask = torch.rand(50, 50) > 0.3 if options.get("attn_mask") == "bool" else torch.randn(50, 50, dtype=dtype)
    options = options | ({"attn_mask": mask} if "attn_mask" in options else {})
    here, there = qkv(dtype=dtype), qkv(dtype=dtype)
    expected = F.scaled_dot_product_attention(*here, **options)
    with as_on():
        found = F.scaled_dot_product_attention(*there, **options)
        found.float().square().sum().backward()
    expected.float().square().sum().backward()
    close = {"rtol": 2e-2, "atol": 6e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found, expected, **close)
    for one, other in zip(there, here, strict=True):
        torch.testing.assert_close(one.grad, other.grad, **close)


@pytest.mark.parametrize(("length", "padded"), [(50, 56), (56, 56), (60, 64), (64, 64), (9, 16), (33, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_are_padded_as_on_cuda(dtype, length, padded):
    """What torch's CUDA builds of 2.11 to 2.15 allocated beside the output on an emulated device."""
    with as_on(A100) as storages:
        mask = torch.zeros(length, length, dtype=dtype)
        given = qkv(length=length, dtype=dtype, grad=False)
        before = storages.ledger.card.requested
        out = F.scaled_dot_product_attention(*given, attn_mask=mask)
        peak = storages.ledger.card.memory_stats()["requested_bytes.all.peak"]
    copy = length * padded * mask.element_size() if padded > length else 0
    assert peak - before == out.nbytes + copy + (16 if versions.from_2_14() else 0)  # seed and offset


def test_dropout_in_attention_is_the_same_in_forward_and_backward():
    query, key, value = (each.double().float().detach().requires_grad_() for each in qkv(1, 1, 8, 8))
    with as_on():
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=0.5)
        (by_value,) = torch.autograd.grad(out.sum(), value)
    weights = torch.linalg.lstsq(value.detach()[0, 0].T, out.detach()[0, 0].T).solution.T  # out = weights @ value
    torch.testing.assert_close(by_value[0, 0, :, 0], weights.sum(0), rtol=1e-2, atol=1e-2)


def test_groups_of_queries_share_keys():
    query, key, value = qkv(heads=4)[0], *(each[:, :2].detach().requires_grad_() for each in qkv()[1:])
    halves = [each.detach().bfloat16().requires_grad_() for each in (query, key, value)]
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    expected.sum().backward()
    with as_on():
        found = F.scaled_dot_product_attention(*halves, enable_gqa=True)
        found.sum().backward()
    torch.testing.assert_close(found.float(), expected, rtol=5e-2, atol=5e-2)
    torch.testing.assert_close(halves[2].grad.float(), value.grad, rtol=5e-2, atol=5e-2)
    assert halves[1].grad.shape == key.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_have_the_values_and_gradients_of_the_cpu(dtype):
    torch.manual_seed(0)

    def run():
        torch.manual_seed(1)
        x = torch.randn(6, 4, 8, 8, dtype=dtype, requires_grad=True)
        layers = [nn.BatchNorm2d(4, dtype=dtype), nn.LayerNorm(8, dtype=dtype), nn.RMSNorm(8, dtype=dtype)]
        y = x
        for layer in layers:
            y = layer(y)
        (y.float() * torch.linspace(0, 1, 8)).sum().backward()
        return [y, x.grad, layers[0].running_var, *(p.grad for layer in layers for p in layer.parameters())]

    expected = run()
    with as_on():
        found = run()
    close = {"rtol": 3e-2, "atol": 6e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **close)


def test_cuda_saves_what_cuda_saves():
    x = torch.randn(64, 32, requires_grad=True)
    half = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    with as_on(), memlab.watch() as seen:
        dropped = F.dropout(x, 0.5)
        normal = F.layer_norm(half, (32,))
        root = F.rms_norm(x, (32,), torch.ones(32, requires_grad=True))
        lines = {(line.dtype, line.bytes) for line in seen.saved.lines}
    assert node(dropped) == "NativeDropoutBackward0"
    assert node(root) == "FusedRmsNormBackward0"
    assert ("bool", 64 * 32) in lines
    assert ("float32", 64 * 4) in lines  # mean and rstd of a bfloat16 layer norm
    assert normal.dtype == torch.bfloat16


def test_everything_is_taken_back():
    x = torch.randn(4, 4, requires_grad=True)
    before = node(F.dropout(x, 0.5)), torch_optimizer._get_foreach_kernels_supported_devices()
    with pytest.raises(ZeroDivisionError), as_on(), as_on(A100):
        assert node(F.dropout(x, 0.5)) == "NativeDropoutBackward0"
        raise ZeroDivisionError
    assert (node(F.dropout(x, 0.5)), torch_optimizer._get_foreach_kernels_supported_devices()) == before
    assert node(F.rms_norm(x, (4,))) != "FusedRmsNormBackward0"
    for name, key in (("dropout", "AutogradCPU"), ("_fused_rms_norm", "CPU"), ("layer_norm", "AutocastCPU")):
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", key)


def test_the_outer_device_is_back_after_the_inner_one():
    half = qkv(dtype=torch.bfloat16)
    with as_on(H100):
        with as_on(A100):
            assert node(F.scaled_dot_product_attention(*half)) == "ScaledDotProductFlashAttentionBackward0"
        assert node(F.scaled_dot_product_attention(*half)) == "ScaledDotProductCudnnAttentionBackward0"


@pytest.mark.parametrize(
    ("shape", "dims", "item", "accumulator", "expected"),
    [  # as torch 2.13's CUDA build allocates them on a device of 132 multiprocessors
        ((2048, 256), [0], 2, 4, (4_194_304, 8)),
        ((2048, 1024), [0], 4, 4, (16_777_216, 32)),
        ((2048, 768), [0], 4, 4, (12_582_912, 24)),
        ((4096, 1000), [0], 4, 16, (131_072_000, 32)),
        ((4096, 1000), [], 4, 4, (2000, 4)),
        ((640_000,), [0], 4, 4, (316, 4)),
        ((64, 64), [], 4, 4, ()),
        ((0, 64), [0], 4, 4, ()),
    ],
)
def test_reductions_take_what_they_take_on_cuda(shape, dims, item, accumulator, expected):
    strides = torch.empty(shape, device="meta").stride()
    assert buffers(shape, strides, dims, item=item, accumulator=accumulator, gpu=H100) == expected


def test_a_kernels_own_memory_counts_in_the_peak_and_is_free_afterwards():
    with as_on() as storages:
        card = storages.ledger.card
        x = torch.ones(2048, 1024)
        before = card.allocated
        kept = x.sum(0)
        assert card.allocated == before + 4096
        assert card.peak_allocated == before + 4096 + 16_777_216 + 512
    with as_on(total=24 * MIB) as storages:
        x = torch.ones(2048, 1024)
        with pytest.raises(torch.OutOfMemoryError):
            x.sum(0)
        storages.ledger.settle()
        assert storages.ledger.card.allocated <= 8 * MIB + 4096
    del kept


@pytest.mark.parametrize(
    ("dtype", "call", "expected"),
    [  # bytes asked for beside the output, measured on torch 2.13's CUDA build
        (torch.float32, lambda x: x.sum(dtype=torch.float64), 1_680_212),
        (torch.float32, lambda x: x.sum(0, dtype=torch.float64), 1_680_000),
        (torch.float32, lambda x: x.mean(dtype=torch.bfloat16), 420_108),
        (torch.float32, lambda x: x.nansum(dtype=torch.float64), 1_680_212),
        (torch.float32, lambda x: torch.linalg.vector_norm(x, dtype=torch.float64), 1_680_212),
        (torch.bfloat16, lambda x: x.sum(dtype=torch.float32), 108),
    ],
)
def test_a_reduction_told_its_type_makes_a_copy_unless_the_kernel_reads_half_types(dtype, call, expected):
    with as_on() as storages:
        card, x = storages.ledger.card, torch.ones(300, 700, dtype=dtype)
        before = card.memory_stats()["requested_bytes.all.current"]
        out = call(x)
        own = card.memory_stats()["requested_bytes.all.peak"] - before - out.nbytes
    assert own == expected


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_tensors_run_and_are_said_not_to_be_counted():
    with as_on() as storages:
        a = torch.eye(64).to_sparse_csr()
        b = a @ torch.ones(64, 64)
    assert torch.equal(b, torch.ones(64, 64))
    assert any("sparse_csr" in sentence for sentence in storages.blind)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [  # bytes that torch 2.13's CUDA build allocated on an emulated device, in inference mode as without
        (nn.LayerNorm(256), [524_288, 2048, 2048]),
        (nn.RMSNorm(256), [524_288, 2048]),
        (nn.GroupNorm(8, 256), [524_288, 16_384, 16_384]),
        (nn.Softmax(-1), [524_288]),
        (nn.Linear(256, 64, bias=False), [131_072, 33_554_432]),
        (nn.CrossEntropyLoss(), [524_288, 4, 4]),
    ],
)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_layers_take_the_same_in_inference_mode(context, layer, expected):
    with as_on() as storages, context():
        given = [torch.ones(512, 256)]
        if isinstance(layer, nn.CrossEntropyLoss):
            given.append(torch.zeros(512, dtype=torch.long))
        card = storages.ledger.card
        card.record_history()
        layer(*given)
        assert account.unknown(storages.mode) == []
        made = [each["size"] for each in card.snapshot()["device_traces"][0] if each["action"] == "alloc"]
    assert sorted(made) == sorted(expected)


def masked(x, number):
    x[x > 0] = number


def first(x, number):
    x[0] = number


def sliced(x, number):
    x[1:3] = number


def columns(x, number):
    x[..., (x > 0)[0, 0]] = number


def picked(x, number):
    x[torch.arange(10)] = number


@pytest.mark.parametrize(
    ("assign", "number", "expected"),
    [  # bytes that the CUDA builds of torch 2.13 and 2.15 allocated on an emulated device
        (masked, 3.0, 60_000),
        (masked, 3, 60_000),
        (columns, 3.0, 60_000),
        (first, 3.0, 0),
        (sliced, 3.0, 0),
        (picked, 3.0, 80 + 4 * (not versions.from_2_15())),
        (masked, torch.tensor(3.0), 60_000 + 60_000 * 3 * 8),  # a tensor is on the card: the mask becomes indices
    ],
)
@pytest.mark.parametrize("threaded", [False, True])
def test_a_number_is_assigned_as_on_cuda(threaded, assign, number, expected):
    with as_on() as storages, threads.followed(storages.opened_in_thread):
        x, card = torch.ones(30, 40, 50), storages.ledger.card
        thread, before = threading.Thread(target=assign, args=(x, number)), card.requested
        if threaded:
            thread.start()
            thread.join()
        else:
            thread.run()
        peak = card.memory_stats()["requested_bytes.all.peak"]
    assert peak - before == expected
    assert assign is picked or assign is masked or account.unknown(storages.mode) == []
    assert bool((x[0] == 3).all()) or assign is sliced


def test_optimizers_do_as_on_cuda():
    with as_on() as storages:
        weight = nn.Parameter(torch.ones(1000))
        weight.grad = torch.ones(1000)
        optimizer = torch.optim.Adam([weight])
        before = storages.ledger.card.allocated
        optimizer.step()
        storages.ledger.settle()
        assert storages.ledger.card.allocated == before + 2 * 4096  # and not 512 for step, which is on the host
        assert "_foreach_sqrt" in {str(each._overloadpacket).split(".")[1] for each in storages.mode.ran}


@pytest.mark.parametrize(
    ("make", "scalars"),
    [  # on the card, for each parameter; the rest of Adagrad's and Rprop's is on the host
        (torch.optim.Adagrad, 0),
        (torch.optim.Rprop, 0),
        (lambda parameters: torch.optim.ASGD(parameters, lr=0.1), 3),
    ],
)
def test_scalars_of_optimizers_are_where_cuda_has_them(make, scalars):
    with as_on() as storages:
        weights = [nn.Parameter(torch.ones(1000)) for _ in range(2)]
        for weight in weights:
            weight.grad = torch.ones(1000)
        before = storages.ledger.card.allocated
        optimizer = make(weights)
        optimizer.step()
        storages.ledger.settle()
        state = [each for weight in weights for each in optimizer.state[weight].values()]
        tensors = sum(4096 for each in state if isinstance(each, torch.Tensor) and each.dim())
        assert storages.ledger.card.allocated == before + tensors + 2 * scalars * 512


def test_autocast_of_cuda_is_that_of_cuda():
    x, layer = torch.randn(8, 16), nn.Linear(16, 16)
    with as_on(), torch.autocast("cuda", torch.bfloat16):
        low = layer(x)
        normal = F.layer_norm(low, (16,))
        assert (low.dtype, normal.dtype, low.softmax(-1).dtype) == (torch.bfloat16, torch.float32, torch.float32)
        assert F.mse_loss(low, low).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert F.layer_norm(layer(x), (16,)).dtype == torch.bfloat16


def step(dtype=torch.float32):
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.1), nn.LayerNorm(256), nn.Linear(256, 8)).to(
        dtype
    )
    optimizer, x = torch.optim.AdamW(model.parameters()), torch.randn(128, 64, dtype=dtype)

    def run():
        F.cross_entropy(model(x).float(), torch.zeros(128, dtype=torch.long)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_tensors_allocate_what_real_ones_do(dtype):
    peaks = []
    for fake in (False, True):
        with as_on() as storages:
            if fake:
                with fake_tensors(), as_on() as storages:
                    run = step(dtype)
                    run(), run()
            else:
                run = step(dtype)
                run(), run()
        card = storages.ledger.card
        peaks.append((card.peak_allocated, card.peak_reserved))
    assert peaks[0] == peaks[1]


def test_fake_modules_are_copied():
    with fake_tensors():
        fake = nn.TransformerEncoderLayer(8, 2, 16)
        fake.tied = fake.linear1.weight
        copied = copy.deepcopy(fake)
        assert copied.tied is copied.linear1.weight is not fake.linear1.weight
        assert isinstance(copied.tied, nn.Parameter) and copied.tied.requires_grad
        assert [each.shape for each in copied.parameters()] == [each.shape for each in fake.parameters()]
        copied(torch.ones(3, 2, 8)).sum().backward()
        assert copied.tied.grad.shape == (16, 8) and fake.tied.grad is None
        with pytest.raises(RuntimeError, match="graph leaves"):
            copy.deepcopy(copied.tied * 2)
    assert "__deepcopy__" not in vars(FakeTensor)


def test_fake_modules_change_type_and_stay_tied():
    with fake_tensors():
        one, other = nn.Linear(4, 4), nn.Linear(4, 4)
        other.weight = one.weight
        both = nn.Sequential(one, other).to(torch.bfloat16)
        assert both[0].weight is both[1].weight
        assert both[0].weight.dtype == torch.bfloat16
        with pytest.raises(NEEDS_DATA) as raised:
            both[0].weight.long().sum().item()
    assert "a whole number that is read of a tensor" in why(raised.value)
    assert nn.Linear(2, 2).to(torch.float64).weight.dtype == torch.float64


def test_lstm_cells_are_fused_and_have_the_values_and_gradients_of_the_cpu():
    def run():
        torch.manual_seed(0)
        cell, x = nn.LSTMCell(8, 16), torch.randn(4, 8, requires_grad=True)
        state = torch.zeros(4, 16), torch.zeros(4, 16)
        for _ in range(3):
            state = cell(x, state)
        (state[0].square().sum() + state[1].sum()).backward()
        return [*state, x.grad, *(each.grad for each in cell.parameters())]

    expected = run()
    with as_on():
        found = run()
    assert node(found[0]) == "ThnnFusedLstmCellBackward0"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gru_cells_are_fused_and_have_the_values_and_gradients_of_the_cpu():
    def run(bias):
        torch.manual_seed(0)
        cell, x = nn.GRUCell(8, 16, bias=bias), torch.randn(4, 8, requires_grad=True)
        state = torch.zeros(4, 16)
        for _ in range(3):
            state = cell(x, state)
        state.square().sum().backward()
        return [state, x.grad, *(each.grad for each in cell.parameters())]

    for bias in (True, False):
        expected = run(bias)
        with as_on():
            found = run(bias)
        assert node(found[0]) == "ThnnFusedGruCellBackward0"
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_a_gru_cell_keeps_five_times_its_state():
    cell, x = nn.GRUCell(8, 16), torch.zeros(4, 8)
    with as_on() as storages, Saved(storages) as saved:
        state = cell(x, torch.zeros(4, 16))
        kept = [line.bytes for line in saved.lines if line.node == "ThnnFusedGruCellBackward0"]
    assert max(kept) == 5 * 16 * 4 * 4  # as torch 2.13's CUDA build allocates it
    del state


def death(device):
    """Return the step at which oom_demo's first arm runs out of memory."""
    demo = load(find("oom_demo"))
    sizes = demo.with_sizes({}, device)
    with torch.device(device):
        material = demo.setup(sizes)
    arm, step = demo.arm("keep_scores").run(*material), 0
    with pytest.raises(torch.OutOfMemoryError):
        while True:
            step += 1
            next(arm)
    return step


def simulated_death(size, total, gpu):
    with CudaStorages(Allocator(total=total, fraction=size / total), gpu):
        return death("cpu")


@pytest.mark.parametrize(("size", "step"), [(96, 11), (128, 17)])
def test_oom_demo_dies_at_the_step_recorded_on_cuda(size, step):
    # recorded with torch 2.13's CUDA build on an emulated H100; test_oom_demo_dies_as_on_this_device measures it again
    assert simulated_death(size * MIB, 85_017_100_288, H100) == step


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
@pytest.mark.parametrize("size", [96, 160, 256])
def test_oom_demo_dies_as_on_this_device(size):
    device, found = torch.device("cuda", 0), torch.cuda.get_device_properties(0)
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    cuda_probe.limit(device, size * MIB)
    try:
        step = death("cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    gpu = Gpu((found.major, found.minor), found.multi_processor_count)
    assert simulated_death(size * MIB, found.total_memory, gpu) == step
