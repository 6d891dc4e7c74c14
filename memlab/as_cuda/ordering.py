"""What kernels that sort, count, choose and scatter allocate inside. They call cub (`memlab.as_cuda.cub`).

As in `memlab.as_cuda.temporaries`; the sources are native/cuda's SortStable.cu, TensorTopK.cu, ScanKernels.cu,
Nonzero.cu, Indexing.cu, Embedding.cu, MultinomialKernel.cu and Randperm.cu.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log, log2
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from memlab import versions
from memlab.as_cuda import cub
from memlab.as_cuda.gpu import Gpu
from memlab.as_cuda.scratch import Kernel, Scratch, nbytes

aten = torch.ops.aten
INDEX = 8  # bytes of an int64
SMALL_SORT = 4096  # elements along the dimension that are sorted in place
LARGE_SORT = 1_000_000  # and those from which every row is sorted by itself
FULL_SORTS = 128  # rows: with fewer, all of them are sorted at once
FEW_INDICES = 3072  # embedding_dense_backward_cuda sorts no fewer
ROWS_PER_THREAD = 10  # NROWS_PER_THREAD, native/cuda/EmbeddingBackwardKernel.cu
# Rows up to which a row of at least so many elements is shared among blocks: should_use_multiblock, TensorTopK.cu.
SHARED_ROWS = ((20, 20000), (40, 10000), (80, 8000), (199, 5000), (799, 3000), (4000, 800))
TOPK_THREADS, TOPK_BLOCKS_PER_SM, TOPK_ITEMS = 256, 6, (4, 64)


def _sort(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    values, x = out[0], args[0]
    dims = [each for each in args[1:] if type(each) is int]
    dim = dims[0] if dims else -1
    count = x.shape[dim] if x.dim() else 1
    if x.numel() == 0 or x.dim() == 0:
        return
    if count <= SMALL_SORT:
        use.take(INDEX * count)
        return
    item, total = x.element_size(), x.numel()
    if x.stride(dim) != 1 or not _is_dense(x):
        use.take(total * item)
        if values.stride(dim) != 1:
            use.take(total * item, INDEX * total)
    _sort_rows(use, gpu, total // count, count, item)


def _sort_rows(use: Scratch, gpu: Gpu, rows: int, count: int, item: int) -> None:
    total = rows * count
    if rows == 1 or count >= LARGE_SORT:
        use.take(INDEX * count)
        use.use(cub.radix_sort(count, item, INDEX, gpu))
    elif rows < FULL_SORTS:
        use.take(INDEX * total, INDEX * total)
        use.use(item * total, cub.radix_sort(total, item, INDEX, gpu))
        use.use(cub.radix_sort(total, INDEX, 0, gpu, bits=max(1, ceil(log2(rows)))))
    else:
        use.take(INDEX * total)
        use.use(cub.segmented_sort(total, item, INDEX))


def _is_dense(x: Tensor) -> bool:
    return sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1 == x.numel()


def _median_early(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    """All elements are sorted, with their places."""
    count, item = args[0].numel(), args[0].element_size()
    use.take(item * count, INDEX * count)
    if count <= SMALL_SORT:
        use.take(INDEX * count)
    else:
        _sort_rows(use, gpu, 1, count, item)


def _topk(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    x, dim = args[0], args[2] if len(args) > 2 else -1
    if x.dim() == 0 or out[0].numel() == 0:
        return
    use.copy(x)
    count, wanted = x.shape[dim], args[1]
    rows, item = x.numel() // count, x.element_size()
    _choose_largest(use, gpu, rows, count, item)
    if wanted > SMALL_SORT and (len(args) < 5 or args[4]):
        use.take(INDEX * rows * wanted, item * rows * wanted, INDEX * rows * wanted)
        _sort_rows(use, gpu, rows, wanted, item)


def _choose_largest(use: Scratch, gpu: Gpu, rows: int, count: int, item: int) -> None:
    """Counts of digits by block, where one row keeps several blocks busy."""
    least = next((least for most, least in SHARED_ROWS if rows <= most), 400)
    if count < least:
        return
    each = -(-rows * count // (gpu.sms * TOPK_BLOCKS_PER_SM * TOPK_THREADS))
    each = min(max(each, TOPK_ITEMS[0]), TOPK_ITEMS[1])
    blocks = rows * -(-count // (each * TOPK_THREADS))
    wide = 16 if item == 8 else 8
    held = use.take(item * rows, 8 * rows, wide * rows, 2 * 256 * blocks, 4 * 256 * rows, 4 * blocks, 4 * blocks)
    use.use(cub.storage(8 * (-(-blocks // 1920) + cub.PADDING), 2 * cub.ALIGN))
    use.drop(held)


def _running(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Tensor) -> None:
    """Cumsum and cumprod: along the only dimension that there is, cub's."""
    x = args[0]
    if x.dtype != out.dtype:
        use.take(out.numel() * out.element_size())
    else:
        use.copy(x)
    if x.dim() and x.numel() == x.shape[args[1]] > 0:
        use.use(cub.scan(x.numel(), out.element_size()))


def _nonzero_early(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    use.copy(args[0])
    use.take(4, cub.reduction(args[0].numel(), gpu))


def _nonzero(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    use.copy(args[0])
    use.take(4)
    if args[0].dim():
        use.use(cub.select(args[0].numel(), gpu))


def _masked_select(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Tensor) -> None:
    mask = torch.broadcast_tensors(args[0], args[1])[1]
    use.copy(mask)
    use.take(4)
    use.use(cub.select(mask.numel(), gpu))


def _masked_select_early(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    mask = torch.broadcast_tensors(args[0], args[1])[1]
    use.copy(mask)
    use.take(4, cub.reduction(mask.numel(), gpu))


def _masked_scatter(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    x, mask = args[0], args[1]
    if mask.shape != x.shape:
        use.take(x.numel())
    use.take(INDEX * x.numel())
    use.use(cub.scan(x.numel(), INDEX))


def _unique(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    """Before the values, which come last, there is the sorted input."""
    x = args[0]
    count, item = x.numel(), x.element_size()
    if x.dtype == torch.bool or count == 0 or item < 4:
        return
    use.copy(x)
    sorted_ = use.take(item * count)
    if len(args) > 2 and (args[2] or (len(args) > 3 and args[3])):
        return
    use.use(INDEX, cub.unique(count, item, gpu))
    use.drop(sorted_)


def _index(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Tensor) -> None:
    """A mask becomes indices first."""
    given = [(place, each) for place, each in enumerate(args[1]) if each is not None]
    if len(given) == 1 and given[0][1].dtype in (torch.bool, torch.uint8):
        place, mask = given[0]
        others = torch.Size([*args[0].shape[:place], *args[0].shape[place + mask.dim() :]]).numel()
        use.take(INDEX * mask.dim() * (out.numel() // max(others, 1)))


def _index_early(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    for each in args[1]:
        if each is not None and each.device == args[0].device and each.dtype in (torch.bool, torch.uint8):
            _nonzero_early(use, gpu, [each], None)


def _index_put(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    """Adding into places that may be named twice sorts the places: the backward of indexing."""
    x, indices, values = args[0], args[1], args[2]
    count = _places(use, indices)
    if not (len(args) > 3 and args[3]) or count == 0 or x.numel() == 0:
        return
    named = [place for place, each in enumerate(indices) if each is not None]
    if named[-1] - named[0] >= len(named):  # not neighbours: they are moved to the front
        use.take(nbytes(x))
    behind = torch.Size(x.shape[named[-1] + 1 :]).numel()
    whole = count * x.numel() // torch.Size(x.shape[place] for place in named).numel()
    use.take(INDEX * count)
    if values.numel() != whole or not values.is_contiguous():
        use.take(whole * values.element_size())
    use.take(INDEX * count, INDEX * count)
    bits = max(1, ((x.numel() - 1) // behind).bit_length())
    use.use(INDEX * count, cub.radix_sort(count, INDEX, INDEX, gpu, bits=bits))


def _places(use: Scratch, indices: Sequence[Any]) -> int:
    """How many places are named; a mask becomes indices first, on fake tensors as many as there may be."""
    for each in indices:
        if each is not None and each.dtype in (torch.bool, torch.uint8):
            chosen = each.numel() if isinstance(each, FakeTensor) else int(each.count_nonzero())
            use.take(INDEX * chosen * each.dim())
            return chosen
    shapes = [each.shape for each in indices if each is not None]
    return torch.broadcast_shapes(*shapes).numel() if shapes else 0


def _embedding_backward_early(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    count = args[1].numel()
    if count > FEW_INDICES:
        use.copy(args[0], args[1])
        use.take(INDEX * count, INDEX * count)
        bits = max(1, int(args[2]).bit_length())
        use.use(INDEX * count, cub.radix_sort(count, INDEX, INDEX, gpu, bits=bits))


def _embedding_backward(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Tensor) -> None:
    grad, indices, rows = args[0], args[1], args[2]
    count = indices.numel()
    use.copy(grad, indices)
    if count <= FEW_INDICES:
        return
    most = min(count, rows)
    partial = count // ROWS_PER_THREAD + most
    use.take(INDEX * count, INDEX * count)  # sorted indices and where they were
    use.take(INDEX * count, INDEX)  # their counts
    use.use(INDEX * count)
    use.take(INDEX * most, INDEX * most)
    use.use(cub.scan(most, INDEX))
    use.take(INDEX, INDEX * partial, 4 * partial * grad.shape[-1])


def _multinomial(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Tensor) -> None:
    weights, wanted = args[0], args[1]
    again = len(args) > 2 and args[2]
    count = weights.shape[-1]
    rows, item = weights.numel() // count, weights.element_size()
    if again and wanted > 1:
        use.take(*(2 if versions.from_2_15() else 3) * [nbytes(weights)])
        if rows == 1:
            use.use(cub.scan(count, item))
        return
    if versions.until_2_11():  # are they finite and not negative: the largest, the smallest and what is said of them
        use.use(item, 1, item, 1, 1)
        use.take(1)
    else:  # here the largest and the smallest are of one kernel, and stay
        use.take(item, item, 1)
    use.use(item * rows, rows, 1)  # and does a row have any
    use.take(1, nbytes(weights))  # then a random number for each
    if wanted > 1:
        use.take(item * rows * wanted)
        _choose_largest(use, gpu, rows, count, item)


def _randperm(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    """Random keys are sorted, of so many bits that few are alike (Randperm.cu)."""
    count = args[0]
    if count < 2:
        return
    bits = min(64, ceil(log2(count - (6 * count * count + 1) / (12 * log(0.9)))))
    item = 4 if bits <= 32 else 8
    index = out.element_size()
    use.take(index * count, item * count, item * count)
    use.use(cub.radix_sort(count, item, index, gpu, bits=bits))


KERNELS: dict[Any, Kernel] = {
    aten.sort.default: _sort,
    aten.sort.stable: _sort,
    aten.topk.default: _topk,
    aten.cumsum.default: _running,
    aten.cumprod.default: _running,
    aten.nonzero.default: _nonzero,
    aten.masked_select.default: _masked_select,
    aten.masked_scatter.default: _masked_scatter,
    aten._unique2.default: _unique,
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten.index_put_.default: _index_put,
    aten._index_put_impl_.default: _index_put,
    aten.embedding_dense_backward.default: _embedding_backward,
    aten.multinomial.default: _multinomial,
    aten.randperm.default: _randperm,
    aten.randperm.generator: _randperm,
}
EARLY: dict[Any, Kernel] = {
    aten.nonzero.default: _nonzero_early,
    aten.masked_select.default: _masked_select_early,
    aten.median.default: _median_early,
    aten.index.Tensor: _index_early,
    aten.embedding_dense_backward.default: _embedding_backward_early,
}
"""What is taken and given back before the output is there; it gets None for the output."""
