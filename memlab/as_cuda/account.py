"""What of a prediction is exact, what is modelled and what is missing, in sentences about the run that was made."""

from __future__ import annotations

import torch

from memlab.as_cuda.gpu import ASSUMED, ASSUMED_SMS
from memlab.as_cuda.mode import CudaMode
from memlab.cards import Card
from memlab.units import format_bytes

aten = torch.ops.aten
_CUDNN = {
    aten.convolution.default: "convolutions",
    aten.convolution_backward.default: "convolutions",
    aten.mkldnn_rnn_layer.default: "LSTM and GRU layers, and how it lays them out",
}


def exact() -> list[str]:
    return [
        "torch's caching allocator (2.13): rounding, blocks, segments, retries, its error",
        "what operators return and autograd saves, as CUDA's kernels would have it",
        "cuBLAS workspaces and what reductions, attention and matrix products take inside",
        "all this as checked on torch 2.13's CUDA build with an emulated device, not yet on a GPU",
    ]


def modelled(card: Card, mode: CudaMode) -> list[str]:
    found = ["all tensors that the code makes on the CPU count as on the card, but for an optimizer's own scalars"]
    if card.capability is None:
        capability = ".".join(map(str, ASSUMED))
        found.append(f"a size is no device: kernels are chosen for compute capability {capability}, {ASSUMED_SMS} SMs")
    elif not card.sms:
        found.append(f"the card does not say how many SMs it has: {ASSUMED_SMS} are assumed, reductions depend on it")
    if card.context:
        found.append(f"{format_bytes(card.context)} for the CUDA context is one figure for all cards")
    if aten.sort.default in mode.met or aten.index_put.default in mode.met or aten.embedding_dense_backward in mode.met:
        found.append("sorting and indexing take small buffers beside the ones counted")
    return found


def missing(mode: CudaMode) -> list[str]:
    found = []
    if cudnn := sorted({name for operator, name in _CUDNN.items() if operator in mode.ran}):
        found.append(f"what cuDNN takes for {' and for '.join(cudnn)}")
    found.append("streams, CUDA graphs, NCCL, torch.compile, and kernels that are not torch's own")
    return found
