"""Scripts that read values are predicted on fake tensors all the same: what is taken for granted is told."""

import io

import pytest
import torch

import memlab
from memlab.as_cuda.fakes import NEEDS_DATA, fake_tensors, why
from memlab.prediction import UNKNOWN, Prediction
from memlab.show import _prediction

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_fused_rms_norm_backward"), reason="this torch is older than CUDA's operators of today"
)


def test_numbers_are_one_and_conditions_do_not_hold_and_constants_are_what_they_are():
    with fake_tensors() as mode:
        x = torch.rand(3)
        assert (x.sum().item(), float(x.mean()), x.double().sum().item()) == (1.0, 1.0, 1.0)
        assert not (x > 3).any() and not x.isnan().any() and not torch.equal(x, x)
        assert x.mean()  # a number that is 1
        assert torch.tensor(5).item() == 5 and torch.tensor(2.5).item() == 2.5
    assert len(mode.values.numbers) == 2 and len(mode.values.conditions) == 1  # lines, each once
    assert mode.values.sentences()[0].endswith("are taken to be 1")


@pytest.mark.parametrize("read", [lambda x: x.argmax().item(), lambda x: x.long().tolist(), lambda x: x.nonzero()])
def test_what_shapes_come_from_is_not_guessed(read):
    with fake_tensors() as mode, pytest.raises(NEEDS_DATA) as raised:
        read(torch.rand(3))
    assert "depends on values; run it on real ones, without --fake" in why(raised.value)
    assert not mode.values.sentences()


def trains():
    model = torch.nn.Linear(8, 8)
    optimizer, scaler = torch.optim.Adam(model.parameters()), torch.amp.GradScaler("cpu")

    def step():
        loss = model(torch.randn(4, 8)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert not torch.isnan(loss)
        print(f"{loss.item():.3f}")

    return step


def test_a_step_that_looks_at_its_loss_is_predicted_as_on_real_tensors():
    real, fake = (memlab.predict(trains, card="1 GiB", fake=fake) for fake in (False, True))
    assert (fake.allocated, fake.reserved, fake.saved) == (real.allocated, real.reserved, real.saved)
    assert fake.verdict == real.verdict != UNKNOWN and not fake.unknown  # GradScaler's step, state and all, was taken
    assert real.assumed == []
    numbers, conditions = fake.assumed
    assert numbers.startswith("numbers that it reads of fake tensors (") and "test_predict_values.py:" in numbers
    assert conditions.startswith("conditions on fake tensors (") and conditions.endswith("are taken not to hold")
    assert Prediction.from_json(fake.to_json()) == fake
    _prediction.show(fake, out := io.StringIO())
    headline, *_, told = out.getvalue().split("\n", 1)
    assert headline.endswith(", for the values assumed")
    assert f"  assumed       {numbers}; {conditions}\n" in told
