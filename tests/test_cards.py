"""Cards: what a user may write, what the table promises, and the allocator that comes of it."""

import json
import re
from pathlib import Path

import pytest

import memlab
from memlab import cards
from memlab.allocator import Allocator, OutOfMemory
from memlab.cards import CARDS, Card, find
from memlab.probes.simulated import card_of

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    "text", ["rtx4090", "RTX 4090", "NVIDIA GeForce RTX 4090", " rtx_4090".replace("_", " "), "nvidia-rtx4090"]
)
def test_a_name_may_be_written_as_people_do(text):
    assert find(text) is CARDS["rtx4090"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Tesla T4", "t4"),
        ("A100 80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA RTX A6000", "a6000"),
    ],
)
def test_a_name_may_be_what_the_driver_prints(text, name):
    assert find(text) is CARDS[name]


def test_the_table_is_whole():
    for name, card in CARDS.items():
        assert card.name == name
        assert card.total % MIB == 0
        assert card.total > card.context > 0
        assert card.usable == card.total - card.context - card.other
        assert card.sms > 0
        assert card.capability in cards.THREADS_PER_SM
        assert any(word in card.source for word in (cards.PROPERTIES, cards.TEXT, cards.NOMINAL))
    assert find("a100") is CARDS["a100-80gb"]
    assert {"t4", "rtx4090", "a100-80gb", "h100-80gb"} <= set(CARDS)


def test_a_size_is_a_card_from_which_nothing_is_taken():
    card = find("64 MiB")
    assert (card.total, card.context, card.other, card.capability) == (64 * MIB, 0, 0, None)
    assert card_of("64 MiB").device.free == card_of(64 * MIB).device.free == 64 * MIB
    assert find(card) is card
    assert card.describe() == "64.00 MiB (as asked for)"


def test_a_size_as_torch_prints_it_is_cut_to_whole_bytes(tmp_path):
    assert find("23.64 GiB").total == 2364 * GIB // 100
    (path := tmp_path / "mine.json").write_text('{"total": "23.64 GiB", "context": "0.33 GiB"}')
    assert find(str(path)).usable == 2364 * GIB // 100 - 33 * GIB // 100


def test_the_card_in_the_guide_is_one(tmp_path):
    guide = Path(__file__).parent.parent / "docs" / "cards.md"
    (shown,) = re.findall(r'^    ({"total.*})$', guide.read_text(encoding="utf-8"), re.MULTILINE)
    (path := tmp_path / "mine.json").write_text(shown)
    assert find(str(path)).capability == (8, 9)


def test_a_named_card_is_full_when_its_context_and_others_are_in_it():
    card = Card("small", 100 * MIB, context=30 * MIB, other=20 * MIB)
    allocator = card_of(card)
    allocator.malloc(50 * MIB)
    with pytest.raises(OutOfMemory, match=r"total capacity of 100\.00 MiB of which 0 bytes is free"):
        allocator.malloc(1)
    assert "30.00 MiB for the CUDA context and 20.00 MiB of others: 50.00 MiB for torch" in card.describe()
    given = Allocator(total=GIB)
    assert card_of(given) is given


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("rtx4099", "there is no card 'rtx4099', did you mean rtx4090"),
        ("zzzzzzzz", "known: t4, v100-16gb"),
        ("0", "a card of 0 bytes holds nothing"),
        ("-1", "a size cannot be negative"),
        ("24 XB", "unknown unit 'XB'"),
        ("1.5", "'1.5' is not a whole number of bytes"),
        (True, "a size is a number of bytes"),
        ("missing.json", "cannot read the card missing.json: No such file"),
    ],
)
def test_a_wrong_card_gets_a_sentence(what, words):
    with pytest.raises(ValueError, match=r".") as raised:
        find(what)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_is_a_card(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"total": "10 GiB", "context": "400 MiB", "capability": [8, 9], "sms": 60}))
    card = find(str(path))
    assert (card.name, card.usable, card.capability, card.sms) == ("mine", 10 * GIB - 400 * MIB, (8, 9), 60)
    assert card.source == "from mine.json"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", 'no object with a total, such as {"total": "24 GiB"}'),
        ('{"total": 1, "colour": 2}', "unknown fields ['colour']"),
        ('{"total": "1 MiB", "context": "1 MiB"}', "leave nothing of total"),
        ('{"total": "1 MiB", "capability": "8.9"}', "capability is two whole numbers"),
        ('{"total": "1 MiB", "capability": [8, -1]}', "capability is two whole numbers"),
        ('{"total": "1 MiB", "sms": -1}', "sms is a whole number"),
        ('{"total": "1 Mib", "sms": true}', "sms is a whole number"),
    ],
)
def test_a_wrong_file_gets_a_sentence(tmp_path, content, words):
    path = tmp_path / "card.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r".") as raised:
        find(str(path))
    assert words in str(raised.value)


def test_a_watch_takes_a_name():
    import torch

    with memlab.watch(card="t4") as seen:
        kept = torch.ones(1000)
    assert seen.read()["allocated"] == 4096
    with pytest.raises(ValueError, match="did you mean"):
        memlab.watch(card="t5")
    del kept
