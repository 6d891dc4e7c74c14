"""Scripts that read a DataLoader are predicted as others are: with workers, shuffled, and on fake tensors."""

import textwrap

import pytest
import torch
from torch.utils.data import dataloader, dataset

from memlab import cards, cli
from memlab.as_cuda.fakes import fake_tensors
from memlab.predicting import predict_script

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_fused_rms_norm_backward"), reason="this torch is older than CUDA's operators of today"
)
SCRIPT = """
import sys

import numpy
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

kind, workers = sys.argv[1], int(sys.argv[2])
whole = TensorDataset(torch.randn(40, 256), torch.randint(0, 10, (40,)))
some, _ = random_split(whole, [32, 8])
loader = DataLoader(
    {"whole": whole, "arrays": [(numpy.ones(256, "float32"), 1)] * 40, "split": some}[kind],
    batch_size=8,
    shuffle=True,
    num_workers=workers,
    persistent_workers=workers > 0,
    timeout=60 * workers,
)
model = nn.Linear(256, 10)
for _ in range(2):
    for x, y in loader:
        nn.functional.cross_entropy(model(x), y).backward()
        model.zero_grad()
"""


@pytest.fixture
def script(own_folder):
    path = own_folder / "train.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


@pytest.mark.parametrize("kind", ["whole", "arrays", "split"])
def test_fake_tensors_are_loaded_as_others_are(script, kind):
    real = predict_script(script, [kind, "0"], cards.find("1 GiB"))
    for workers in ("0", "2"):
        fake = predict_script(script, [kind, workers], cards.find("1 GiB"), fake=True)
        assert (fake.allocated, fake.reserved, fake.saved) == (real.allocated, real.reserved, real.saved)
        assert not fake.died and len(fake.missing) == len(real.missing) == 1  # nothing of what a loader runs is unknown


def patched():
    return dataloader.DataLoader._get_iterator, dataloader._BaseDataLoaderIter._next_index, dataset.randperm


def test_torchs_own_loading_is_back_after_an_error():
    before = patched()
    with pytest.raises(OSError), fake_tensors():
        assert not set(before) & set(patched())
        raise OSError
    assert patched() == before


@pytest.mark.usefixtures("script")
def test_a_script_with_workers_is_predicted_in_a_process_that_may_start_them(capsys):
    assert cli.main(["predict", "train.py", "--card", "1 GiB", "--", "whole", "2"]) == 0
    assert "train.py fits" in capsys.readouterr().out
