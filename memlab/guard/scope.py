"""Run a test's body again in fresh function scope. Importing this does not import torch."""

from __future__ import annotations

from typing import Any

import pytest


class FunctionScope:
    """The function-scoped part of one test: it can be torn down before its time, and set up anew.

    What pytest keeps of an item between setup and teardown is a stack of nodes with finalizers (``SetupState``). Only
    the item itself is taken off and pushed again: classes, modules and the session keep their fixtures.
    """

    def __init__(self, item: pytest.Function) -> None:
        self.item = item
        self._state: Any = item.session._setupstate
        self._stash: Any = item.stash
        self._kept = dict(self._stash._storage)  # fixtures such as tmp_path take out what pytest put in only once

    def tear_down(self) -> None:
        """Run the finalizers of function-scoped fixtures and let go of every fixture's value."""
        try:
            self._state.teardown_exact(self.item.parent)
        finally:
            self.item._initrequest()

    def set_up(self) -> None:
        """Set the function-scoped fixtures up again."""
        for key, value in self._kept.items():
            self._stash.setdefault(key, value)
        self._state.setup(self.item)
