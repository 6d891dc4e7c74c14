"""Scripts that name a CUDA device are predicted where there is none, and take what they take on one."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import memlab
from memlab import cards
from memlab.as_cuda.devices import OnCpu
from memlab.predicting import predict_script

pytestmark = [
    pytest.mark.skipif(
        not hasattr(torch.ops.aten, "_fused_rms_norm_backward"),
        reason="this torch is older than CUDA's operators of today",
    ),
    pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning"),
]
SCRIPT = """
import torch

torch.cuda.set_device(0)
device = torch.device("cuda:0")
model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)).to(device)
optimizer, scaler = torch.optim.Adam(model.parameters()), torch.amp.GradScaler("cuda")
for _ in range(3):
    x, y = torch.randn(512, 64, device="cuda"), torch.randn(512, 64).cuda(non_blocking=True)
    with torch.autocast("cuda", dtype=torch.float16):
        loss = torch.nn.functional.mse_loss(model(x).float(), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    torch.cuda.synchronize()
print(torch.cuda.max_memory_allocated())
"""


@pytest.fixture
def script(own_folder):
    path = own_folder / "train.py"
    path.write_text(SCRIPT)
    return path


def test_every_way_to_name_a_device_is_the_cpu():
    with OnCpu():
        made = [
            torch.ones(2, device="cuda"),
            torch.ones(2, device=torch.device("cuda", 1)),
            torch.ones(2, device=0),
            torch.ones(2).to("cuda:1"),
            torch.ones(2).to(0),
            torch.ones(2).to(device="cuda", dtype=torch.float64),
            torch.ones(2).cuda(),
            torch.ones(1, 2, 2, 2).cuda(0, memory_format=torch.channels_last),
            torch.tensor([1.0], device="cuda"),
            *nn.Linear(2, 2).cuda().parameters(),
            *nn.Linear(2, 2, device="cuda").to(torch.device("cuda"), torch.bfloat16).parameters(),
        ]
        with torch.device("cuda"):
            made.append(torch.ones(2))
    assert {each.device.type for each in made} == {"cpu"}
    assert (made[5].dtype, made[-2].dtype) == (torch.float64, torch.bfloat16)
    assert made[7].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fake", [False, True])
def test_a_script_that_names_its_device_takes_what_it_takes_without(script, fake):
    before = torch.cuda.synchronize, torch.cuda.set_device
    named = predict_script(script, [], cards.find("h100-80gb"), fake=fake)
    assert (torch.cuda.synchronize, torch.cuda.set_device) == before
    assert named.fits and not named.unknown
    script.write_text(SCRIPT.replace('"cuda:0"', '"cpu"').replace('="cuda"', '="cpu"').replace(".cuda(", ".to('cpu', "))
    plain = predict_script(script, [], cards.find("h100-80gb"), fake=fake)
    assert (plain.allocated, plain.reserved, plain.saved) == (named.allocated, named.reserved, named.saved)


def test_a_step_that_names_its_device_leaves_no_trace():
    found = memlab.predict(lambda: nn.Linear(8, 8).cuda()(torch.ones(4, 8, device="cuda")).sum().backward(), "1 GiB")
    assert found.fits
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.ones(2, device="cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
def test_a_script_takes_what_it_takes_on_this_device(script):
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    device = torch.cuda.get_device_properties(0)
    card = cards.Card("here", device.total_memory, capability=(device.major, device.minor), sms=132)
    assert predict_script(script, [], card).allocated == int(done.stdout)
