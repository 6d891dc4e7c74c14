"""A CPU run that saves and allocates what CUDA would.

with CudaStorages(card.allocator(), gpu_of(card)) as storages:
    step()
storages.ledger.card.memory_stats()

composites.py    operators that torch takes apart differently on CUDA (dropout, attention, norms, LSTM cells)
choice.py        which attention kernel CUDA takes
attention.py, norms.py, cells.py   their stand-ins: CUDA's outputs and saved tensors, computed on the CPU
autocast.py      autocast("cuda") and its list of operators in float32
optimizers.py    foreach by default, scalars on the host
workspaces.py    cuBLAS's, of each thread or each product
temporaries.py, reductions.py, ordering.py, cub.py   what kernels allocate inside
bars.py, checked.py   how far off that may be, by operator
mode.py          the dispatch mode that puts all this into a simulated card
devices.py       code that names a CUDA device
fakes.py, loading.py, values.py   fake tensors, DataLoaders of them, and what is read of them
account.py       what of it is exact, modelled and missing
"""

from memlab.as_cuda.gpu import Gpu, gpu_of
from memlab.as_cuda.storages import CudaStorages

__all__ = ["CudaStorages", "Gpu", "gpu_of"]
