"""Memory snapshots as torch.cuda.memory._dump_snapshot writes them: read safely, checked, laid out, replayed. No torch.

pickles.py    writing, and reading what a stranger wrote: plain data or a sentence, never code
page.py       what the parser of the memory_viz page accepts
content.py    segments, blocks and events of a file, whatever torch wrote it
layout.py     the blocks where a history says they were, forwards and backwards
replay.py     the same requests through the allocator's model, under other settings
summary.py    what a file says, in numbers and sentences
timeline.py   how full a device was, event by event, and by source line
merge.py      what memlab knows of allocations, added to torch's own snapshot
"""
