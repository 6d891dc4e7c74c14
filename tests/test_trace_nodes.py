"""Autograd nodes that pile up without bytes under `memlab trace`: after its backward a loss keeps its graph's nodes."""

import subprocess
import sys

import pytest
from holders import NEEDS_PACKED
from hypothesis import given
from hypothesis import strategies as st

from memlab import graph
from memlab.tracing.nodes import Nodes
from memlab.tracing.trace import load

TRAIN = """
import torch

model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
total, recent = torch.zeros(()), []
for step in range(40):
    optimizer.zero_grad()
    loss = model(torch.ones(4, 8)).sum()
    loss.backward()
    {statement}
    optimizer.step()
"""


@pytest.fixture
def trace(tmp_path):
    def run(statement, code=TRAIN):
        (tmp_path / "train.py").write_text(code.format(statement=statement))
        command = [sys.executable, "-m", "memlab", "trace", "--json", "out.json", "train.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return " ".join(done.stderr.split()), load(tmp_path / "out.json")

    return run


@NEEDS_PACKED
def test_a_sum_of_losses_after_backward_is_named(trace):
    said, found = trace("total += loss")
    assert not found.grows
    assert found.nodes_per_step == 5  # of the sum, the loss, tanh, the linear layer, and its transposed weight
    assert "5 autograd nodes more every step, and no bytes" in said
    assert [each.name for each in found.owners] == ["total"]
    assert "pattern accumulated loss" in said
    assert "add loss.item(), or loss.detach(), to total" in said


@NEEDS_PACKED
def test_in_the_shortest_run_that_is_judged_the_pattern_is_told_too(trace):
    said, found = trace("total += loss", TRAIN.replace("range(40)", "range(16)"))
    assert [(each.name, each.step, each.pattern) for each in found.owners] == [("total", 16, "accumulated loss")]
    assert "5 autograd nodes more every step, and no bytes" in said


IN_A_FUNCTION = """
import torch

model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())

def train():
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = torch.zeros(())
    for step in range({statement}):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 8)).sum()
        loss.backward()
        total += loss
        optimizer.step()

train()
"""


@NEEDS_PACKED
def test_a_sum_that_goes_with_its_function_is_named_as_it_was(trace):
    said, found = trace("22", IN_A_FUNCTION)
    assert (found.grows, found.nodes_per_step) == (False, 5)
    assert [(each.name, each.step, each.pattern) for each in found.owners] == [("total", 20, "accumulated loss")]
    assert "as of step 20" in said


@NEEDS_PACKED
def test_a_sum_of_each_epoch_keeps_its_pattern_though_it_is_as_large_after_the_next(trace):
    _, found = trace("40", IN_A_FUNCTION + "train()\n")
    assert [(each.name, each.step, each.pattern) for each in found.owners] == [("total", 80, "accumulated loss")]


@pytest.mark.parametrize("statement", ["total += loss.item()", "pass", "total = total * 0 + loss.detach()"])
def test_where_no_node_is_left_nobody_is_named(trace, statement):
    said, found = trace(statement)
    assert (found.grows, found.nodes_per_step, found.owners) == (False, 0, [])
    assert "does not grow" in said


def counted(counts):
    nodes = Nodes()
    for index, each in enumerate(counts):
        nodes.add(4 << index, each)
    return nodes


@given(st.integers(1, 20), st.integers(0, 100), st.integers(3, 8))
def test_as_many_in_every_step_are_told_exactly(each, before, count):
    series = [before + each * (4 << index) for index in range(count)]
    assert counted(series).per_step == each
    assert counted([*series, series[-1]]).per_step == 0  # the last ones were let go, as by a deque that is full


@given(st.lists(st.integers(0, 1000), max_size=8))
def test_what_once_fell_does_not_pile_up(series):
    told = counted(series).per_step
    assert told == 0 or series == sorted(set(series))


def test_counting_ends_where_a_graph_may_be_too_deep_to_be_seen():
    nodes = counted([10, 2 * graph.SHALLOW])
    assert not nodes.is_due(16)
    assert [step for step in range(70) if Nodes().is_due(step)] == [4, 8, 16, 32, 64]
