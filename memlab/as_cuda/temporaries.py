"""What CUDA kernels allocate inside, by operator: invisible to a dispatcher, and up to several times the output.

Each function takes the kernel's scratch memory, the device, the operator's arguments and its outputs. The formulas are
read from torch's sources (native/cuda) and hold to the byte on torch 2.13's CUDA build where nothing else is said;
what `memlab.versions` tells apart holds on 2.11's, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memlab import versions
from memlab.as_cuda import ordering, reductions
from memlab.as_cuda.gpu import Gpu
from memlab.as_cuda.norms import HALF
from memlab.as_cuda.scratch import Kernel, Scratch, nbytes

aten = torch.ops.aten
INDEX = 8  # bytes of an int64
CHUNK = 65536  # elements of one block of a foreach kernel: kChunkSize, native/cuda/MultiTensorApply.cuh


def _wide(tensor: Tensor) -> int:
    """Bytes of the type in which a CUDA kernel sums: opmath_type."""
    return max(4, tensor.element_size())


def _narrow(tensor: Tensor) -> int:
    return tensor.element_size()


def _place(tensor: Tensor) -> int:
    """A value and where it is."""
    return 16


def _welford(tensor: Tensor) -> int:
    return 32 if tensor.element_size() == 8 else 16


def _reduction(accumulator: Callable[[Tensor], int], dims: int | None = None, *, casts: bool = False) -> Kernel:
    """A reduction of its first argument, over all, or over the dimensions in argument ``dims``.

    ``casts`` is for those that can be told the type of their output.
    """

    def kernel(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
        x = _in_type_of(use, args[0], out) if casts else args[0]
        over = args[dims] if dims is not None and len(args) > dims else None
        _reduce(use, gpu, x, [over] if isinstance(over, int) else over or (), accumulator(out if casts else x))

    return kernel


def _in_type_of(use: Scratch, x: Tensor, out: Tensor) -> Tensor:
    """Return what is reduced: a copy in the output's type, but for half types summed in float32 (ReduceOpsUtils.h)."""
    if x.dtype.to_real() == out.dtype.to_real() or (x.dtype in HALF and out.dtype == torch.float32):
        return x
    use.take(x.numel() * out.element_size())
    return torch.empty_like(x, device="meta", dtype=out.dtype)


def _flags(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Tensor) -> None:
    x, over = args[0], args[1] if len(args) > 1 else ()
    if x.dim() == 0 and x.dtype != torch.bool:
        use.take(1)
    flag = x.element_size() if versions.until_2_11() else 1  # in which a block hands on what it has found
    _reduce(use, gpu, x, [over] if isinstance(over, int) else over or (), flag)


def _count(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Tensor) -> None:
    """The sum of what is not zero, as integers."""
    use.take(args[0].numel(), INDEX * args[0].numel())
    over = args[1] if len(args) > 1 else None
    whole = torch.empty_like(args[0], device="meta", dtype=torch.int64)
    _reduce(use, gpu, whole, [over] if isinstance(over, int) else over or (), INDEX)


def _logsumexp(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Tensor) -> None:
    """The sum of exp(x - the largest)."""
    x = torch.empty_like(args[0], device="meta", dtype=out.dtype)
    if x.dtype != args[0].dtype:
        use.take(nbytes(x))
    largest = use.take(nbytes(out))
    _reduce(use, gpu, x, args[1], _narrow(x))
    use.take(nbytes(x))
    _reduce(use, gpu, x, args[1], _wide(x))
    use.drop(largest)


def _logits_loss(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Tensor) -> None:
    use.take(nbytes(args[0]))
    _elementwise_loss(use, gpu, [*args[:2], args[4] if len(args) > 4 else 1], out)


def _roll(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Tensor) -> None:
    """One dimension after the other."""
    if len(args) > 2 and len(args[2]) > 1:
        use.take(nbytes(out))


def _reduce(use: Scratch, gpu: Gpu, x: Tensor, dims: Sequence[int], accumulator: int) -> None:
    item = x.element_size()
    use.use(*reductions.buffers(x.shape, x.stride(), dims, item=item, accumulator=accumulator, gpu=gpu))


def _elementwise_loss(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    """The loss of each element, and then its mean or sum."""
    if len(args) < 3 or args[2] != 0:
        use.take(nbytes(args[0]))
        dense = torch.empty_like(args[0], device="meta", memory_format=torch.contiguous_format)
        _reduce(use, gpu, dense, (), _wide(args[0]))


def _softmax_backward(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    use.take(nbytes(args[0]))  # grad * output


def _safe_softmax(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Tensor) -> None:
    use.take(out.numel(), out.numel() // max(out.shape[args[1]], 1), out.element_size())


def _dense(*which: int) -> Kernel:
    """A kernel that first makes these arguments contiguous."""

    def kernel(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
        use.copy(*(args[each] for each in which))

    return kernel


def _product(*which: int) -> Kernel:
    """A product of matrices: cuBLAS takes rows or columns, so an expanded or strided factor is copied."""

    def kernel(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
        use.take(*(nbytes(args[each]) for each in which if not _is_for_blas(args[each])))

    return kernel


def _is_for_blas(matrix: Tensor) -> bool:
    rows, columns = matrix.shape[-2:]
    down, right = matrix.stride()[-2:]
    return (right == 1 and down >= max(1, columns)) or (down == 1 and right >= max(1, rows))


def _norms(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    """Partial norms: as many for every tensor as the largest one needs; from torch 2.15 on as it needs itself."""
    if len(args) > 1 and args[1] == -torch.inf:
        return  # one norm after the other
    chunks = [-(-each.numel() // CHUNK) for each in args[0]]
    partial = _wide(args[0][0])
    if versions.from_2_15():  # and where those of each begin
        use.take(INDEX * (1 + sum(map(bool, chunks))), sum(chunks) * partial)
    else:
        use.take(len(chunks) * max(chunks, default=0) * partial)


def _layer_norm_backward(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    grad, x, shape = args[0], args[1], args[2]
    use.copy(grad, x)
    columns = torch.Size(shape).numel()
    rows = x.numel() // max(columns, 1)
    parts = _parts(gpu, rows, columns)
    use.take(*(parts * columns * x.element_size() for wanted in args[-1][1:] if wanted and parts))


def _parts(gpu: Gpu, rows: int, columns: int) -> int:
    """Blocks over the rows that sum the gradients of weight and bias apart (LaunchGammaBetaBackwardCUDAKernel)."""
    if rows <= 64 * 1024 or columns // 32 >= gpu.sms // 2:
        return 0
    return -(-rows // 1024)


def _convolution_backward(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    """Without cuDNN's own workspace, which is not known here."""
    grad = args[0]
    use.copy(grad)
    if args[-1][2]:
        _reduce(use, gpu, grad, [dim for dim in range(grad.dim()) if dim != 1], _wide(grad))


def _flash_forward(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    """Splits over the keys, where queries are too few to fill the device (num_splits_heuristic, flash_api.cpp)."""
    query, key, dropout = args[0], args[1], args[3] if len(args) > 3 else 0.0
    batch, heads, length, width = query.shape
    if dropout:
        use.take(16)  # the random stream's state
    splits = 1 if dropout else _splits(gpu, batch * heads, length, key.shape[2], width)
    if splits > 1:
        rounded = -(-width // 32) * 32 if width <= 128 else -(-width // 64) * 64
        use.take(4 * splits * batch * heads * length, 4 * splits * batch * heads * length * rounded)


def _splits(gpu: Gpu, heads: int, length: int, keys: int, width: int) -> int:
    block = 256 if width <= 64 else 128 if width <= 128 else 64
    blocks, work, units = -(-keys // block), heads * -(-length // 64), gpu.sms * 2
    if work >= 0.8 * units:
        return 1
    most = min(128, units, blocks)
    fill = {}
    for splits in range(1, most + 1):
        if splits == 1 or -(-blocks // splits) != -(-blocks // (splits - 1)):
            waves = work * splits / units
            fill[splits] = waves / -(-work * splits // units)
    best = max(fill.values())
    return next(splits for splits, each in fill.items() if each >= 0.85 * best)


def _flash_backward(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    grad, query, key, result = args[0], args[1], args[2], args[4]
    batch, heads, length, width = query.shape
    use.copy(grad.transpose(1, 2), result.transpose(1, 2))
    rows = -(-length // 128) * 128
    rounded = -(-width // 32) * 32 if width <= 128 else -(-width // 64) * 64
    expanded = 2 * [batch * key.shape[2] * heads * width * key.element_size()] if key.shape[1] != heads else []
    use.take(4 * batch * heads * rows, 4 * batch * rows * heads * rounded, *expanded)


def _efficient_forward(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    """Values wider than the kernel's tile are accumulated in float32 beside the output."""
    query, value = args[0], args[2]
    if query.element_size() == 2 and value.shape[-1] > 128:
        use.take(4 * out[0].numel())


def _efficient_backward(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    grad, query, key = args[0], args[1], args[2]
    batch, heads, length, _ = query.shape
    use.copy(grad.transpose(1, 2))
    if key.shape[1] != heads:  # the gradients of what queries share, for each of them
        use.take(*(nbytes(each) * heads // key.shape[1] for each in args[2:4]))
    delta = 4 * batch * heads * length
    if query.element_size() == 4:
        product, first = use.take(4 * grad.numel()), use.take(delta)
        if heads > 1 and length > 1:
            use.take(delta)
            use.drop(first)
        use.drop(product)
    else:
        use.take(delta)
    use.take(4 * batch * heads * _gradient_tiles(gpu, query, key))


def _gradient_tiles(gpu: Gpu, query: Tensor, key: Tensor) -> int:
    """Elements for one head in which the query's gradient is summed, and those of key and value where they are wide."""
    batch, heads, length, width = query.shape
    half = query.element_size() == 2
    rows, columns = _tile(gpu, width, half=half)
    found = -(-length // rows) * -(-width // columns) * (rows * columns + 4)
    if half and width > 128:
        splits = max(1, min(-(-key.shape[2] // 64), 200 // (batch * heads)))
        found += 2 * splits * 64 * (-(-width // 128) * 128)
    return found


def _tile(gpu: Gpu, width: int, *, half: bool) -> tuple[int, int]:
    if width <= 64 or (not half and gpu.capability < (8, 0)):
        return 64, 64
    narrow = width > 128 or gpu.capability < (8, 0) or (gpu.capability in ((8, 6), (8, 9)) and width <= 96)
    return (128, 64) if narrow or not half else (128, 128)


def _cudnn_attention_backward(use: Scratch, gpu: Gpu, args: Sequence[Any], out: Any) -> None:
    """The workspace that cuDNN's front end states; its engine may want more."""
    grad, query, result = args[0], args[1], args[4]
    if grad.stride() != result.stride():
        use.take(nbytes(grad))
    use.take(4 * query.numel() + 4 * query.numel() // query.shape[-1])


KERNELS: dict[Any, Kernel] = {
    **ordering.KERNELS,
    aten.sum.dim_IntList: _reduction(_wide, 1, casts=True),
    aten.sum.default: _reduction(_wide, casts=True),
    aten.nansum.default: _reduction(_wide, 1, casts=True),
    aten.mean.default: _reduction(_wide, casts=True),
    aten.mean.dim: _reduction(_wide, 1, casts=True),
    aten.linalg_vector_norm.default: _reduction(_wide, 2, casts=True),
    aten.amax.default: _reduction(_narrow, 1),
    aten.amin.default: _reduction(_narrow, 1),
    aten.max.default: _reduction(_narrow),
    aten.min.default: _reduction(_narrow),
    aten.any.default: _flags,
    aten.any.dim: _flags,
    aten.any.dims: _flags,
    aten.all.default: _flags,
    aten.all.dim: _flags,
    aten.all.dims: _flags,
    aten._is_all_true.default: _flags,
    aten._is_any_true.default: _flags,
    aten.argmax.default: _reduction(_place, 1),
    aten.argmin.default: _reduction(_place, 1),
    aten.count_nonzero.default: _count,
    aten.count_nonzero.dim_IntList: _count,
    aten.logsumexp.default: _logsumexp,
    aten.binary_cross_entropy_with_logits.default: _logits_loss,
    aten.roll.default: _roll,
    aten.var.correction: _reduction(_welford, 1),
    aten.std.correction: _reduction(_welford, 1),
    aten.var_mean.correction: _reduction(_welford, 1),
    aten.mse_loss.default: _elementwise_loss,
    aten.smooth_l1_loss.default: _elementwise_loss,
    aten.huber_loss.default: _elementwise_loss,
    aten._softmax.default: _dense(0),
    aten._log_softmax.default: _dense(0),
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _dense(0, 1),
    aten._safe_softmax.default: _safe_softmax,
    aten.native_layer_norm.default: _dense(0),
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.max_pool2d_with_indices_backward.default: _dense(0),
    aten.upsample_bilinear2d_backward.default: _dense(0),
    aten.cudnn_batch_norm_backward.default: _dense(1),
    aten.convolution_backward.default: _convolution_backward,
    aten.mm.default: _product(0, 1),
    aten.bmm.default: _product(0, 1),
    aten.addmm.default: _product(1, 2),
    aten.baddbmm.default: _product(1, 2),
    aten._foreach_norm.Scalar: _norms,
    aten.embedding.default: _dense(1),
    aten._scaled_dot_product_flash_attention.default: _flash_forward,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_efficient_attention.default: _efficient_forward,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_attention_backward,
}
if hasattr(aten, "_fused_rms_norm_backward"):
    KERNELS[aten._fused_rms_norm.default] = _dense(0)
    KERNELS[aten._fused_rms_norm_backward.default] = _dense(0, 1)
