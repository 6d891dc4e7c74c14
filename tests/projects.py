"""What files that pytest runs inside pytest begin with, and how to read what it said."""

import os
import subprocess
import sys

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


def fails_where_said(result, word):
    """Assert that of the tests that pytest lists, those fail that have a word in their name."""
    for line in result.outlines:
        if "::" in line and "%]" in line:
            assert ("FAILED" in line) is (word in line.split()[0]), line


def session_without(modules, folder, *options):
    """Run pytest in a process of its own, without plugins of others; its end says which of these modules it loaded."""
    code = (
        "import sys, pytest\n"
        f"code = pytest.main(['-q', *{options}])\n"
        f"loaded = {modules} & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else code)"
    )
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def baseline_of(project, name="test_it"):
    return project.path / "__memlab__" / f"{name}.json"
