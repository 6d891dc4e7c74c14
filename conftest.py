"""Collects the experiments of a checkout as tests, even where memlab's entry point is not installed."""

pytest_plugins = ["memlab.pytest_plugin", "pytester"]
