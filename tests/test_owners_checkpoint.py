"""What a checkpointed region keeps belongs to whoever keeps its graph, and not to torch's own closures."""

from functools import partial

import pytest
import torch
from holders import NEEDS_PACKED, owners
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import memlab

pytestmark = [
    NEEDS_PACKED,
    pytest.mark.usefixtures("nothing_else_alive"),
    pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context:FutureWarning"),  # torch 2.14, of ours
]
ROWS, COLUMNS = 3, 4
EACH = 4 * ROWS * COLUMNS
NUMBER = 4
WEIGHT = torch.ones(COLUMNS, COLUMNS, requires_grad=True)


def keep_products(context, operator, *args, **kwargs):
    is_product = operator is torch.ops.aten.mm.default
    return CheckpointPolicy.MUST_SAVE if is_product else CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = partial(create_selective_checkpoint_contexts, keep_products)


def block(x, mask=1):
    return (x.mm(WEIGHT) * mask).exp()


def given():
    return torch.ones(ROWS, COLUMNS)


def selective():
    return checkpoint(block, given(), use_reentrant=False, context_fn=SELECTIVE), 2 * EACH  # x and its product


def with_a_mask():
    return checkpoint(block, given(), mask=given(), use_reentrant=False), 2 * EACH


def given_by_keyword():
    return checkpoint(block, x=given().mm(WEIGHT), use_reentrant=False), 2 * EACH  # what mm saves, and its result


@pytest.mark.parametrize("make", [selective, with_a_mask, given_by_keyword])
def test_the_variable_is_the_owner_of_all_that_a_region_keeps(make):
    losses = []

    def step():
        output, kept = make()
        losses.append(output.sum())
        return kept

    found = memlab.growth(step, steps=4, warmup=1)
    assert [(each.name, each.bytes_per_step) for each in found.owners] == [("losses", step() + NUMBER)]
    assert found.bytes_per_step == step() + NUMBER
    assert [(each.name, each.elements) for each in owners() if each.kind != "cycle"] == [("losses", 7)]


def test_a_policys_cache_is_named_not_counted():
    with memlab.watch() as seen:
        output, _ = selective()
    sentence = "what a selective checkpoint's policy keeps is in a cache of its own and not counted"
    assert sentence in seen.blind and seen.saved.bytes == EACH
    assert memlab.bill(output).unseen == {"a selective checkpoint's cache": 1}
    with memlab.watch() as seen:
        output, _ = with_a_mask()
    assert sentence not in seen.blind and memlab.bill(output).unseen == {}
