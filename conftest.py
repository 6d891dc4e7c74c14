"""Collects the experiments of a checkout as tests, even where memlab's entry point is not installed."""

import os

# Before torch is imported, here and in the processes that tests start. The workers of pytest-xdist share the cores: of
# several threads of an operator one waits for a core while the others spin, for up to seven times the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["memlab.pytest_plugin", "pytester"]
