"""Every probe reads zero on an empty block, counts what it says, and names what it cannot do."""

import gc
import os
import sys
import types

import pytest
import torch

import memlab
from memlab.allocator import Allocator
from memlab.probes import Unavailable
from memlab.probes.cuda import Cuda, check_available, limit, numbers, unsplit_bytes, warm_up
from memlab.probes.host import Host
from memlab.probes.nvml import Nvml, driver_version
from memlab.probes.saved import Saved
from memlab.probes.simulated import Simulated, card_of
from memlab.probes.storages import Storages

HAS_CUDA = torch.cuda.is_available()
cuda_only = [
    pytest.mark.cuda,
    pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device is available to torch"),
]


def on_cuda(test):
    for mark in cuda_only:
        test = mark(test)
    return test


@pytest.mark.parametrize("make", [Saved, Storages], ids=["saved", "storages"])
def test_zero_on_an_empty_block(make):
    with make() as probe:
        pass
    assert set(probe.read().values()) == {0}


def test_simulated_reads_the_cards_own_rounding():
    with Storages(Allocator(total=1 << 30)) as storages, Simulated(storages) as card:
        assert set(card.read().values()) == {0}
        kept = torch.ones(100)
        found = card.read()
        assert (found["requested"], found["allocated"], found["allocated_peak"]) == (400, 512, 512)
        assert (found["reserved"], found["inactive_split"]) == (2 << 20, (2 << 20) - 512)
        del kept
        found = card.read()
        assert (found["allocated"], found["allocated_peak"], found["reserved"]) == (0, 512, 2 << 20)


def test_simulated_reads_what_the_cuda_probe_reads():
    with memlab.watch(card="64 MiB") as seen:
        held = [torch.empty(3 << 19, dtype=torch.uint8) for _ in range(3)]  # 1.5 MiB each, in one segment of 20 MiB
        del held[1]
        found = seen.card.read()
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1 << 30, dtype=torch.uint8)
        after = seen.card.read()
    assert (found["allocated"], found["active"], found["requested"]) == (3 << 20, 3 << 20, 3 << 20)
    assert (found["allocated_peak"], found["reserved"], found["inactive_split"]) == (9 << 19, 20 << 20, 17 << 20)
    assert (found["alloc_retries"], found["ooms"]) == (0, 0)
    assert (after["alloc_retries"], after["ooms"]) == (1, 1)
    assert found.keys() == numbers({}).keys()


def test_simulated_needs_a_card_and_a_size():
    with pytest.raises(Unavailable, match="not on a card"):
        Simulated(Storages())
    assert card_of("24 GiB").memory_stats()["allocated_bytes.all.current"] == 0
    with pytest.raises(ValueError, match="unknown unit 'parsec'"):
        card_of("3 parsec")


def test_host_sees_a_large_allocation():
    gc.collect()  # what earlier tests left must not go meanwhile
    with Host() as host:
        kept = torch.ones(64 << 20)
        grown = host.read()
    assert grown["host_rss"] > 128 << 20 and grown["host_uss"] > 128 << 20
    del kept


def test_without_a_cuda_device_cuda_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match=r"no CUDA device is available to torch|built without CUDA"), Cuda("cuda:0"):
        pass
    with pytest.raises(Unavailable, match="cpu is not a CUDA device"):
        check_available(torch.device("cpu"))


def fake_nvml(monkeypatch, **functions):
    class NVMLError(Exception):
        pass

    def refuse(*args):
        raise NVMLError("Driver Not Loaded")

    calls = {"nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetHandleByUUID": lambda uuid: uuid}
    module = types.SimpleNamespace(NVMLError=NVMLError, **{**calls, **functions})
    module.refuse = refuse
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    known = types.SimpleNamespace(uuid="c0ffee")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: known)
    return module


def test_nvml_without_a_driver_says_so(monkeypatch):
    module = fake_nvml(monkeypatch)
    module.nvmlInit = module.refuse
    with pytest.raises(Unavailable, match="NVML does not start: Driver Not Loaded"), Nvml("cuda:0"):
        pass
    with pytest.raises(Unavailable, match="NVML does not start"):
        driver_version()


def test_nvml_without_the_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Unavailable, match="pip install nvidia-ml-py"), Nvml("cuda:0"):
        pass


def process(used):
    return types.SimpleNamespace(pid=os.getpid(), usedGpuMemory=used)


@pytest.mark.parametrize(
    ("running", "sentence"),
    [
        (lambda handle: [], "does not list this process"),
        (lambda handle: [process(None)], "hides bytes per process"),
    ],
)
def test_nvml_names_what_it_hides(monkeypatch, running, sentence):
    memory = types.SimpleNamespace(used=5, total=9)
    fake_nvml(
        monkeypatch,
        nvmlDeviceGetMemoryInfo=lambda handle: memory,
        nvmlDeviceGetComputeRunningProcesses=running,
    )
    with Nvml("cuda:0") as nvml:
        assert nvml.read() == {"nvml_used": 5, "nvml_total": 9}
        assert sentence in nvml.notes[0]


def test_nvml_matches_by_uuid(monkeypatch):
    asked = []
    memory = types.SimpleNamespace(used=5, total=9)
    fake_nvml(
        monkeypatch,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid),
        nvmlDeviceGetMemoryInfo=lambda handle: memory,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [process(7)],
    )
    with Nvml("cuda:0") as nvml:
        assert nvml.read()["nvml_process"] == 7 and nvml.notes == []
    assert asked == ["GPU-c0ffee"]


@on_cuda
def test_cuda_counts_what_torch_allocates():
    warm_up(torch.device("cuda", 0))
    with Cuda("cuda:0") as probe:
        assert set(probe.read().values()) >= {0} and probe.read()["allocated"] == 0
        kept = torch.empty(1000, dtype=torch.uint8, device="cuda")
        read = probe.read()
        assert (read["allocated"], read["requested"], read["active"]) == (1024, 1000, 1024)
        del kept
        assert probe.read()["allocated"] == 0


@on_cuda
def test_nvml_process_is_context_and_reserved():
    kept = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    with Nvml("cuda:0") as nvml:
        before, reserved = nvml.read(), torch.cuda.memory_reserved()
        if "nvml_process" not in before:
            pytest.skip(nvml.notes[0])
        more = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
        after = nvml.read()
        grown = torch.cuda.memory_reserved() - reserved
    assert after["nvml_process"] - before["nvml_process"] == grown >= 64 << 20
    del kept, more


@on_cuda
def test_unsplit_blocks_are_named():
    kept = torch.empty(20_000_000, dtype=torch.uint8, device="cuda")
    before = unsplit_bytes(torch.device("cuda", 0))
    assert before >= 0
    del kept
    torch.cuda.empty_cache()
    kept = torch.empty(20_000_000, dtype=torch.uint8, device="cuda")
    assert unsplit_bytes(torch.device("cuda", 0)) == 20 * (1 << 20) - -(-20_000_000 // 512) * 512
    del kept


@on_cuda
def test_a_limit_makes_torch_refuse_and_is_taken_back():
    device = torch.device("cuda", 0)
    torch.cuda.empty_cache()
    try:
        assert limit(device, "256 MiB") == 256 << 20
        with pytest.raises(torch.OutOfMemoryError, match=r"256\.00 MiB allowed"):
            torch.empty(512 << 20, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    with pytest.raises(ValueError, match="is larger than cuda:0"):
        limit(device, "100 TiB")


@on_cuda
def test_watch_on_cuda_agrees_with_torchs_statistics():
    warm_up(torch.device("cuda", 0))
    layer = torch.nn.Linear(64, 64, device="cuda")
    x = torch.ones(32, 64, device="cuda")
    with memlab.watch() as seen, Cuda("cuda:0") as probe:
        kept = layer(x).tanh()
        assert probe.read()["requested"] == seen.storages.bytes == 4 * 32 * 64
        assert seen.saved.bytes == 4 * 32 * 64
        kept.sum().backward()
        del kept
        assert seen.saved.bytes == 0
        assert probe.read()["requested"] == seen.storages.bytes == 4 * (64 * 64 + 64)


def test_a_watch_says_what_it_sees_where_it_is_printed():
    with memlab.watch() as seen, memlab.watch(storages=False) as bare:
        loss = torch.ones(256, requires_grad=True).exp().sum()
        loss.backward()
        kept = torch.ones(512).exp()
        del loss
        said = f"0 B (at most 1.00 KiB) saved for backward; {seen.storages.bytes / 1024:.2f} KiB"
        assert repr(seen).startswith(f"<Watch: {said} (at most ")
        assert repr(bare) == "<Watch: 0 B (at most 1.00 KiB) saved for backward>"
    del kept
