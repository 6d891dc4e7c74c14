"""The settings of PYTORCH_CUDA_ALLOC_CONF, parsed as torch parses them, errors included.

Sources: c10/core/AllocatorConfig.h (the tokenizer), AllocatorConfig.cpp (settings of all devices) and
c10/cuda/CUDAAllocatorConfig.cpp (settings of CUDA alone). Every error is a ValueError with torch's text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

MIB, GIB = 1 << 20, 1 << 30
MIN_LARGE_ALLOC = 10 * MIB  # kMinLargeAlloc: smaller requests share a segment of large_segment_size
UNLIMITED = (1 << 64) - 1  # the largest size_t: how torch writes "no limit"
INTERVALS = 16  # kRoundUpPowerOfTwoIntervals: 1 MiB, 2 MiB, 4 MiB, ... 32 GiB, and everything from there


class Reserve(NamedTuple):
    """What one expandable segment is to reserve: so many GiB, or a share of the card (ExpandableSegmentReserveSpec)."""

    value: float
    in_gib: bool

    def bytes_of(self, total: int) -> int:
        return int(min(self.value * (GIB if self.in_gib else total), UNLIMITED))


@dataclass
class Settings:
    """The settings the allocator reads; sizes are in bytes."""

    large_segment_size: int = 20 * MIB
    max_split_size: int = UNLIMITED
    max_non_split_rounding: int = 20 * MIB
    garbage_collection_threshold: float = 0.0
    roundup_power2_divisions: list[int] = field(default_factory=lambda: [0] * INTERVALS)
    rounds_up: bool = False  # whether roundup_power2_divisions was given
    expandable_segments: bool = False
    per_process_memory_fraction: float = 1.0
    throw_on_cudamalloc_oom: bool = False
    sets_reserve: bool = False  # whether the two settings of what expandable segments reserve exist
    reserve: Reserve | None = None
    graph_capture_record_stream_reuse: bool = False  # from here on: read by nothing but allocator_settings()
    release_lock_on_cudamalloc: bool = False
    pinned_use_cuda_host_register: bool = False
    pinned_num_register_threads: int = 1
    pinned_max_round_threshold: int = UNLIMITED
    pinned_max_cached_size: int = UNLIMITED
    last: str = ""

    def divisions(self, nbytes: int) -> int:
        """Into how many steps a power of two is cut for a request of nbytes; 0 and 1: plain rounding."""
        interval = nbytes.bit_length() - 1 - 20
        return self.roundup_power2_divisions[min(max(interval, 0), INTERVALS - 1)]

    def reserve_of(self, total: int) -> int:
        """How many bytes of addresses an expandable segment reserves on a card of ``total`` bytes, up to a page.

        The default is more than there is memory, so that pages unmapped at the front can come back at the end.
        """
        most = total + total // 8
        return most if self.reserve is None else min(self.reserve.bytes_of(total), most)

    def update(self, conf: str) -> None:
        """Apply a settings string (setAllocatorSettings).

        Four settings start from their default each time, the others from the value they have. What stands before an
        error is applied, what stands behind it is not.
        """
        self.max_split_size = UNLIMITED
        self.roundup_power2_divisions = [0] * INTERVALS
        self.rounds_up = False
        self.garbage_collection_threshold = 0.0
        self.last = conf
        tokens = Tokens(conf)
        # The segment size first, wherever it stands: it is the default of one setting and the least value of two.
        for i in range(len(tokens)):
            if tokens[i] == "large_segment_size_mb":
                _large_segment_size(self, tokens, i)
        self.max_non_split_rounding = self.large_segment_size
        _parse(self, tokens, COMMON, "Accelerator")
        _parse(self, tokens, CUDA | RESERVES if self.sets_reserve else CUDA, "CUDA")


class Tokens:
    """A settings string cut at , : [ and ], without white space (ConfigTokenizer)."""

    def __init__(self, conf: str) -> None:
        self.tokens: list[str] = re.findall(r"[,:\[\]]|[^,:\[\]]+", re.sub(r"\s", "", conf, flags=re.ASCII))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> str:
        if i >= len(self.tokens):
            raise ValueError("Index out of bounds in ConfigTokenizer")
        return self.tokens[i]

    def value(self, key: int) -> int:
        """Where the value of the key at this index begins. torch wants a token between, but not a colon."""
        self[key + 1]
        self[key + 2]
        return key + 2

    def skip(self, key: int) -> int:
        """The last token of the key at this index (skipKey)."""
        i = self.value(key)
        if self[i] != "[":
            return i
        while i < len(self) and self[i] != "]":
            i += 1
        if i == len(self):
            raise ValueError("Expected closing bracket ']' in ConfigTokenizer but reached end of config")
        return i

    def integer(self, i: int) -> int:
        """std::stoull: the digits at the front; what follows them is ignored, and a minus wraps around."""
        match = re.match(r"[+-]?\d+", self[i], re.ASCII)
        if not match:
            raise ValueError("stoull") from ValueError(f"{self[i]!r} does not begin with a whole number")
        number = int(match[0])
        if abs(number) > UNLIMITED:
            raise ValueError("stoull") from ValueError(f"{self[i]!r} does not fit into 64 bits")
        return number % (UNLIMITED + 1)

    def real(self, i: int) -> float:
        """std::stod: the number at the front; what follows it is ignored."""
        match = re.match(r"[+-]?(inf|nan|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", self[i], re.ASCII | re.IGNORECASE)
        if not match:
            raise ValueError("stod") from ValueError(f"{self[i]!r} does not begin with a number")
        return float(match[0])

    def boolean(self, i: int) -> bool:
        if self[i] not in ("True", "False"):
            raise ValueError(f"Expected 'True' or 'False' at index {i} in ConfigTokenizer but got '{self[i]}'")
        return self[i] == "True"


Parser = Callable[[Settings, Tokens, int], int]  # (settings, tokens, index of the key) -> index of its last token


def _parse(settings: Settings, tokens: Tokens, parsers: dict[str, Parser], whose: str) -> None:
    i = 0
    while i < len(tokens):
        key = tokens[i]
        if key not in KEYS and not (settings.sets_reserve and key in RESERVES):
            raise ValueError(f"Unrecognized key '{key}' in {whose} allocator config.")
        i = parsers[key](settings, tokens, i) if key in parsers else tokens.skip(i)
        i += 2  # past the comma; torch takes any token for one


def _megabytes(tokens: Tokens, i: int) -> int:
    return min(tokens.integer(i), UNLIMITED // MIB)


def _large_segment_size(settings: Settings, tokens: Tokens, key: int) -> int:
    i = tokens.value(key)
    megabytes = _megabytes(tokens, i)
    if megabytes <= MIN_LARGE_ALLOC // MIB:
        raise ValueError("CachingAllocator option large_segment_size_mb must be > 10 MB")
    settings.large_segment_size = megabytes * MIB
    return i


def _at_least_a_segment(settings: Settings, tokens: Tokens, i: int, name: str) -> int:
    megabytes, least = _megabytes(tokens, i), settings.large_segment_size // MIB
    if megabytes < least:
        raise ValueError(f"CachingAllocator option {name} too small, must be >= {least}")
    return megabytes * MIB


def _max_split_size(settings: Settings, tokens: Tokens, key: int) -> int:
    i = tokens.value(key)
    settings.max_split_size = _at_least_a_segment(settings, tokens, i, "max_split_size_mb")
    return i


def _max_non_split_rounding(settings: Settings, tokens: Tokens, key: int) -> int:
    i = tokens.value(key)
    settings.max_non_split_rounding = _at_least_a_segment(settings, tokens, i, "max_non_split_rounding_mb")
    return i


def _garbage_collection_threshold(settings: Settings, tokens: Tokens, key: int) -> int:
    i = tokens.value(key)
    threshold = tokens.real(i)
    if not 0.0 < threshold < 1.0:
        raise ValueError("garbage_collect_threshold is invalid, set it in (0.0, 1.0)")
    settings.garbage_collection_threshold = threshold
    return i


def _roundup_power2_divisions(settings: Settings, tokens: Tokens, key: int) -> int:
    i = tokens.value(key)
    settings.rounds_up = True
    if tokens[i] == "[":
        return _roundup_list(settings.roundup_power2_divisions, tokens, i)
    divisions = tokens.integer(i)
    if not _is_power_of_two(divisions):
        raise ValueError("For roundups, the divisions has to be power of 2 ")
    settings.roundup_power2_divisions = [divisions] * INTERVALS
    return i


def _roundup_list(table: list[int], tokens: Tokens, bracket: int) -> int:
    """[64:8,256:4,>:2]: the first pair also fills all below it; > fills all above the last; gaps stay 0."""
    i, last, first = bracket + 1, 0, True
    while i < len(tokens) and tokens[i] != "]":
        divisions = tokens.integer(tokens.value(i))
        if divisions and not _is_power_of_two(divisions):
            raise ValueError("For roundups, the divisions has to be power of 2 or 0 to disable roundup ")
        if tokens[i] == ">":
            table[last + 1 :] = [divisions] * (INTERVALS - last - 1)
        else:
            megabytes = tokens.integer(i)
            if not _is_power_of_two(megabytes):
                raise ValueError("For roundups, the intervals have to be power of 2 ")
            last = min(megabytes.bit_length() - 1, INTERVALS - 1)
            table[0 if first else last : last + 1] = [divisions] * (last + 1 if first else 1)
            first = False
        i += 3 if tokens[i + 3] == "]" else 4
    if i >= len(tokens):
        raise ValueError("Expected closing bracket ']' in ConfigTokenizer but reached end of config")
    return i


def _is_power_of_two(number: int) -> bool:
    return number.bit_count() == 1


def _backend(settings: Settings, tokens: Tokens, key: int) -> int:
    i = tokens.value(key)
    if tokens[i] == "cudaMallocAsync":  # another allocator: no part of this model
        raise ValueError(
            "Allocator backend parsed at runtime != allocator backend parsed at load time, cudaMallocAsync != native"
        )
    if tokens[i] != "native":
        raise ValueError("Unknown allocator backend, options are native and cudaMallocAsync")
    return i


def _per_process_memory_fraction(settings: Settings, tokens: Tokens, key: int) -> int:
    i = tokens.value(key)
    fraction = tokens.real(i)
    if not 0.0 <= fraction <= 1.0:
        raise ValueError("per_process_memory_fraction is invalid, set it in [0.0, 1.0]")
    settings.per_process_memory_fraction = fraction
    return i


def _pinned_num_register_threads(settings: Settings, tokens: Tokens, key: int) -> int:
    i = tokens.value(key)
    threads = tokens.integer(i)
    if not _is_power_of_two(threads):
        raise ValueError(f"Number of register threads has to be power of 2, got {threads}")
    if threads > 128:
        raise ValueError(f"Number of register threads should be less than or equal to 128, got {threads}")
    settings.pinned_num_register_threads = threads
    return i


def _pinned_reserve_segment_size(settings: Settings, tokens: Tokens, key: int) -> int:
    i = tokens.value(key)
    if tokens.integer(i) == 0:
        raise ValueError("Pinned reserve segment size has to be greater than 0")
    return i


def _reserve(settings: Settings, tokens: Tokens, key: int) -> int:
    """0.5 is a share of the card, 40G are GiB; what is neither changes nothing, and torch warns of it."""
    i = tokens.value(key)
    match = re.fullmatch(r"\+?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?)(g?)", tokens[i], re.ASCII | re.IGNORECASE)
    if match and 0 < float(match[1]) < float("inf"):
        settings.reserve = Reserve(float(match[1]), bool(match[4]))
    return i


def _reserve_by_class(settings: Settings, tokens: Tokens, key: int) -> int:
    """[name:0.5,name:40G]: for streams that C++ code has given a class, which are not in the model."""
    i = tokens.value(key)
    while tokens[i + 1] != "]":
        i += 3
        tokens[i]
        i += tokens[i + 1] == ","
    return i + 1


def _flag(name: str | None) -> Parser:
    def parse(settings: Settings, tokens: Tokens, key: int) -> int:
        i = tokens.value(key)
        value = tokens.boolean(i)
        if name:
            setattr(settings, name, value)
        return i

    return parse


def _size(name: str) -> Parser:
    def parse(settings: Settings, tokens: Tokens, key: int) -> int:
        i = tokens.value(key)
        setattr(settings, name, _megabytes(tokens, i) * MIB)
        return i

    return parse


COMMON: dict[str, Parser] = {
    "max_split_size_mb": _max_split_size,
    "max_non_split_rounding_mb": _max_non_split_rounding,
    "garbage_collection_threshold": _garbage_collection_threshold,
    "roundup_power2_divisions": _roundup_power2_divisions,
    "expandable_segments": _flag("expandable_segments"),
    "pinned_use_background_threads": _flag(None),
    "pinned_max_round_threshold_mb": _size("pinned_max_round_threshold"),
    "pinned_max_cached_size_mb": _size("pinned_max_cached_size"),
}
CUDA: dict[str, Parser] = {
    "backend": _backend,
    "per_process_memory_fraction": _per_process_memory_fraction,
    "throw_on_cudamalloc_oom": _flag("throw_on_cudamalloc_oom"),
    "graph_capture_record_stream_reuse": _flag("graph_capture_record_stream_reuse"),
    "release_lock_on_cudamalloc": _flag("release_lock_on_cudamalloc"),
    "release_lock_on_hipmalloc": _flag("release_lock_on_cudamalloc"),
    "pinned_use_cuda_host_register": _flag("pinned_use_cuda_host_register"),
    "pinned_use_hip_host_register": _flag("pinned_use_cuda_host_register"),
    "pinned_num_register_threads": _pinned_num_register_threads,
    "pinned_reserve_segment_size_mb": _pinned_reserve_segment_size,
    "pinned_free_catch_all": _flag(None),
}
RESERVES: dict[str, Parser] = {
    "expandable_segments_reserve": _reserve,
    "expandable_segments_reserve_by_class": _reserve_by_class,
}
KEYS = {"large_segment_size_mb", *COMMON, *CUDA}
