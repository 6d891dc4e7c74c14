"""A DataLoader on fake tensors: what it draws to shuffle has values, and no worker is started to hand over fakes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils.data import DataLoader, dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter, _SingleProcessDataLoaderIter

_next_index: Any = _BaseDataLoaderIter._next_index  # torch declares no types for it


@contextmanager
def loads_fakes() -> Iterator[None]:
    """Let every DataLoader in the block load in its own thread, and its samplers work on tensors that are not fake.

    `torch.utils.data.random_split` draws from tensors that are not fake, too.
    """
    with (
        mock.patch.object(DataLoader, "_get_iterator", _iterator),
        mock.patch.object(_BaseDataLoaderIter, "_next_index", _indices),
        mock.patch.object(dataset, "randperm", _randperm),
    ):
        yield


def _iterator(loader: DataLoader[Any]) -> _BaseDataLoaderIter:
    alone = copy.copy(loader)
    alone.num_workers, alone.timeout = 0, 0
    with unset_fake_temporarily():  # it draws a seed for workers
        return _SingleProcessDataLoaderIter(alone)


def _indices(iterator: _BaseDataLoaderIter) -> Any:
    with unset_fake_temporarily():
        return _next_index(iterator)


def _randperm(*args: Any, **kwargs: Any) -> Tensor:
    with unset_fake_temporarily():
        return torch.randperm(*args, **kwargs)
