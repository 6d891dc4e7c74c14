"""What a prediction says of its own error: which operators are exact, which have a bar, and whether the bars hold."""

import io
import json
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import Terminal
from torch import nn
from torch.nn import functional as F

import memlab
from memlab import cards
from memlab.allocator import Allocator
from memlab.as_cuda import CudaStorages, Gpu, account, cub
from memlab.as_cuda.bars import Bars, Bound, bound_of, is_exact, open_of, short
from memlab.as_cuda.checked import ABOVE, BOUNDS, EXACT
from memlab.as_cuda.temporaries import KERNELS
from memlab.prediction import Prediction
from memlab.show import _prediction

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_fused_rms_norm_backward"), reason="this torch is older than CUDA's operators of today"
)
aten = torch.ops.aten
H100, A100, T4 = Gpu((9, 0), 132), Gpu((8, 0), 108), Gpu((7, 5), 40)


def shown(found):
    out = io.StringIO()
    _prediction.show(found, out)
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize(
    ("size", "expected"),
    [  # what torch 2.13's CUDA build asked its allocator for
        (cub.radix_sort(5000, 4, 8, H100), 70_143),
        (cub.radix_sort(10_000_000, 4, 8, H100), 121_914_367),
        (cub.radix_sort(10_000_000, 2, 8, H100), 101_823_231),
        (cub.radix_sort(10_000_000, 1, 8, H100), 2_966_015),
        (cub.radix_sort(10_000, 8, 0, H100), 99_071),
        (cub.radix_sort(5000, 4, 4, H100, bits=27), 50_175),  # of a torch.randperm(5000, dtype=torch.int32)
        (cub.radix_sort(1_000_000, 8, 4, H100, bits=43), 12_190_975),
        (cub.radix_sort(5000, 8, 8, H100, bits=13), 87_039),
        (cub.radix_sort(2304, 8, 8, H100), 1),
        (cub.radix_sort(2305, 8, 8, H100, bits=13), cub.storage(4096, 1024, 8 * 2305, 8 * 2305, 8)),
        (cub.radix_sort(10_000_000, 1, 8, Gpu((8, 0), 132)), 92_748_799),
        (cub.segmented_sort(1_000_000, 4, 8), 12_000_255),
        (cub.scan(10_000_000, 4), 42_495),
        (cub.scan(10_000_000, 8), 179_711),
        (cub.scan(10_000_000, 2), 22_015),
        (cub.select(10_000_000, H100), 19_711),
        (cub.select(10_000_000, A100), 35_583),
        (cub.select(10_000_000, T4), 125_951),
        (cub.unique(30_000_000, 4, H100), 37_631),
        (cub.reduction(10_000, H100), 21_503),
        (cub.reduction(4096, H100), 1),
    ],
)
def test_cub_takes_what_it_asks_for_on_cuda(size, expected):
    assert size == expected


def test_every_formula_says_how_good_it_is():
    for operator in KERNELS:
        assert str(operator) in EXACT or str(operator) in BOUNDS or open_of(operator), operator
    assert not EXACT & BOUNDS.keys()
    assert set(BOUNDS) >= ABOVE
    assert all(times >= 0 and fixed >= 0 for times, fixed in BOUNDS.values())


def test_an_operator_is_exact_or_bounded_or_open():
    assert is_exact(aten.mm.default) and bound_of(aten.mm.default) is None and open_of(aten.mm.default) is None
    assert is_exact(aten.view.default)
    bounded = aten._ctc_loss.default
    assert not is_exact(bounded) and bound_of(bounded).fixed > 0 and open_of(bounded) is None
    assert open_of(aten.convolution.default) == "cuDNN's convolutions"
    assert not is_exact(aten.convolution.default)
    assert open_of(aten.mkldnn_rnn_layer.default).startswith("cuDNN's recurrent layers")


def test_bars_matter_only_above_the_peak_and_do_not_add_up():
    bars = Bars()
    bars.see(aten.sort.default, 900)
    bars.see(aten.topk.default, 1300)
    bars.see(aten.median.default, 1100)
    bars.see(aten.median.default, 1050)
    assert bars.above(1000) == {"topk": 300, "median": 100}
    assert bars.above(2000) == {}
    tensors = [torch.zeros(10), [torch.zeros(5, dtype=torch.int64)], 3]
    assert Bound(0.5, 7).of(tensors, torch.zeros(5)) == (40 + 40 + 20) // 2 + 7


def test_a_step_with_an_optimizer_is_exact():
    def make():
        model = nn.Linear(64, 64)
        optimizer = torch.optim.Adam(model.parameters())

        def step():
            F.mse_loss(model(torch.ones(8, 64)), torch.zeros(8, 64)).backward()
            optimizer.step()  # under a profiler's range

        return step

    found = memlab.predict(make, card="h100-80gb", fake=True)
    assert (found.unknown, found.bar, found.at_most) == ([], 0, found.allocated)


def nanmedian(width):
    x = torch.zeros(width, width)

    def step():
        return x.nanmedian()

    return step


def test_a_prediction_says_its_bar():
    found = memlab.predict(nanmedian(100), card="h100-80gb", steps=1)
    assert found.unknown == []
    assert list(found.bars) == ["nanmedian"]
    assert found.at_most == found.allocated + found.bar > found.allocated
    assert "+ at most" in shown(found) and "(nanmedian)" in shown(found)
    assert json.loads(found.to_json())["bars"] == found.bars
    assert Prediction.from_json(found.to_json()) == found


def test_a_bar_far_below_the_peak_does_not_count():
    small = torch.zeros(10, 10)

    def step():
        kept = torch.zeros(1 << 20)
        kept.mul_(2)
        del kept
        small.nanmedian()

    found = memlab.predict(step, card="h100-80gb", steps=1)
    assert (found.bar, found.bars, found.at_most) == (0, {}, found.allocated)
    assert "at the peak, exact" in shown(found)
    assert any("nanmedian" in each and "below the peak" in each for each in found.modelled)


def test_what_is_not_known_is_named_and_leaves_no_bar():
    model, x = nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8)
    found = memlab.predict(lambda: model(x).sum().backward(), card="h100-80gb", steps=1)
    assert found.unknown == ["cuDNN's convolutions"]
    assert found.at_most is None
    assert "at least" in shown(found) and "cuDNN's convolutions" in shown(found)


MANY = [f"op{number}" for number in range(10)]


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ({"sort": 5}, "sort: its bar stays below the peak"),
        ({"topk": 5, "sort": 9}, "sort, topk: their bars stay below the peak"),
        (dict.fromkeys(MANY, 1), f"{', '.join(MANY[:8])} and 2 more: their bars stay below the peak"),
        ({"sort": 522, "topk": 5}, "what is taken inside may add to the peak at most: sort 512 B"),
        (
            {name: 20 - index for index, name in enumerate(MANY)},
            "what is taken inside may add to the peak at most: "
            + ", ".join(f"{name} {10 - index} B" for index, name in enumerate(MANY[:8]))
            + " and 2 more",
        ),
    ],
)
def test_sentences_about_bars(levels, sentence):
    peak = 10
    mode = types.SimpleNamespace(bars=Bars(levels), ran=[], casts=False)
    assert account.modelled(cards.find("24 GiB"), mode, peak)[0] == sentence


def test_a_context_that_a_file_states_is_not_called_that_of_all_cards():
    mode = types.SimpleNamespace(bars=Bars({}), ran=[], casts=False)
    told = "426.00 MiB for the CUDA context is one figure for all cards"
    assert told in account.modelled(cards.find("rtx4090"), mode, 0)
    mine = cards.Card("mine", 8 << 30, "from mine.json", (8, 9), 128, context=500 << 20)
    assert not any("context" in sentence for sentence in account.modelled(mine, mode, 0))


GOOD, HIGH = aten.relu.default, [each for each in ABOVE if each not in EXACT][:2]


@pytest.mark.parametrize(
    ("ran", "sentence"),
    [
        ([GOOD], "what the operator that ran returns, saves and takes inside"),
        ([GOOD, aten.gelu.default], "what all 2 operators that ran return, save and take inside"),
        ([GOOD, aten.nanmedian.default], "what 1 of the 2 operators that ran returns, saves and takes inside"),
        ([aten.nanmedian.default], "torch's caching allocator: rounding, blocks, segments, retries, its error"),
    ],
)
def test_sentences_about_operators_that_were_exact(ran, sentence):
    assert account.exact(types.SimpleNamespace(ran=ran))[0] == sentence


@pytest.mark.parametrize(
    ("ran", "casts", "sentence"),
    [
        (HIGH[:1], False, "{}: counted a little too high, if it is off"),
        ([], True, "autocast: counted a little too high, if it is off"),
        (HIGH[:1], True, "{}, autocast: counted a little too high, if they are off"),
    ],
)
def test_sentences_about_what_may_be_too_high(ran, casts, sentence):
    mode = types.SimpleNamespace(bars=Bars(), ran=ran, casts=casts)
    named = ", ".join(short(each) for each in ran)
    assert account.modelled(cards.find("24 GiB"), mode, 0)[0] == sentence.format(named)


def test_the_sentence_about_what_is_not_known():
    mode = types.SimpleNamespace(ran=[aten.convolution.default])
    assert account.missing(mode)[0] == "what is taken inside cuDNN's convolutions"


@pytest.mark.parametrize("kind", ["bar", "unknown", "high", "exact"])
def test_what_people_see_fits_80_columns(kind, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found = Prediction("train.py", "fits", card="24 GiB", total=24 << 30, allocated=1 << 30)
    names = [f"_a_rather_long_operator_name_{index}" for index in range(9)]
    if kind == "bar":
        found.bars, found.bar = dict.fromkeys(names, 3 << 20), 3 << 20
    elif kind != "exact":
        setattr(found, kind, names)
    if kind != "exact":
        assert f"{names[2]}, ..." in shown(found)
    _prediction.show(found, out := Terminal())
    assert max(map(len, out.getvalue().splitlines())) <= 80


# ---- against torch's CUDA build


def calls():
    rows, count = st.integers(1, 300), st.integers(1, 20_000)
    dtype = st.sampled_from([torch.float32, torch.bfloat16, torch.int64])
    floats = st.sampled_from([torch.float32, torch.bfloat16])
    return st.one_of(
        st.tuples(st.just(torch.sort), rows, count, dtype),
        st.tuples(st.just(lambda x: x.topk(min(5, x.shape[-1]))), rows, count, dtype),
        st.tuples(st.just(lambda x: x.cumsum(-1)), rows, count, dtype),
        st.tuples(st.just(torch.nonzero), rows, count, dtype),
        st.tuples(st.just(torch.median), rows, count, dtype),
        st.tuples(st.just(lambda x: x.logsumexp(-1)), rows, count, floats),
        st.tuples(st.just(lambda x: x.sum(dtype=torch.float64)), rows, count, dtype),
        st.tuples(st.just(lambda x: x.mean(0, dtype=torch.float32)), rows, count, dtype),
        st.tuples(st.just(lambda x: (x == 0).sum()), rows, count, dtype),
        st.tuples(st.just(lambda x: F.group_norm(x[:, None].expand(-1, 4, -1), 2)), rows, count, floats),
        st.tuples(st.just(lambda x: (x + 1).multinomial(1)), rows, count, floats),
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
@given(calls())
@settings(deadline=None, max_examples=150)
def test_the_bars_hold_on_this_device(call):
    function, rows, count, dtype = call
    device = torch.cuda.get_device_properties(0)
    x = torch.zeros(rows, count, dtype=dtype, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    out = function(x)
    measured = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    del out
    card = Allocator(total=device.total_memory)
    here = torch.zeros(rows, count, dtype=dtype)
    with CudaStorages(card, Gpu((device.major, device.minor), device.multi_processor_count)) as storages:
        storages.add([here])
        given_ = card.memory_stats()["requested_bytes.all.current"]
        card.reset_peak()
        kept = function(here)
        storages.ledger.settle()
        told = card.memory_stats()["requested_bytes.all.peak"] - given_
        del kept
        bar = max(storages.mode.bars.above(card.peak_allocated).values(), default=0)
    assert measured <= told + bar
    if all(is_exact(each) for each in storages.mode.ran):
        assert measured == told
