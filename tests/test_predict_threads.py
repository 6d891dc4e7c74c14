"""Threads that a predicted run starts are on its card, too: with their workspaces, their fake tensors, their ends."""

import gc
import sys
import threading
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import memlab
from memlab import cards, versions
from memlab.prediction import DIES, FITS, UNKNOWN

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_fused_rms_norm_backward"), reason="this torch is older than CUDA's operators of today"
)
CARD = cards.Card("t4", 1 << 30, capability=(7, 5), sms=40)
WORKSPACE = 8_519_680
HOOK = threading.excepthook


@pytest.fixture(autouse=True)
def everything_is_put_back():
    yield
    assert threading.excepthook is HOOK


def in_threads(*works):
    started = [threading.Thread(target=work) for work in works]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def training(device="cpu"):
    """A step whose dropout and foreach optimizer are others on CUDA than on the CPU."""
    with torch.device(device):
        model, x = nn.Sequential(nn.Linear(256, 512), nn.Dropout(0.5), nn.Linear(512, 8)), torch.randn(64, 256)
    optimizer = torch.optim.Adam(model.parameters())

    def step():
        F.mse_loss(model(x), torch.zeros(64, 8, device=device)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def alone(device="cpu"):
    step = training(device)
    step()
    step()


def beside(device="cpu"):
    step = training(device)
    step()
    in_threads(step)


def twice(device="cpu"):
    step = training(device)
    in_threads(step)
    time.sleep(0.3 if device == "cuda" else 0)  # torch gives a thread's handle back a little after join()
    in_threads(step)


@pytest.mark.parametrize("fake", [False, True])
def test_a_step_in_a_thread_takes_what_it_takes_in_the_main_thread(monkeypatch, fake):
    monkeypatch.setattr(versions, "TORCH", (2, 13))  # where a thread has a workspace, and none for biases alone

    def run(work):
        return memlab.predict(work, CARD, fake=fake, steps=1)

    here, there = run(lambda: alone()), run(lambda: in_threads(alone))
    again, both = run(lambda: twice()), run(lambda: beside())
    peaks = [(each.verdict, each.allocated, each.workspaces) for each in (here, there, again)]
    assert peaks == [(FITS, here.allocated, 2 * WORKSPACE)] * 3
    assert (both.allocated, both.workspaces) == (here.allocated + WORKSPACE, 3 * WORKSPACE)
    assert there.saved == here.saved > 0


def test_the_block_of_a_model_that_runs_in_a_thread_is_known():
    def step():
        model = nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.GELU(), nn.Linear(64, 64), nn.GELU()))
        in_threads(lambda: model(torch.ones(512, 64)).sum().backward())

    assert memlab.predict(step, CARD, steps=1).blocks == {"1": 2 * 512 * 64 * 4}


def test_many_threads_share_a_card_and_fake_tensors(monkeypatch):
    monkeypatch.setattr(versions, "TORCH", (2, 13))

    def work():
        barrier.wait()
        for _ in range(20):
            x = torch.ones(16, 16, requires_grad=True)
            assert x.device.type == "cpu"  # inside an operator, a fake tensor says that it is on meta
            (x @ x).exp().sum().backward()
        ended.append(threading.get_ident())
        again.wait()  # no thread ends before all have taken a workspace

    ended, before = [], sys.getswitchinterval()
    barrier, again = threading.Barrier(4, timeout=20), threading.Barrier(4, timeout=20)
    sys.setswitchinterval(1e-6)
    try:
        found = memlab.predict(lambda: in_threads(*[work] * 4), CARD, fake=True, steps=1)
    finally:
        sys.setswitchinterval(before)
    assert (found.verdict, len(ended)) == (FITS, 4)
    assert found.workspaces == 5 * WORKSPACE  # one each, and that of backward
    assert found.allocated > found.workspaces


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_does_not_fit_dies_at_its_line(capfd):
    found = memlab.predict(lambda: in_threads(lambda: torch.empty(1 << 30)), CARD, steps=1)
    assert found.verdict == DIES
    assert found.died.startswith("tests/test_predict_threads.py:")
    assert "Tried to allocate 4.00 GiB" in found.oom


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_needs_data_says_so():
    found = memlab.predict(lambda: in_threads(lambda: torch.ones(1).nonzero()), CARD, fake=True, steps=1)
    assert found.verdict == UNKNOWN
    assert "it needs data" in found.reason


def test_a_death_that_the_thread_survives_is_none():
    def work():
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1 << 30)

    assert memlab.predict(lambda: in_threads(work), CARD, steps=1).fits


def test_a_thread_that_outlives_its_prediction_is_left_alone():
    entered, ended, seen = threading.Event(), threading.Event(), []

    def work():
        torch.ones(4)
        entered.set()
        ended.wait()
        seen.append(type(F.dropout(torch.ones(8, requires_grad=True)).grad_fn).__name__)

    def step():
        started.start()
        entered.wait()

    started = threading.Thread(target=work)
    found = memlab.predict(step, CARD, steps=1)
    told = found.allocated, found.bars
    with memlab.as_cuda.CudaStorages(CARD.allocator(), memlab.as_cuda.gpu_of(CARD)) as other:
        ended.set()
        started.join()
        assert other.bytes == 0
    assert (found.allocated, found.bars) == told
    assert seen == ["MulBackward0"]  # as on the CPU, though others are as on CUDA meanwhile


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
@pytest.mark.parametrize("works", [alone, beside, twice])
def test_threads_take_what_they_take_on_this_device(works):
    gc.collect()
    time.sleep(0.3)
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    in_threads(lambda: works("cuda"))
    measured = torch.cuda.max_memory_allocated() - before
    device = torch.cuda.get_device_properties(0)
    card = cards.Card("here", device.total_memory, capability=(device.major, device.minor), sms=132)
    assert memlab.predict(lambda: in_threads(works), card, steps=1).allocated == measured
