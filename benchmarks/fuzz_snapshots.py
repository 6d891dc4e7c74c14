"""Damaged and made-up snapshots: each is read or refused with a sentence, in bounded time, and nothing is executed.

    python benchmarks/fuzz_snapshots.py [--files 100000] [--seed 0] [--seconds 600]

Two kinds: the bytes of a valid pickle with a few changes, opcodes of code among them; and valid pickles whose content
is wrong somewhere. What is read is also summarised and replayed. Needs no torch.
"""

from __future__ import annotations

import argparse
import io
import pickle
import platform
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from memlab.allocator import Allocator
from memlab.snapshots import content, pickles, summary

RUN = b"c\x81\x85R\x93b(oiQP\x82\x83\x84\x8b\x8d\x8e\x92\x96\x97r"  # opcodes that call, import, or name large sizes
JUNK: tuple[Any, ...] = (None, -1, 0, 1 << 61, 1 << 64, 0.5, "x", "", [], {}, [[]], (1,), True)


def valid(random_: random.Random) -> dict[str, Any]:
    """Return a small snapshot with frames, of a random history."""
    conf = random_.choice(["", "expandable_segments:True", "max_split_size_mb:20"])
    card = Allocator(total=1 << 28, conf=conf)
    card.record_history(30)
    live: list[int] = []
    for _ in range(random_.randrange(1, 40)):
        if random_.random() < 0.6 or not live:
            live.append(card.malloc(1 << random_.randrange(5, 23), random_.choice([0, 0, 1])))
        else:
            card.free(live.pop(random_.randrange(len(live))))
    found = card.snapshot()
    for event in found["device_traces"][0]:
        event["frames"] = [{"filename": "train.py", "line": random_.randrange(50), "name": "step"}]
    return found


def changed_bytes(random_: random.Random) -> bytes:
    data = bytearray(pickle.dumps(valid(random_), random_.choice([2, 3, 4, 5])))
    for _ in range(random_.randrange(1, 6)):
        at = random_.randrange(2, len(data) + 1)
        match random_.randrange(5):
            case 0:
                data[at : at + 1] = bytes([random_.randrange(256)])
            case 1:
                data[at:at] = bytes([random_.choice(RUN)]) + random_.randbytes(random_.randrange(9))
            case 2:
                del data[at : at + random_.randrange(1, 9)]
            case 3:
                other = random_.randrange(len(data))
                data[at:at] = data[other : other + random_.randrange(64)]
            case 4:
                data[at : at + 4] = b"\xff" * 4
    return bytes(data)


def changed_content(random_: random.Random) -> bytes:
    found = valid(random_)
    for _ in range(random_.randrange(1, 4)):
        place: Any = found
        while isinstance(place, (dict, list)) and place:
            key = random_.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], (dict, list)) or not place[key] or random_.random() < 0.15:
                mutate(place, key, random_)
                break
            place = place[key]
    return pickle.dumps(found, 4)


def mutate(place: Any, key: Any, random_: random.Random) -> None:
    match random_.randrange(4):
        case 0:
            del place[key]
        case 1 if isinstance(place, list):
            place.insert(random_.randrange(len(place)), place[key])
        case 2 if isinstance(place[key], int):
            place[key] += random_.choice([-512, 512, 1, -(1 << 21), 1 << 21])
        case _:
            place[key] = random_.choice(JUNK)


def try_one(data: bytes) -> str:
    """Return what became of a file: "refused", "read", or "read, history not followed"."""
    try:
        found = content.load(io.BytesIO(data))
    except pickles.NotASnapshot:
        return "refused"
    told = summary.summarise(found, ["expandable_segments:True"], capacity=1 << 28)
    return "read, history not followed" if any(each.problem for each in told.devices) else "read"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    random_ = random.Random(options.seed)
    for _ in range(100):  # what Python itself loads late is loaded now
        try_one(pickle.dumps(valid(random_), 4))
        try_one(changed_bytes(random_))
    executed: list[str] = []
    sys.addaudithook(lambda name, arguments: executed.append(name) if name in WATCHED else None)
    makers: dict[str, Callable[[random.Random], bytes]] = {"bytes": changed_bytes, "content": changed_content}
    outcomes: Counter[tuple[str, str]] = Counter()
    slowest, began = 0.0, time.monotonic()
    for number in range(options.files):
        kind = "bytes" if number % 2 else "content"
        data = makers[kind](random_)
        start = time.monotonic()
        del executed[:]
        outcomes[kind, try_one(data)] += 1
        if executed:
            print(f"file {number} made the reader do this: {', '.join(executed)}")
            return 1
        slowest = max(slowest, time.monotonic() - start)
        if time.monotonic() - began > options.seconds:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{sum(outcomes.values()):,} files, seed {options.seed}, Python {platform.python_version()}; no traceback,")
    print(f"nothing imported, opened or executed; slowest {1000 * slowest:.0f} ms; peak resident set {peak} MiB\n")
    print("| changed | outcome | files |\n|---|---|---:|")
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"| {kind} | {outcome} | {count:,} |")
    return 0


WATCHED = frozenset({"import", "exec", "open", "os.system", "os.mkdir", "subprocess.Popen", "pickle.find_class"})

if __name__ == "__main__":
    sys.exit(main())
