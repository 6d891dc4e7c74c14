"""What files that pytest runs inside pytest begin with, and how to read what it said."""

HEAD = """
import pytest, torch, unittest
from torch import nn

KEPT = []
WEIGHT = torch.ones(256, requires_grad=True)
SIZE = 1 << 10


def forward(x=None):
    x = torch.ones(256, requires_grad=True) if x is None else x
    return x.exp().sum()  # exp keeps its output: 1,024 bytes


@pytest.fixture
def x():
    return torch.ones(256, requires_grad=True)
"""


def told(result):
    return "\n".join(result.outlines)


def baseline_of(project, name="test_it"):
    return project.path / "__memlab__" / f"{name}.json"
