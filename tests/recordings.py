"""Snapshots to test with: of a training under a watch, of a card in pieces; and how tests look into them."""

import io
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

import memlab
from memlab.allocator import Allocator, OutOfMemory
from memlab.snapshots import content, pickles

CONFS = ["", "expandable_segments:True", "max_split_size_mb:64", "roundup_power2_divisions:4"]
MIB = 1 << 20


def train(model, optimizer, x):
    hidden = model(x)
    part = hidden[:, :3]
    loss = part.square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def record():
    """Take two training steps under a watch with a history; return the snapshot at its end, and what was trained."""
    torch.manual_seed(0)
    with memlab.watch(card="64 MiB", history=True) as seen:
        model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 300))
        optimizer = torch.optim.Adam(model.parameters())
        x = torch.randn(64, 100)
        for _ in range(2):
            train(model, optimizer, x)
        taken = memlab.snapshot(seen)
    return taken, (model, optimizer, x)


def fragmented(conf):
    """Two blocks in each segment of 20 MiB, some free, none whole: 36 MiB are free, and 18 MiB are not to be had."""
    card = Allocator(total=84 * MIB, conf=conf)
    card.record_history(1000)
    held = [card.malloc(9 * MIB) for _ in range(8)]
    for index in (1, 2, 5, 6):
        card.free(held[index])
    with suppress(OutOfMemory):
        card.malloc(18 * MIB)
    return card


def events_of(snapshot, action="alloc"):
    return [event for event in snapshot["device_traces"][0] if event["action"] == action]


def parsed(snapshot):
    return content.load(io.BytesIO(pickles.dumps(snapshot)))


def shape(segments):
    """Everything of segments but frames, and the sizes that free blocks remember."""
    return [
        (*each[1:6], [(b.address, b.size, b.state, b.requested if b.active else 0) for b in each.blocks])
        for each in segments
    ]


def line_of(text, file=__file__):
    """Return the number of the first line that begins with this text."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))
