"""What the operating system sees of this process's memory."""

from __future__ import annotations

import psutil


class Host:
    """Resident and unique set size of this process, in bytes since the probe was opened; may be negative.

    A witness, not a measure: it moves in pages, the C allocator keeps freed memory and fragments it, and first calls
    load code. It cannot tell tensors from anything else.
    """

    name = "host"

    def __enter__(self) -> Host:
        self._process = psutil.Process()
        self._start = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self) -> dict[str, int]:
        now = self._now()
        return {key: now[key] - self._start[key] for key in now}

    def _now(self) -> dict[str, int]:
        info = self._process.memory_full_info()
        return {"host_rss": info.rss, "host_uss": info.uss}
