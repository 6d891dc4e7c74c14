"""What other versions take inside otherwise than 2.13, and what a prediction says of a torch that was not measured."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import memlab
from memlab import versions
from memlab.allocator import Allocator
from memlab.as_cuda import CudaStorages, Gpu
from memlab.as_cuda.choice import choose

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_fused_rms_norm_backward"), reason="this torch is older than CUDA's operators of today"
)
MIB = 1 << 20
OLD, NEW = (2, 11), (2, 13)
aten = torch.ops.aten


def on(monkeypatch, version):
    monkeypatch.setattr(versions, "TORCH", version)
    for name in ("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE", "TORCH_CUBLASLT_UNIFIED_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    return CudaStorages(Allocator(total=8 << 30), Gpu((9, 0), 132))


def held(storages):
    return sum([*storages.mode.workspaces.values(), *storages.mode.lt_workspaces.values()])


@pytest.mark.parametrize(
    ("shape", "dtype", "call", "old", "new"),
    [  # the peak of bytes asked for, the output among them, on the CUDA builds of 2.11, and of 2.12 to 2.14
        ((1, 1), torch.float32, lambda x: x.multinomial(1), 19, 23),
        ((1, 1), torch.float64, lambda x: x.multinomial(1, replacement=True), 27, 35),
        ((20,), torch.bfloat16, lambda x: x.multinomial(1), 50, 54),
        ((3, 20), torch.float32, lambda x: x.multinomial(1), 266, 274),
        ((3, 20), torch.float32, lambda x: x.multinomial(5), 422, 430),
        ((3, 20), torch.float32, lambda x: x.multinomial(5, replacement=True), 840, 840),
        ((300, 20_000), torch.float64, lambda x: x.multinomial(5), 48_810_081, 48_810_097),
        ((1, 20_000), torch.float32, lambda x: x.multinomial(5), 92_785, 92_793),
        ((4096, 1000), torch.float32, torch.any, 1 + 2000 + 4, 1 + 500 + 4),
        ((4096, 1000), torch.bfloat16, lambda x: x.all(0), 1000 + 16_384_000 + 32, 1000 + 8_192_000 + 32),
        ((4096, 1000), torch.int64, lambda x: x.any(0), 1000 + 65_536_000 + 32, 1000 + 8_192_000 + 32),
        ((20, 3000, 7), torch.int32, lambda x: x.all((0, 1)), 7 + 3360 + 8, 7 + 840 + 8),
    ],
)
def test_kernels_take_what_they_take_in_each_version(monkeypatch, shape, dtype, call, old, new):
    for version, expected in ((OLD, old), ((2, 12), new), (NEW, new)):
        with on(monkeypatch, version) as storages:
            card, x = storages.ledger.card, torch.ones(shape, dtype=dtype)
            before = card.memory_stats()["requested_bytes.all.current"]
            card.reset_peak()
            call(x)
            assert card.memory_stats()["requested_bytes.all.peak"] - before == expected, version


@pytest.mark.parametrize(
    ("make", "call", "until_2_14", "from_2_15"),
    [  # on the CUDA builds of 2.14 and 2.15, the output among them
        (lambda: torch.ones(8, 1000), lambda x: x.multinomial(5, replacement=True), 320 + 3 * 32_000, 320 + 2 * 32_000),
        (lambda: torch.ones(1000), lambda x: x.multinomial(5, replacement=True), 40 + 13_023, 40 + 9023),
        (lambda: [torch.ones(200_000), torch.ones(10), torch.ones(10)], torch._foreach_norm, 12 + 48, 12 + 32 + 24),
        (lambda: [torch.ones(each).double() for each in (200_000, 0)], torch._foreach_norm, 16 + 64, 16 + 16 + 32),
    ],
)
def test_kernels_take_what_they_take_from_2_15_on(monkeypatch, make, call, until_2_14, from_2_15):
    for version, expected in ((NEW, until_2_14), ((2, 14), until_2_14), ((2, 15), from_2_15)):
        with on(monkeypatch, version) as storages:
            card, given = storages.ledger.card, make()
            before = card.memory_stats()["requested_bytes.all.current"]
            card.reset_peak()
            call(given)
            assert card.memory_stats()["requested_bytes.all.peak"] - before == expected, version


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_efficient_attention_has_seed_and_offset_on_the_device_from_2_14_on(monkeypatch, dropout):
    held = {}
    for version in (OLD, NEW, (2, 14)):
        with on(monkeypatch, version) as storages:
            query = torch.ones(1, 2, 64, 32, requires_grad=True)
            before = storages.ledger.card.memory_stats()["requested_bytes.all.current"]
            out = F.scaled_dot_product_attention(query, query, query, dropout_p=dropout)
            assert type(out.grad_fn).__name__ == "ScaledDotProductEfficientAttentionBackward0"
            held[version] = storages.ledger.card.memory_stats()["requested_bytes.all.current"] - before
    assert held[OLD] == held[NEW] == held[2, 14] - (0 if dropout else 2 * 8)  # with dropout they are on the host


def heads(query, key, width, values=None, dtype=torch.float32, length=64, grad=True):
    shapes = (query, width), (key, width), (key, values or width)
    return [torch.ones(1, each, length, size, dtype=dtype, requires_grad=grad) for each, size in shapes]


@pytest.mark.parametrize(
    ("capability", "given", "gqa", "until_2_13", "from_2_14"),
    [  # as torch._fused_sdp_choice answers on the CUDA builds of 2.13 and 2.15; 2.14's says the same
        ((8, 0), heads(8, 2, 64), True, "math", "efficient"),
        ((8, 0), heads(8, 1, 64), False, "math", "efficient"),
        ((8, 0), heads(8, 2, 64), False, "math", "math"),
        ((8, 0), heads(8, 2, 64, dtype=torch.bfloat16), True, "flash", "flash"),
        ((8, 0), heads(8, 1, 64, dtype=torch.bfloat16), False, "math", "flash"),
        ((7, 5), heads(8, 2, 64, dtype=torch.float16), True, "math", "efficient"),
        ((9, 0), heads(8, 1, 64, dtype=torch.bfloat16), False, "math", "cudnn"),
        ((9, 0), heads(8, 8, 192, dtype=torch.bfloat16), False, "cudnn", "flash"),
        ((9, 0), heads(8, 8, 192, 128, dtype=torch.bfloat16), False, "cudnn", "cudnn"),
        ((9, 0), heads(8, 8, 192, 64, dtype=torch.bfloat16), False, "cudnn", "efficient"),
        ((9, 0), heads(8, 8, 256, dtype=torch.bfloat16), False, "cudnn", "cudnn"),
        ((9, 0), heads(8, 8, 192, dtype=torch.bfloat16, grad=False), False, "cudnn", "cudnn"),
        ((10, 0), heads(8, 8, 192, dtype=torch.bfloat16, grad=False), False, "flash", "cudnn"),
        ((10, 0), heads(8, 8, 192, dtype=torch.bfloat16), False, "flash", "flash"),
        ((9, 0), heads(8, 8, 264, dtype=torch.bfloat16), False, "efficient", "efficient"),
    ],
)
def test_attention_takes_the_kernel_of_the_torch_that_runs(monkeypatch, capability, given, gqa, until_2_13, from_2_14):
    for version, expected in ((OLD, until_2_13), (NEW, until_2_13), ((2, 14), from_2_14), ((2, 15), from_2_14)):
        monkeypatch.setattr(versions, "TORCH", version)
        assert choose(Gpu(capability, 132), *given, None, 0.0, False, gqa) == expected, version


def test_cudnn_gives_no_gradient_to_a_mask():
    mask = torch.zeros(64, 64, dtype=torch.bfloat16)
    given = heads(8, 8, 64, dtype=torch.bfloat16)
    assert choose(Gpu((9, 0), 132), *given, mask, 0.0, False, False) == "cudnn"
    assert choose(Gpu((9, 0), 132), *given, mask.requires_grad_(), 0.0, False, False) == "efficient"


@pytest.mark.parametrize(("shared", "extra"), [(8, 0), (2, 2 * 8 * 256 * 64 * 4), (1, 2 * 8 * 256 * 64 * 4)])
def test_gradients_of_shared_heads_are_made_for_each_that_shares_them(monkeypatch, shared, extra):
    """As the CUDA build of 2.15 allocates them in the efficient kernel's backward, and that of 2.14."""
    with on(monkeypatch, (2, 15)) as storages:
        query, key, value = (each.detach() for each in heads(8, shared, 64, length=256))
        out, *rest = aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
        given = torch.ones_like(out), query, key, value, None, out, *rest, 0.0, [True, True, True, False]
        card = storages.ledger.card
        before = card.memory_stats()["requested_bytes.all.current"]
        card.reset_peak()
        found = aten._scaled_dot_product_efficient_attention_backward(*given)
        most = card.memory_stats()["requested_bytes.all.peak"] - before
    one = 8 * 256 * 64 * 4
    inside = max(one + 2 * 8192, 8192 + 524_800)
    assert most == sum(each.nbytes for each in found[:3]) + extra + inside


def test_each_thread_that_adds_a_bias_has_such_a_workspace(monkeypatch):
    """As on an H100 with torch 2.11: one more where a checkpoint runs forward again in backward's thread."""
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.ones(4, 8, requires_grad=True)

    with on(monkeypatch, OLD) as storages:
        model(x).sum().backward()
        assert held(storages) == 65 * MIB
        checkpoint(model, x, use_reentrant=False).sum().backward()
        assert held(storages) == 66 * MIB


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((2, 10), "torch 2.11's CUDA build with an emulated device; torch 2.10 was not measured"),
        (OLD, "torch 2.11's CUDA build with an emulated device, not yet"),
        (NEW, "torch 2.13's CUDA build with an emulated device, not yet"),
        ((2, 14), "torch 2.14's CUDA build with an emulated device, not yet"),
        ((2, 15), "torch 2.15's CUDA build with an emulated device, not yet"),
        ((2, 16), "torch 2.15's CUDA build with an emulated device; torch 2.16 was not measured"),
    ],
)
def test_a_prediction_says_on_which_torch_it_was_checked(monkeypatch, version, expected):
    monkeypatch.setattr(versions, "TORCH", version)
    found = memlab.predict(lambda: torch.ones(4).sum(), steps=1)
    assert sum(expected in each for each in found.exact) == 1


@pytest.mark.parametrize(("version", "low"), [((2, 11), True), ((2, 12), True), ((2, 13), False), ((2, 15), False)])
def test_a_card_has_the_allocator_of_the_torch_that_runs(monkeypatch, version, low):
    """Of two free blocks of one size the lower address was taken up to 2.12, since then that of the older segment."""
    monkeypatch.setattr(versions, "TORCH", version)
    with memlab.watch(card="h100-80gb") as seen:
        card = seen.card.card
    assert (card.next_order(30 * MIB, 0) == 0) is low  # the address alone decides where all orders are the same
    assert versions.tie_break() == ("address" if low else "segment")


@pytest.mark.parametrize(("version", "told"), [((2, 14), "to avoid fragmentation"), ((2, 15), "over-reserving VA")])
def test_a_card_says_what_this_torch_says_when_it_is_full(monkeypatch, version, told):
    monkeypatch.setattr(versions, "TORCH", version)
    found = memlab.predict(lambda: torch.empty(1 << 30), "1 GiB", steps=1, conf="expandable_segments:True")
    assert told in found.oom
    with memlab.watch(card="1 GiB") as seen:
        seen.card.card.configure("expandable_segments:True")
        with pytest.raises(torch.OutOfMemoryError, match=told):
            torch.empty(1 << 30)
