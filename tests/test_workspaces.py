"""cuBLAS workspaces on a card: which operators take one, of which size, and whether the device at hand agrees."""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import memlab
from memlab import versions
from memlab.allocator import Allocator
from memlab.as_cuda import CudaStorages, Gpu
from memlab.as_cuda.workspaces import lt_bytes, workspace_bytes

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_fused_rms_norm_backward"), reason="this torch is older than CUDA's operators of today"
)
MIB = 1 << 20
H100, A100 = Gpu((9, 0), 132), Gpu((8, 0), 108)
NONE, CUBLAS, LT = "neither", "cuBLAS", "cuBLASLt"


def take(*shape, device="cpu"):
    return torch.ones(shape, device=device)


def addmm(m, k, n, bias=None, out=None, **options):
    """Return a call of addmm; ``bias`` is a shape, or what is to be made of one."""
    shape = bias if isinstance(bias, tuple) else (n,)

    def call(ones):
        start = bias(ones) if callable(bias) else ones(*shape)
        given = {"out": ones(m, n)} if out else {}
        return torch.addmm(start, ones(m, k), ones(k, n), **options, **given)

    return call


def inference(call):
    def run(ones):
        with torch.inference_mode():
            return call(ones)

    return run


# What each takes on torch 2.11's, 2.13's and 2.15's CUDA builds, on an emulated H100.
CALLS = {
    "mm": (lambda ones: ones(8, 8) @ ones(8, 8), CUBLAS),
    "mm out": (lambda ones: torch.mm(ones(8, 8), ones(8, 8), out=ones(8, 8)), CUBLAS),
    "mm of no rows": (lambda ones: ones(0, 8) @ ones(8, 8), NONE),
    "mm over nothing": (lambda ones: ones(4, 0) @ ones(0, 8), NONE),
    "bmm": (lambda ones: torch.bmm(ones(2, 8, 8), ones(2, 8, 8)), CUBLAS),
    "baddbmm in place": (lambda ones: ones(2, 8, 8).baddbmm_(ones(2, 8, 8), ones(2, 8, 8)), CUBLAS),
    "addbmm in place": (lambda ones: ones(8, 8).addbmm_(ones(2, 8, 8), ones(2, 8, 8)), CUBLAS),
    "mv": (lambda ones: torch.mv(ones(8, 8), ones(8)), CUBLAS),
    "addmv in place": (lambda ones: ones(8).addmv_(ones(8, 8), ones(8)), CUBLAS),
    "dot": (lambda ones: torch.dot(ones(8), ones(8)), CUBLAS),
    "dot of nothing": (lambda ones: torch.dot(ones(0), ones(0)), CUBLAS),
    "outer product": (lambda ones: torch.addr(ones(8, 8), ones(8), ones(8)), NONE),
    "bilinear": (lambda ones: F.bilinear(ones(4, 8), ones(4, 8), ones(3, 8, 8)), CUBLAS),
    "triangular": (lambda ones: torch.linalg.solve_triangular(ones(3, 3), ones(3, 1), upper=True), CUBLAS),
    "triangular, empty": (lambda ones: torch.linalg.solve_triangular(ones(0, 0), ones(0, 1), upper=True), CUBLAS),
    "addmm": (addmm(4, 8, 8), LT),
    "addmm of one row": (addmm(1, 8, 8), LT),
    "addmm over one": (addmm(4, 1, 8), CUBLAS),
    "addmm to one": (addmm(4, 8, 1), CUBLAS),
    "addmm, alpha": (addmm(4, 8, 8, alpha=2), LT),
    "addmm, beta": (addmm(4, 8, 8, beta=2), CUBLAS),
    "addmm, out": (addmm(4, 8, 8, out=True), LT),
    "addmm, a row as bias": (addmm(4, 8, 8, bias=(1, 8)), LT),
    "addmm, a number as bias": (addmm(4, 8, 8, bias=(1,)), CUBLAS),
    "addmm, a scalar as bias": (addmm(4, 8, 8, bias=()), CUBLAS),
    "addmm of transposed": (lambda ones: torch.addmm(ones(8), ones(6, 4).t(), ones(8, 6).t()), LT),
    "addmm, a matrix as bias": (addmm(4, 8, 8, bias=(4, 8)), CUBLAS),
    "addmm, a bias with gaps": (addmm(4, 8, 8, bias=lambda ones: ones(16)[::2]), CUBLAS),
    "addmm in place": (lambda ones: ones(4, 8).addmm_(ones(4, 8), ones(8, 8)), CUBLAS),
    "addmm, activation": (lambda ones: torch._addmm_activation(ones(8), ones(4, 8), ones(8, 8)), LT),
    "linear": (lambda ones: F.linear(ones(2, 4, 8), ones(8, 8), ones(8)), LT),
    "linear without bias": (lambda ones: F.linear(ones(2, 4, 8), ones(8, 8)), CUBLAS),
    "linear of a transposed batch": (lambda ones: F.linear(ones(4, 2, 8).mT, ones(8, 2), ones(8)), CUBLAS),
    "linear of it in inference mode": (inference(lambda ones: F.linear(ones(4, 2, 8).mT, ones(8, 2), ones(8))), CUBLAS),
    "linear in inference mode": (inference(lambda ones: F.linear(ones(2, 4, 8), ones(8, 8), ones(8))), LT),
}


HALVES = {  # from torch 2.14 on cuBLASLt adds a matrix of half types
    "addmm, a matrix as bias": LT,
    "addmm, a bias with gaps": CUBLAS,
    "addmm in place": CUBLAS,
    "addmm of one row": LT,
    "a matrix, beta": (addmm(4, 8, 8, bias=(4, 8), beta=2), LT),
    "a matrix of one row, beta": (addmm(1, 8, 8, bias=(1, 8), beta=2), CUBLAS),
    "a matrix that counts for nothing": (addmm(4, 8, 8, bias=(4, 8), beta=0), CUBLAS),
    "a matrix to one": (addmm(4, 8, 1, bias=(4, 1)), CUBLAS),
    "a transposed matrix": (addmm(4, 8, 8, bias=lambda ones: ones(8, 4).t()), CUBLAS),
    "a matrix, out": (addmm(4, 8, 8, bias=(4, 8), out=True), LT),
}
SETTINGS = (
    "TORCH_CUBLASLT_UNIFIED_WORKSPACE",
    "TORCH_CUBLAS_WORKSPACE_CACHE",
    "CUBLASLT_WORKSPACE_SIZE",
    "CUBLAS_WORKSPACE_CONFIG",
)


def of_type(call, dtype):
    return lambda ones: call(lambda *shape: ones(*shape).to(dtype))


@pytest.fixture(params=[True, False], ids=["apart", "shared"])
def apart(request, monkeypatch):
    """Whether cuBLASLt has a workspace of its own beside cuBLAS's."""
    on(monkeypatch, (2, 11) if request.param else (2, 13))
    return request.param


def on(monkeypatch, version):
    monkeypatch.setattr(versions, "TORCH", version)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def told(call, gpu=H100):
    with CudaStorages(Allocator(total=8 << 30), gpu) as storages:
        call(take)
        return storages.mode.workspaces, storages.mode.lt_workspaces


@pytest.mark.parametrize("name", CALLS)
def test_who_takes_a_workspace(name, apart):
    call, expected = CALLS[name]
    cublas, lt = told(call)
    assert cublas == ({"forward": 32 * MIB} if expected != NONE else {})
    assert lt == ({"forward": MIB} if apart and expected == LT else {})


def at_peak(call, gpu=H100):
    """Return the bytes that are asked for at the peak of a call."""
    card = Allocator(total=8 << 30)
    with CudaStorages(card, gpu):
        call(take)
    return card.memory_stats()["requested_bytes.all.peak"]


@pytest.mark.parametrize("name", CALLS)
def test_from_2_15_on_a_product_gives_its_workspace_back(name, monkeypatch):
    call, expected = CALLS[name]
    on(monkeypatch, (2, 13))
    kept = at_peak(call)
    on(monkeypatch, (2, 15))
    assert told(call) == ({}, {})
    assert (kept - at_peak(call)) // MIB == (31 if expected == LT else 0)
    monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", "65536")  # of its own, it may be larger than cuBLAS's
    assert round((at_peak(call) - kept) / MIB) == (32 if expected == LT else 0)
    monkeypatch.setenv("TORCH_CUBLAS_WORKSPACE_CACHE", "1")
    assert at_peak(call) == kept
    assert told(call) == ({"forward": 32 * MIB} if expected != NONE else {}, {})


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_from_2_14_on_cublaslt_adds_a_matrix_of_half_types(name, dtype, monkeypatch):
    call, expected = (CALLS[name][0], HALVES[name]) if name in CALLS else HALVES[name]
    on(monkeypatch, (2, 14))
    monkeypatch.setenv("TORCH_CUBLASLT_UNIFIED_WORKSPACE", "0")
    lt = {"forward": MIB}
    assert told(of_type(call, dtype))[1] == (lt if expected == LT else {})
    assert told(call)[1] == (lt if name == "addmm of one row" else {})
    monkeypatch.setattr(versions, "TORCH", (2, 13))
    assert told(of_type(call, dtype))[1] == (lt if name == "addmm of one row" else {})


def on_device(call):
    """Return the bytes of workspaces that a call has left, and those that it asks for at its peak."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    call(lambda *shape: take(*shape, device="cuda"))
    stats = torch.cuda.memory_stats()
    return tuple(stats[f"requested_bytes.all.{when}"] - before for when in ("current", "peak"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_this_device_takes_what_is_told(dtype):
    found = torch.cuda.get_device_properties(0)
    gpu = Gpu((found.major, found.minor), found.multi_processor_count)
    has_none = {torch.bfloat16: ("triangular", "triangular, empty"), torch.complex64: ("addmm, activation",)}
    calls = {name: call for name, (call, _) in CALLS.items() if name not in has_none.get(dtype, ())}
    calls |= {name: each[0] for name, each in HALVES.items() if name not in CALLS}
    for name, given in calls.items():
        call = of_type(given, dtype)
        cublas, lt = told(call, gpu)
        left, most = on_device(call)
        assert left == sum([*cublas.values(), *lt.values()]), name
        assert most // MIB == at_peak(call, gpu) // MIB, name  # a few of them are not exact


def test_sizes_are_torchs(monkeypatch):
    on(monkeypatch, (2, 14))
    assert workspace_bytes((9, 0), "") == 32 * MIB
    assert workspace_bytes((8, 6), "") == workspace_bytes((7, 5), "") == 8_519_680
    assert workspace_bytes((8, 0), ":4096:8") == 32 * MIB
    assert workspace_bytes((9, 0), ":16:8") == 131_072
    assert workspace_bytes((9, 0), ":0:0") == 0
    for kib, expected in {"": MIB, "2048": 2 * MIB, "0": 0, "many": MIB, "100000": 32 * MIB}.items():
        monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", kib)  # as emulated torch 2.11 takes it, and 2.14 where apart
        assert lt_bytes((9, 0)) == expected


@pytest.mark.parametrize(("told_to", "by_default"), [("0", (32, 1)), ("1", (32, 0)), ("ON", (32, 1))])
def test_the_environment_says_whether_torch_211_shares(told_to, by_default, apart, monkeypatch):
    monkeypatch.setenv("TORCH_CUBLASLT_UNIFIED_WORKSPACE", told_to)
    cublas, lt = told(CALLS["linear"][0])
    if not apart:  # newer torch: where it is told not to share it takes cuBLASLt's alone
        by_default = {"0": (0, 1), "1": (32, 0), "ON": (32, 0)}[told_to]
    assert (sum(cublas.values()), sum(lt.values())) == tuple(each * MIB for each in by_default)


def test_they_come_with_the_first_product_of_each_thread(apart):
    layer, cublas = nn.Linear(8, 8), 8_519_680
    with CudaStorages(Allocator(total=8 << 30), A100) as storages:
        product = layer(take(4, 8))
        assert storages.mode.workspaces == {"forward": cublas}
        product.sum().backward()
        assert storages.mode.workspaces == {"forward": cublas, "backward": cublas}
        layer(take(4, 8))
        assert storages.mode.lt_workspaces == ({"forward": MIB} if apart else {})  # backward adds no bias
    assert storages.ledger.card.allocated >= 2 * cublas


def test_a_prediction_counts_both(apart):
    layer = nn.Linear(8, 8)
    found = memlab.predict(lambda: layer(take(4, 8)).sum().backward(), "h100-80gb", steps=1)
    assert found.workspaces == (65 if apart else 64) * MIB
