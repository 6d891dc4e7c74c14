"""What NVIDIA's cub takes for one sort, scan, selection or reduction: torch calls it for whatever has to be in order.

cub computes these sizes on the host, from counts and from tiles that it has tuned for each architecture. The tiles here
are those of CUDA 13.0's cub (cub/device/dispatch/tuning) as torch 2.13 uses it; the sizes agree to the byte with the
ones that torch's CUDA build asks its allocator for. All are in bytes.
"""

from __future__ import annotations

from memlab.as_cuda.gpu import Gpu

ALIGN = 256  # cub aligns each part of its storage, and the storage itself
DIGITS = 256  # of a radix sort: 8 bits in one pass
PADDING = 32  # tiles before the first one: TILE_STATUS_PADDING
ONE_TILE = {4: 4864, 8: 2304}  # keys that one block sorts without any storage, by the larger of key and value
REDUCED_BY_ONE_BLOCK = 4096  # elements
# Keys and values of a radix sort that one block takes, by their bytes; a value of 0 bytes is a sort of keys alone.
_HOPPER = {(1, 8): 3456, (2, 8): 5632, (4, 8): 5376, (8, 8): 4608, (4, 0): 6912, (8, 0): 5760}
_HOPPER |= {(4, 4): 6528, (8, 4): 5760, (4, 2): 6528, (8, 2): 5760}
_AMPERE = {(4, 8): 3072, (8, 8): 3840, (4, 0): 8064, (8, 0): 3840}
_AMPERE |= {(4, 4): 6528, (8, 4): 3840, (4, 2): 6528, (8, 2): 3840}
_TURING = {(4, 8): 2816, (8, 8): 2816, (4, 0): 5888, (8, 0): 2816}
_TURING |= {(4, 4): 11776, (8, 4): 2816, (4, 2): 5888, (8, 2): 2816}
_SELECTED = (((10, 0), 3520), ((9, 0), 4224), ((8, 6), 640), ((8, 0), 2304), ((0, 0), 640))  # from this capability on
_UNIQUE = {
    4: (((10, 0), 5760), ((9, 0), 6528), ((8, 6), 1280), ((8, 0), 4608), ((0, 0), 1280)),
    8: (((9, 0), 4224), ((8, 6), 640), ((8, 0), 1920), ((0, 0), 640)),
}
_BLOCKS_PER_SM = {1: 20, 2: 40}  # of the older sort, at most: four or eight at a time, in five waves
_SPINE_TILE = 512 * 22


def storage(*parts: int) -> int:
    """Return the bytes of one storage that holds these parts."""
    return sum(-(-part // ALIGN) * ALIGN for part in parts) + ALIGN - 1


def radix_sort(count: int, key: int, value: int, gpu: Gpu, bits: int = 0) -> int:
    """Return what sorting ``count`` keys takes.

    Args:
        count: of keys.
        key: bytes of one.
        value: bytes of what moves along with each key; 0 for nothing.
        gpu: the device.
        bits: of the key that are looked at; 0 means all.
    """
    if count <= ONE_TILE[8 if max(key, value) == 8 else 4]:
        return 1
    passes = -(-(bits or 8 * key) // 8)
    tile = _radix_tiles(gpu).get((key, value))
    if tile is None:  # short keys before Hopper
        spine = 4 * (gpu.sms * _BLOCKS_PER_SM[key] * DIGITS + _SPINE_TILE)
        return storage(spine, key * count, value * count)
    copies = (key * count, value * count) if passes > 1 else ()
    return storage(8 * passes * DIGITS, 4 * -(-count // tile) * DIGITS, *copies, 4 * passes)


def segmented_sort(count: int, key: int, value: int) -> int:
    """Return what sorting many segments of ``count`` keys in all takes."""
    return storage(key * count, value * count)


def scan(count: int, item: int) -> int:
    """Return what a running sum of ``count`` elements of ``item`` bytes takes."""
    if item == 2:
        tiles = -(-count // 3840) + PADDING
        return storage(4 * tiles, 2 * tiles, 2 * tiles, ALIGN)
    tile, more = (1920, ALIGN) if item == 4 else (448, 2 * ALIGN)
    return storage(8 * (-(-count // tile) + PADDING), more)


def select(count: int, gpu: Gpu) -> int:
    """Return what choosing some of ``count`` elements by their flags takes."""
    return storage(8 * (-(-count // _from(_SELECTED, gpu)) + PADDING), ALIGN)


def unique(count: int, item: int, gpu: Gpu) -> int:
    """Return what choosing the first of equal neighbours takes, ``item`` bytes each."""
    return storage(8 * (-(-count // _from(_UNIQUE[max(item, 4)], gpu)) + PADDING), ALIGN)


def reduction(count: int, gpu: Gpu) -> int:
    """Return what a sum of ``count`` elements in 4 bytes takes, at most: as many blocks as may reside on the device."""
    return 1 if count <= REDUCED_BY_ONE_BLOCK else storage(4 * gpu.sms * 8 * 5)


def _from(tiles: tuple[tuple[tuple[int, int], int], ...], gpu: Gpu) -> int:
    return next(tile for capability, tile in tiles if gpu.capability >= capability)


def _radix_tiles(gpu: Gpu) -> dict[tuple[int, int], int]:
    if gpu.capability >= (9, 0):
        return _HOPPER
    return _AMPERE if gpu.capability >= (8, 0) else _TURING
