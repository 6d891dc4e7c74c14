"""Who keeps an autograd graph alive: from its tensors back to the Python names that hold them."""

from __future__ import annotations

from memlab.ownership.owner import Owner as Owner
from memlab.ownership.search import owners as owners
