"""Predictions: a step and a script on a card that is not here, the largest batch, and what people see of it."""

import io
import json
import resource
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from samples import Terminal
from torch import nn

import memlab
from memlab import cards, cli, isolate, versions
from memlab.blocks import block_of
from memlab.predicting import DOUBLINGS, largest_batch, predict_script
from memlab.prediction import DIES, FITS, UNKNOWN, NotAPrediction, Prediction
from memlab.reachable import tensors_of
from memlab.show import _prediction

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_fused_rms_norm_backward"), reason="this torch is older than CUDA's operators of today"
)
KIB, MIB = 1 << 10, 1 << 20
SCRIPT = """
import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--look", action="store_true")
given = parser.parse_args()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


model, x = Model(), torch.randn(given.batch, 1024, 64)
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(2):
    loss = model(x).square().mean()
    if given.look:
        print(loss.nonzero())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "train.py"


@pytest.mark.parametrize(("version", "kept", "at_peak"), [((2, 13), 2, 2), ((2, 15), 0, 1)])
def test_a_step_is_predicted_with_what_it_refers_to(monkeypatch, version, kept, at_peak):
    monkeypatch.setattr(versions, "TORCH", version)
    model = nn.Linear(256, 256, bias=False)
    x = torch.ones(256, 256)

    def step():
        model(x).sum().backward()

    found = memlab.predict(step, card=cards.Card("t4", 1 << 30, capability=(7, 5), sms=40), steps=1)
    square = 256 * KIB  # weight, x, the weight's gradient, a dense copy of the expanded one; then loss and its gradient
    assert found.verdict == FITS
    assert found.workspaces == kept * 8_519_680
    assert found.allocated == 4 * square + 2 * 512 + at_peak * 8_519_680
    assert found.saved == 0  # the input was given, the weight is a parameter
    assert {id(each) for each in tensors_of(step)} >= {id(x), id(model.weight)}
    assert "on the card" in found.modelled[0]


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_autocast_is_seen_where_it_casts(enabled, fake):
    def make():
        model = nn.Linear(64, 64)

        def step():
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                model(torch.ones(8, 64)).sum().backward()

        return step

    found = memlab.predict(make, card="1 GiB", fake=fake)
    assert found.high == (["autocast"] if enabled else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "layer", [nn.LSTM, nn.GRU, nn.RNN, lambda *sizes, **kw: nn.RNN(*sizes, nonlinearity="relu", **kw)]
)
def test_recurrent_layers_are_cudnns_unless_it_is_off(layer, dtype):
    def make():
        model, x = layer(8, 16, dtype=dtype), torch.ones(5, 2, 8, dtype=dtype)
        return lambda: model(x)[0].sum().backward()

    for fake in (False, True):
        assert memlab.predict(make, card="1 GiB", fake=fake).unknown == [
            "cuDNN's recurrent layers, and how it lays them out"
        ]
    if layer is nn.GRU:
        with torch.backends.cudnn.flags(enabled=False):
            assert not memlab.predict(make, card="1 GiB").unknown


def test_a_workspace_that_did_not_fit_was_not_allocated(monkeypatch):
    monkeypatch.setattr(versions, "TORCH", (2, 13))
    weight = torch.ones(64, 64, requires_grad=True)
    found = memlab.predict(lambda: (weight @ weight).sum().backward(), card=cards.find("64 MiB"), steps=1)
    assert found.verdict == DIES and "Tried to allocate 32.00 MiB" in found.oom
    assert found.workspaces == 32 * MIB < found.allocated  # forward's; that of backward's thread found no room


def test_a_step_that_builds_its_model_is_predicted_on_fake_tensors_of_any_size():
    def make():
        model = nn.Linear(1 << 16, 1 << 16, bias=False)  # 16 GiB

        def step():
            model(torch.ones(8, 1 << 16)).sum().backward()

        return step

    assert memlab.predict(make, card="h100-80gb", fake=True).fits
    died = memlab.predict(make, card="rtx4090", fake=True)
    assert died.verdict == DIES
    assert died.died.startswith("tests/test_predict.py:")
    assert "Tried to allocate 16.00 GiB" in died.oom


def test_a_step_of_seventy_billion_parameters_takes_no_memory_here():
    def make():
        model = nn.Sequential(*(nn.Linear(1 << 17, 1 << 17, bias=False, dtype=torch.bfloat16) for _ in range(4)))
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

        def step():
            model(torch.ones(8, 1 << 17, dtype=torch.bfloat16)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = memlab.predict(make, card="1024 GiB", fake=True)
    assert found.verdict == FITS
    assert found.allocated >= 4 * (4 << 34) * 2  # weights, gradients and two moments, of 68.7e9 parameters
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_a_script_fits_or_dies_at_its_line(script):
    fits = predict_script(script, ["--batch", "4"], cards.find("1 GiB"))
    fake = predict_script(script, ["--batch", "4"], cards.find("1 GiB"), fake=True)
    assert (fits.verdict, fits.allocated, fits.reserved) == (FITS, fake.allocated, fake.reserved)
    one = 4 * 1024 * 256 * 4  # GELU's input and output are kept in each block, its input is the residual of the last
    assert fits.blocks == fake.blocks == {"blocks.0": 2 * one, "blocks.1": 2 * one}
    died = predict_script(script, ["--batch", "64"], cards.find("200 MiB"), fake=True)
    assert died.verdict == DIES
    assert died.died == "train.py:20"
    assert sum(died.filled.values()) > 0
    assert died.reserved <= 200 * MIB
    assert Prediction.from_json(died.to_json()) == died


def test_errors_that_a_step_catches_itself_are_told(capsys):
    def step():
        kept = []
        with suppress(torch.OutOfMemoryError):
            while True:
                kept.append(torch.ones(1 << 20))

    found = memlab.predict(step, card="20 MiB", steps=2)
    assert (found.verdict, found.caught) == (FITS, 2)
    _prediction.show(found, out := io.StringIO())
    assert out.getvalue().splitlines()[0].endswith("step fits, after 2 OutOfMemoryErrors that it caught")


def test_a_script_that_needs_data_says_so(script):
    found = predict_script(script, ["--look"], cards.find("1 GiB"), fake=True)
    assert (found.verdict, found.died) == (UNKNOWN, "train.py:29")
    assert "it needs data" in found.reason


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 100])
def test_the_largest_batch_is_found_by_doubling_and_bisection(most):
    tried = []

    def run(batch):
        tried.append(batch)
        return Prediction("x", FITS if batch <= most else DIES, allocated=batch)

    largest, verdicts = largest_batch(run, 1)
    assert largest == most
    assert len(tried) == len(set(tried)) <= 16
    assert verdicts[str(most + 1)] == DIES


@pytest.mark.parametrize("most", [8 << DOUBLINGS, (8 << DOUBLINGS) - 1])
def test_no_batch_is_told_that_was_not_tried(most):
    tried = []

    def run(batch):
        tried.append(batch)
        return Prediction("x", FITS if batch <= most else DIES, allocated=batch)

    largest, verdicts = largest_batch(run, 8)
    assert largest == most
    assert most in tried
    assert max(tried) == 8 << DOUBLINGS
    assert (DIES in verdicts.values()) == (most < 8 << DOUBLINGS)


def test_a_script_that_takes_no_batch_has_no_largest_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_CUBLAS_WORKSPACE_CACHE", "1")
    monkeypatch.setattr(isolate, "ask", lambda function, *arguments, timeout=0: function(*arguments))
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("import torch\ntorch.nn.Linear(8, 8)(torch.ones(2, 8)).sum().backward()\n")
    assert cli.main(["predict", "train.py", "--card", "rtx4090", "--batch-from", "4", "--batch-arg=--size"]) == 2
    said = capsys.readouterr().err
    assert "train.py: it takes 16.25 MiB with any batch from 4 to 32" in said
    assert "does it read its batch from --size? (see --batch-arg)" in said


def test_a_block_is_a_layer_of_a_list_or_a_top_level_module():
    assert [block_of(each) for each in ("head", "blocks.3.up", "encoder.layers.1.mlp.act", "0")] == [
        "head",
        "blocks.3",
        "encoder.layers.1",
        "0",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "no memlab prediction"),
        ('{"format": "memlab prediction", "version": 9}', "format 9"),
        ('{"format": "memlab prediction", "version": 1, "what": "x", "verdict": "maybe"}', "valid verdict"),
        ('{"format": "memlab prediction", "version": 1, "what": "x", "total": "1"}', "valid total"),
        ('{"format": "memlab prediction", "version": 1, "what": "x", "colour": 1}', "valid colour"),
    ],
)
def test_a_damaged_prediction_gets_a_sentence(text, words):
    with pytest.raises(NotAPrediction, match=words):
        Prediction.from_json(text)


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_what_people_see_fits_a_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    blocks = {f"encoder.layers.{index}": 300 * MIB for index in range(12)} | {"head": 5 * MIB}
    oom = "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 8.00 GiB"
    found = Prediction("train.py", DIES, card=cards.find("rtx4090").describe(), total=8 << 30, blocks=blocks, oom=oom)
    found.died, found.filled = "train.py:7", {"a/rather/long/path/to/a/file/model.py:123": 7 << 30}
    found.missing, found.machine = ["what cuDNN takes for convolutions"], {"torch": "2.13.0"}
    _prediction.show(found, out := Terminal())
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    _prediction.show(found, pipe := io.StringIO())
    assert sum(line.startswith("  missing ") for line in pipe.getvalue().splitlines()) == 1
    assert lines[0] == "train.py dies at train.py:7"
    assert "each of encoder.layers.0 to encoder.layers.11 (12)" in " ".join(out.getvalue().split())
    assert "Tried to allocate 2.00 MiB." in " ".join(out.getvalue().split())


@pytest.mark.parametrize(
    ("told", "headline"),
    [
        ({}, "train.py fits"),
        ({"unknown": ["cuDNN's attention"]}, "train.py fits, as far as is known"),
        ({"bar": 100 * MIB}, "train.py fits"),
        ({"bar": 101 * MIB}, "train.py fits, as far as is known"),
        ({"largest": 7, "unknown": ["a kernel"]}, "train.py: the largest batch that fits is 7, as far as is known"),
        ({"verdict": DIES, "died": "train.py:7", "unknown": ["a kernel"]}, "train.py dies at train.py:7"),
        ({"largest": 8, "batches": {"4": FITS, "8": FITS}}, "train.py: every batch that was tried fits, up to 8"),
        ({"largest": 4, "batches": {"4": FITS, "8": DIES}}, "train.py: the largest batch that fits is 4"),
        ({"largest": 0, "batches": {"1": DIES}}, "train.py: no batch fits"),
        ({"largest": 0, "batches": {"4": DIES}}, "train.py: batch 4 does not fit, and no smaller one was tried"),
    ],
)
def test_the_headline_promises_nothing_that_is_not_known(told, headline):
    found = Prediction("train.py", **{"verdict": FITS, "total": 1000 * MIB, "context": 300 * MIB} | told)
    found.allocated = 600 * MIB
    _prediction.show(found, out := io.StringIO())
    assert out.getvalue().splitlines()[0] == headline


def test_the_command(script, capfd, monkeypatch):
    monkeypatch.setattr(isolate, "ask", lambda function, *arguments, timeout=0: function(*arguments))
    assert cli.main(["predict", "train.py", "--card", "300 MiB", "--fake", "--batch-from", "4"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("train.py: the largest batch that fits is ")
    assert "each of blocks.0 and blocks.1\n" in out
    largest = int(out.split("fits is ")[1].split()[0])
    asked = ["predict", "train.py", "--card", "300 MiB", "--fake", "--json", "-", "--", "--batch", str(largest + 1)]
    assert cli.main(asked) == 1
    assert Prediction.from_json(capfd.readouterr().out).died.startswith("train.py:")


@pytest.mark.parametrize(("verdict", "code"), [(FITS, 0), (DIES, 1)])
def test_a_saved_prediction_is_shown_again(verdict, code, tmp_path, capsys):
    found = Prediction("train.py", verdict, card="24.00 GiB", total=24 << 30, allocated=MIB)
    found.save(path := tmp_path / "prediction.json")
    _prediction.show(found, told := io.StringIO())
    assert cli.main(["show", str(path)]) == code
    assert capsys.readouterr().out == told.getvalue()
    assert cli.main(["show", str(path), "--show", "json"]) == code
    assert Prediction.from_json(capsys.readouterr().out) == found
    assert cli.main(["show", str(path), "--show", "markdown"]) == 2
    assert "a prediction is shown as json, plain, table, not as 'markdown'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.py"], "there is no script nowhere.py"),
        (["train.py", "--card", "rtx4099"], "did you mean rtx4090"),
        (["train.py", "--conf", "bogus:1"], "--conf: Unrecognized key 'bogus' in Accelerator allocator config."),
        (
            ["asking.py"],
            "asking.py:2: AssertionError: Torch not compiled with CUDA enabled; a script is predicted on the CPU",
        ),
        (["wrong.py"], "wrong.py could not be run: wrong.py:1: ZeroDivisionError: division by zero"),
        (["train.py", "--batch-from", "0"], "--batch-from must be at least 1"),
        (
            ["train.py", "--fake", "--", "--look"],
            "train.py:29: it needs data, and fake tensors have none: what nonzero returns depends on values",
        ),
        (["train.py", "--fake", "--", "--what"], "train.py could not be run: "),
    ],
)
def test_wrong_use_gets_one_sentence(script, capfd, arguments, words):
    Path("wrong.py").write_text("1 / 0\n")
    Path("asking.py").write_text('import torch\nraise AssertionError("Torch not compiled with CUDA enabled")\n')
    assert cli.main(["predict", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_what_follows_two_dashes_belongs_to_a_script_only(capfd):
    assert cli.main(["list", "--", "nothing_of_this_name"]) == 2
    assert json.dumps("nothing_of_this_name")[1:-1] in capfd.readouterr().err
