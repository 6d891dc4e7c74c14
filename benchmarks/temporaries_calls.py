"""Calls of the sizes that training has, for operators whose needs depend on size, type or layout: name to function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

HALF = torch.bfloat16
aten = torch.ops.aten


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=dtype.is_floating_point)


def whole(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long)


def _sorts() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    for shape in ((1000,), (5000,), (100_000,), (8, 5000), (127, 10_000), (300, 5000), (2, 1_000_000), (64, 100)):
        for dtype in (torch.float32, HALF, torch.int64, torch.uint8):
            found[f"sort {shape} {dtype}"] = lambda shape=shape, dtype=dtype: torch.zeros(shape, dtype=dtype).sort(-1)
    found["sort the first dimension"] = lambda: torch.zeros(5000, 8).sort(0)
    found["argsort"] = lambda: torch.zeros(5000).argsort(stable=True)
    for shape, most in (
        ((64, 10_000), 50),
        ((1_000_000,), 5000),
        ((512, 50_257), 50),
        ((16, 2000), 8),
        ((4096, 900), 8),
    ):
        for dtype in (torch.float32, HALF, torch.int64):
            found[f"topk {shape} {dtype}"] = lambda shape=shape, dtype=dtype, most=most: torch.zeros(
                shape, dtype=dtype
            ).topk(most)
    for count in (10, 5000, 100_000, 1_000_000):
        for dtype in (torch.int64, torch.int32):
            found[f"randperm {count} {dtype}"] = lambda count=count, dtype=dtype: torch.randperm(count, dtype=dtype)
        found[f"cumsum {count}"] = lambda count=count: (leaf(count).cumsum(0), torch.zeros(count, dtype=HALF).cumsum(0))
        found[f"cumsum int {count}"] = lambda count=count: torch.zeros(count, dtype=torch.int32).cumsum(0)
        found[f"nonzero {count}"] = lambda count=count: torch.zeros(count).nonzero()
        found[f"masked_select {count}"] = lambda count=count: leaf(count)[torch.zeros(count, dtype=torch.bool)]
        found[f"unique {count}"] = lambda count=count: (torch.zeros(count).unique(), whole(count).unique())
    for shape in ((8, 1000), (8, 50_257), (1, 1000)):
        for count, again in ((1, False), (5, True), (5, False)):
            found[f"multinomial {shape} {count} {again}"] = lambda shape=shape, count=count, again=again: torch.ones(
                shape
            ).multinomial(count, again)
    return found


def _places() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    for rows, width, count in ((1000, 64, 3000), (1000, 64, 5000), (50_257, 768, 8192), (50_257, 8, 100_000)):
        for dtype in (torch.float32, HALF):
            given = rows, width, count, dtype
            found[f"embedding {given}"] = lambda rows=rows, width=width, count=count, dtype=dtype: F.embedding(
                whole(count), leaf(rows, width, dtype=dtype)
            )
            found[f"index {given}"] = lambda rows=rows, width=width, count=count, dtype=dtype: leaf(
                rows, width, dtype=dtype
            )[whole(count)]
    found["index two"] = lambda: leaf(100, 50, 64)[whole(5000), whole(5000)]
    found["index behind"] = lambda: leaf(32, 200, 64)[:, whole(5000)]
    found["gather"] = lambda: leaf(512, 5000).gather(1, whole(512, 300))
    found["scatter_add"] = lambda: leaf(512, 5000).scatter_add(1, whole(512, 300), leaf(512, 300))
    found["embedding_bag"] = lambda: F.embedding_bag(whole(64, 100), leaf(5000, 64), mode="mean")
    return found


def _layers() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    for dtype in (torch.float32, HALF):
        image = (16, 64, 56, 56)
        layers = {
            "group norm": (nn.GroupNorm(8, 64), image),
            "instance norm": (nn.InstanceNorm2d(64, affine=True), image),
            "batch norm of rows": (nn.BatchNorm1d(1000), (4096, 1000)),
            "layer norm": (nn.LayerNorm(1024), (8192, 1024)),
            "layer norm of many rows": (nn.LayerNorm(64), (200_000, 64)),
            "rms norm": (nn.RMSNorm(1024), (8192, 1024)),
            "max pool": (nn.MaxPool2d(3, 2, 1), image),
            "avg pool": (nn.AdaptiveAvgPool2d(1), image),
            "upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), image),
            "nearest": (nn.Upsample(scale_factor=2), image),
            "softmax": (nn.Softmax(-1), (8, 16, 512, 512)),
            "softmax of channels": (nn.Softmax(1), image),
            "glu": (nn.GLU(), (4096, 2048)),
            "prelu": (nn.PReLU(64), image),
            "linear": (nn.Linear(1024, 4096), (8, 1024, 1024)),
            "bilinear": (nn.Linear(1000, 1), (100_000, 1000)),
        }
        for name, (layer, shape) in layers.items():
            found[f"{name} {dtype}"] = lambda layer=layer, shape=shape, dtype=dtype: layer.to("cuda", dtype)(
                leaf(*shape, dtype=dtype)
            )
        for count, classes in ((1024, 10), (8192, 2048), (2048, 50_257)):
            found[f"cross entropy {count} {dtype}"] = lambda count=count, classes=classes, dtype=dtype: F.cross_entropy(
                leaf(count, classes, dtype=dtype), whole(count)
            )
        for loss in (
            F.mse_loss,
            F.l1_loss,
            F.smooth_l1_loss,
            F.huber_loss,
            F.binary_cross_entropy_with_logits,
            F.kl_div,
        ):
            found[f"{loss.__name__} {dtype}"] = lambda loss=loss, dtype=dtype: loss(
                leaf(4096, 1000, dtype=dtype), torch.zeros(4096, 1000, dtype=dtype)
            )
        found[f"cells {dtype}"] = lambda dtype=dtype: (
            nn.LSTMCell(256, 512, dtype=dtype, device="cuda")(leaf(128, 256, dtype=dtype)),
            nn.GRUCell(256, 512, dtype=dtype, device="cuda")(leaf(128, 256, dtype=dtype)),
        )
        for heads, length, width in ((16, 1024, 64), (8, 300, 128), (4, 50, 32)):
            for causal in (False, True):
                for kernel in (nn.attention.SDPBackend.FLASH_ATTENTION, nn.attention.SDPBackend.EFFICIENT_ATTENTION):
                    given = (heads, length, width, causal, kernel, dtype)
                    found[f"attention {given}"] = lambda given=given: _attend(*given)
    for name in ("sum", "mean", "amax", "var", "std", "prod", "logsumexp", "norm", "argmax", "any", "count_nonzero"):
        for shape, dims in (((4096, 1000), ()), ((4096, 1000), (0,)), ((4096, 1000), (1,)), ((64, 300, 70), (1,))):
            found[f"{name} {shape} {dims}"] = lambda name=name, shape=shape, dims=dims: getattr(leaf(*shape), name)(
                *dims
            )
    return found


def _attend(heads: int, length: int, width: int, causal: bool, kernel: Any, dtype: torch.dtype) -> torch.Tensor:
    with nn.attention.sdpa_kernel(kernel):
        given = [leaf(2, heads, length, width, dtype=dtype) for _ in range(3)]
        return F.scaled_dot_product_attention(*given, is_causal=causal)


def _typed() -> dict[str, Callable[[], Any]]:
    """Reductions that are told the type of what they return."""
    found: dict[str, Callable[[], Any]] = {}
    for given in (torch.float32, HALF, torch.int64):
        for told in (torch.float64, torch.float32, HALF):
            for dims in (None, 0, -1):

                def reduce(given: torch.dtype = given, told: torch.dtype = told, dims: int | None = dims) -> Any:
                    x = torch.zeros(300, 700, dtype=given)
                    return x.sum(dims, dtype=told), x.nansum(dims, dtype=told), x.mean(dims, dtype=told)

                found[f"{given} reduced over {dims} to {told}"] = reduce
    return found


def _beside_layers() -> dict[str, Callable[[], Any]]:
    """What training scripts do beside layers: shuffle, give initial values, pad and pack, check."""
    found: dict[str, Callable[[], Any]] = {}
    generator = torch.Generator("cuda")
    for count in (10, 5000, 100_000, 1_000_000):
        found[f"randperm {count} of a generator"] = lambda count=count: torch.randperm(count, generator=generator)
        for dtype in (torch.float32, HALF, torch.int64, torch.bool):
            found[f"random {count} {dtype}"] = lambda count=count, dtype=dtype: (
                torch.zeros(count, dtype=dtype).random_(),
                torch.zeros(count, dtype=dtype).random_(2),
                torch.zeros(count, dtype=dtype).random_(0, 2),
            )
        for dtype in (torch.float32, HALF):
            found[f"checked {count} {dtype}"] = lambda count=count, dtype=dtype: (
                torch.zeros(count, dtype=torch.bool).all(),
                aten._is_all_true(torch.zeros(count, dtype=torch.bool)),
                aten._is_any_true(torch.zeros(count, dtype=torch.bool)),
                torch.zeros(count, dtype=dtype).fill_(torch.ones(())),
                torch.zeros(count, dtype=dtype).isnan().any(),
            )
        for dtype in (torch.float32, torch.float16):  # there is no such kernel for bfloat16
            found[f"scaled {count} {dtype}"] = lambda count=count, dtype=dtype: _unscaled(count, dtype)
    for rows, columns in ((8, 8), (64, 300), (1000, 700)):
        for dtype in (torch.float32, HALF):
            found[f"eye {rows} {columns} {dtype}"] = lambda rows=rows, columns=columns, dtype=dtype: (
                torch.eye(rows, columns, dtype=dtype),
                torch.eye(rows, dtype=dtype),
                torch.eye(rows, columns, out=torch.empty(rows, columns, dtype=dtype)),
                torch.empty(0, dtype=dtype).set_(torch.eye(rows, dtype=dtype)),
            )
            found[f"weight norm {rows} {columns} {dtype}"] = lambda rows=rows, columns=columns, dtype=dtype: (
                torch._weight_norm(leaf(rows, columns, dtype=dtype), leaf(rows, 1, dtype=dtype))
            )
    for lengths in ((6, 4, 2), (300, 200, 100, 100, 7)):
        found[f"packed {lengths}"] = lambda lengths=lengths: nn.utils.rnn.pad_packed_sequence(
            nn.utils.rnn.pack_padded_sequence(leaf(len(lengths), lengths[0], 64), list(lengths), batch_first=True)
        )[0]
    return found


def _unscaled(count: int, dtype: torch.dtype) -> None:
    """What torch.amp.GradScaler does to gradients, and to its scale."""
    found, inverse, scale, tracker = (torch.zeros(1), torch.ones(1), torch.ones(1), torch.zeros(1, dtype=torch.int32))
    several = [torch.zeros(count, dtype=dtype), torch.zeros(7, 9, dtype=dtype), torch.zeros(3, count, dtype=dtype)]
    torch._amp_foreach_non_finite_check_and_unscale_(several, found, inverse)
    torch._amp_update_scale_(scale, tracker, found, 2.0, 0.5, 2000)


CALLS: dict[str, Callable[[], Any]] = {**_sorts(), **_places(), **_layers(), **_typed(), **_beside_layers()}
