"""The buffer with which blocks of one reduction exchange partial results: setReduceConfig in native/cuda/Reduce.cuh.

It depends on the number of multiprocessors and their threads, and can be larger than the input: a bias gradient of
shape (2048, 1024) -> (1024) takes 16 MiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from memlab.as_cuda.gpu import WARP, Gpu

MAX_THREADS = 512
MIN_VALUES, MAX_VALUES = 16, 256
LARGEST_INDEX = (1 << 31) - 1
Dim = tuple[int, int, int]  # size, stride of the input, stride of the output (0 where it is reduced); in elements


def buffers(
    shape: Sequence[int], strides: Sequence[int], dims: Sequence[int], *, item: int, accumulator: int, gpu: Gpu
) -> tuple[int, ...]:
    """Return the bytes of partial results and of semaphores that a reduction over ``dims`` allocates, if it does.

    Args:
        shape: of the input.
        strides: of the input, in elements.
        dims: those that are reduced; none means all.
        item: bytes of one input element.
        accumulator: bytes of one partial result.
        gpu: the device.
    """
    if prod(shape) == 0:
        return ()
    reduced = {dim % len(shape) for dim in dims} if dims and shape else set(range(len(shape)))
    return _largest(_iterator(shape, strides, reduced), item, accumulator, gpu)


def _iterator(shape: Sequence[int], strides: Sequence[int], reduced: set[int]) -> list[Dim]:
    """TensorIterator's dimensions: reduced ones first, fastest first, neighbours merged where all strides allow."""
    out, step = {}, 1
    for dim in reversed(range(len(shape))):
        out[dim] = 0 if dim in reduced else step
        step *= 1 if dim in reduced else shape[dim]
    found = [(shape[dim], strides[dim], out[dim]) for dim in range(len(shape)) if shape[dim] > 1]
    found.sort(key=lambda each: (each[2] != 0, each[2], each[1]))
    merged: list[Dim] = []
    for size, stride, to in found:
        if merged and merged[-1][0] * merged[-1][1] == stride and merged[-1][0] * merged[-1][2] == to:
            before = merged.pop()
            merged.append((before[0] * size, before[1], before[2]))
        else:
            merged.append((size, stride, to))
    return merged


def _largest(dims: list[Dim], item: int, accumulator: int, gpu: Gpu) -> tuple[int, ...]:
    """Split what 32 bits cannot index, as TensorIterator does, and return the largest part's buffers."""
    extent = sum((size - 1) * stride for size, stride, _ in dims) * item
    if extent + 1 <= LARGEST_INDEX and prod(size for size, _, _ in dims) <= LARGEST_INDEX:
        return _buffers(dims, item, accumulator, gpu)
    split = max(range(len(dims)), key=lambda each: (dims[each][0] - 1) * dims[each][1])
    size, stride, to = dims[split]
    halves = [[*dims[:split], (half, stride, to), *dims[split + 1 :]] for half in (size // 2, size - size // 2)]
    return max((_largest(half, item, accumulator, gpu) for half in halves), key=sum)


def _buffers(dims: list[Dim], item: int, accumulator: int, gpu: Gpu) -> tuple[int, ...]:
    inner = [each for each in dims if each[2] == 0]
    outer = [each for each in dims if each[2] != 0]
    outputs, inputs = prod(each[0] for each in outer), prod(each[0] for each in inner)
    along = not outer or not inner or inner[0][1] < outer[0][1]  # the fastest dimension is a reduced one
    if not inner:
        return ()
    width, height = (inputs, outputs) if along else (outputs, inputs)
    fastest, vector = (inner if along else outer)[0][1], 1
    if fastest == 1:
        if along and width >= 128 and len(inner) == 1:
            width //= 4
        elif not along:
            vector = _vector(dims, outer)
            width //= vector
    width, height = _block(width, height, MAX_THREADS // vector)
    step_input, step_output = (width, 1) if along else (1, width)
    across_warps = -(-inputs // step_input) >= min(height * 16, MAX_VALUES)
    if across_warps:
        step_input *= height
    else:
        step_output *= height
    target = gpu.sms * (gpu.threads_per_sm // (width * height))
    grid = -(-(outputs // vector) // step_output)
    values = -(-inputs // step_input)
    if not across_warps or values < MAX_VALUES or grid > target:
        return ()
    ctas = max(min(-(-target // grid), -(-values // MIN_VALUES)), -(-values // MAX_VALUES))
    if ctas <= 1:
        return ()
    return accumulator * outputs * ctas * (1 if along else width * vector), 4 * grid


def _vector(dims: list[Dim], outer: list[Dim]) -> int:
    vector = 4
    for number in (outer[0][0], *(stride for size, stride, to in dims if (size, stride, to) != outer[0])):
        while number % vector:
            vector //= 2
    return vector


def _block(width: int, height: int, most: int) -> tuple[int, int]:
    """ReduceConfig::set_block_dimension."""
    wide, high = (_last_power(size) if size < most else most for size in (width, height))
    height = min(high, most // min(wide, WARP))
    return min(wide, most // height), height


def _last_power(size: int) -> int:
    return 1 << max(size.bit_length() - 1, 0)
