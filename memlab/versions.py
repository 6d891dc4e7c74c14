"""Whose kernels are modelled: those of the torch that runs, where its versions differ.

Measured on the CUDA builds of torch 2.11 to 2.15, each with an emulated device, by benchmarks/temporaries.py: of 800
operators 2.12 takes what 2.13 takes, 2.11 takes other memory in `multinomial`, in `any` and `all`, and for a product to
which a bias is added, 2.14 has the seed and offset of efficient attention on the device, and 2.15 takes other memory in
`multinomial` and `_foreach_norm`, and keeps no workspace of cuBLAS's.
"""

from __future__ import annotations

from typing import Any

import torch

OLDEST, NEWEST = (2, 11), (2, 15)  # that were measured
TORCH = (int(torch.__version__.split(".")[0]), int(torch.__version__.split(".")[1]))


def until_2_11() -> bool:
    """Tell whether this torch is 2.11, or an older one, of which is assumed that it does as 2.11."""
    return TORCH <= (2, 11)


def from_2_14() -> bool:
    """Tell whether this torch is 2.14, or a newer one, of which is assumed that it does as 2.14."""
    return TORCH >= (2, 14)


def from_2_15() -> bool:
    """Tell whether this torch is 2.15, or a newer one, of which is assumed that it does as 2.15."""
    return TORCH >= (2, 15)


def tie_break() -> str:
    """Return which of several free blocks of one size the caching allocator takes, as `memlab.allocator` names it.

    On the CUDA builds of 2.13 to 2.15 it is that of the oldest segment, up to 2.12 the one with the lowest address.
    """
    return "segment" if TORCH >= (2, 13) else "address"


def allocator() -> dict[str, Any]:
    """Return what of the caching allocator differs between versions, as arguments of `memlab.allocator.Allocator`."""
    return {"tie_break": tie_break(), "sets_reserve": from_2_15()}


def checked() -> str:
    """Say on which torch the model of this one was checked; of what is outside the measured versions, that it was not.

    The error bars are those of 2.13 (results/temporaries.md); what was seen on 2.11, 2.12, 2.14 and 2.15 lies within
    them.
    """
    like = min(max(TORCH, OLDEST), NEWEST)
    said = f"torch {like[0]}.{like[1]}'s CUDA build with an emulated device"
    return said if like == TORCH else f"{said}; torch {TORCH[0]}.{TORCH[1]} was not measured and may take other memory"
