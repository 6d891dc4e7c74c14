"""Why a node keeps what it keeps: which gradient needs it. Plain data, from torch's derivatives.yaml.

Keyed by the node's name without its ending (``Addmm`` for ``AddmmBackward0``), then by the field that keeps the tensor;
the empty field says what holds for all of the node's saved tensors together, for when the field is not known.
"""

from __future__ import annotations

import re

_INPUT = "needed for the gradient of its input"
_RESULT = "its own result, from which the gradient of its input is computed"
_FACTOR = "each factor is needed for the gradient of the other"
_WHERE_TO = "tells which elements the gradient goes to"
_SIDES = "tells where the gradient goes to which side"
_STATISTIC = "a statistic of the forward, needed for the gradient of its input"
_WEIGHTED = "needed for the gradient of the weight"
_WEIGHT = "the weight, needed for the gradient of the input"
_RANDOM = "the state of the random numbers, to drop the same elements again"

# The derivative is a function of the input.
_OF_INPUT = """Abs Acos Acosh Angle Asin Asinh Atan Atanh Celu Clamp ClampMax ClampMin Cos Cosh Digamma Elu Erf Erfc
Gelu Glu Hardshrink Hardsigmoid Hardswish Hardtanh LeakyRelu Lgamma Log Log10 Log1P Log2 Logit Mish NanToNum Nansum Silu
Sin Sinc Sinh Softplus
Softshrink Threshold Var VarMean LogSigmoid"""
# The derivative is a function of the result.
_OF_RESULT = """Exp Exp2 Expm1 LogSoftmax Reciprocal Relu Rsqrt SafeSoftmax Sigmoid Softmax Sqrt Tan Tanh"""
# Saves input and result.
_OF_BOTH = """Amax Amin Cumprod LinalgVectorNorm Logcumsumexp Logsumexp Norm Prod Std"""
# Saves what was picked, and where it came from.
_PICKS = """Embedding Gather Index IndexAdd IndexCopy IndexFill IndexPut IndexSelect Kthvalue Max Median Min Mode
Scatter ScatterAdd Sort Take Topk MaskedFill MaskedScatter MaskedSelect Cummax Cummin UnsafeIndex"""
_POOLS = """AdaptiveMaxPool2D AdaptiveMaxPool3D MaxPool2DWithIndices MaxPool3DWithIndices"""
_ATTENTIONS = """CudnnAttention EfficientAttention FlashAttention FlashAttentionForCpu FusedAttentionOverrideable"""

_BATCH_NORM = {
    "": "the input and its statistics are needed for the gradients of the input and of the weight",
    "input": "needed for the gradients of the input and of the weight",
    "weight": _WEIGHT,
    "running_mean": "the mean that eval() normalises by, needed for the gradient of the weight",
    "running_var": "the variance that eval() normalises by, needed for the gradient of the input",
    "result1": "the mean of each channel, needed for the gradient of its input",
    "result2": "1/standard deviation of each channel, needed for the gradient of its input",
    "result3": _STATISTIC,
}
_CONVOLUTION = {
    "": "the input is needed for the gradient of the weight, the weight for that of the input",
    "input": _WEIGHTED,
    "self": _WEIGHTED,
    "weight": _WEIGHT,
}
_LOSS = {
    "": "prediction and target are needed for the gradient of the prediction",
    "self": "the prediction, needed for its gradient",
    "target": "the target, needed for the gradient of the prediction",
    "weight": "the weights of the classes or elements, needed for the gradient of the prediction",
    "pos_weight": "the weight of the positive class, needed for the gradient of the prediction",
    "total_weight": "the sum of the weights, by which a mean is divided",
}
_NORM = {
    "": "the input and its statistics are needed for the gradients of the input and of the weight",
    "input": "needed for the gradients of the input and of the weight",
    "weight": _WEIGHT,
    "bias": "the bias, which the backward of this node takes",
    "result1": "the mean of each row or group, needed for the gradient of its input",
    "result2": "1/standard deviation of each row or group, needed for the gradient of its input",
}
_ATTENTION = {
    "": "query, key, value and output are needed for the gradients of query, key and value",
    "query": "needed for the gradient of the key",
    "key": "needed for the gradient of the query",
    "value": "needed for the gradients of the query and the key",
    "output": "its own result, needed for the gradients of the query and the key",
    "logsumexp": "from it the softmax is computed again, instead of being kept",
    "log_sumexp": "from it the softmax is computed again, instead of being kept",
    "attn_mask": "the mask, needed to compute the softmax again",
    "attn_bias": "the bias or mask, needed to compute the softmax again",
    "philox_seed": _RANDOM,
    "philox_offset": _RANDOM,
    "rng_state": _RANDOM,
}
_RNN = {"": "gates, states and weights are needed for the gradients of the inputs, states and weights"}

REASONS: dict[str, dict[str, str]] = {
    **{name: {"": _INPUT, "self": _INPUT} for name in _OF_INPUT.split()},
    **{name: {"": _RESULT, "result": _RESULT} for name in _OF_RESULT.split()},
    **{
        name: {"": "input and result are needed for the gradient of its input", "self": _INPUT, "result": _RESULT}
        for name in _OF_BOTH.split()
    },
    **{
        name: dict.fromkeys(("", "indices", "index", "mask"), _WHERE_TO)
        | {"self": "its sizes or values are needed for the gradient", "result": _RESULT}
        for name in _PICKS.split()
    },
    **{
        name: {
            "": "input and positions of the maxima are needed for the gradient of its input",
            "self": "its sizes are needed for the gradient of its input",
            "result1": _WHERE_TO,
        }
        for name in _POOLS.split()
    },
    **{f"ScaledDotProduct{name}": _ATTENTION for name in _ATTENTIONS.split()},
    "Addmm": {
        "": _FACTOR,
        "mat1": "needed for the gradient of mat2 (the weight)",
        "mat2": "needed for the gradient of mat1 (the input)",
    },
    "Mm": {"": _FACTOR, "self": "needed for the gradient of mat2", "mat2": "needed for the gradient of self"},
    "Bmm": {"": _FACTOR, "self": "needed for the gradient of mat2", "mat2": "needed for the gradient of self"},
    "Baddbmm": {
        "": _FACTOR,
        "batch1": "needed for the gradient of batch2",
        "batch2": "needed for the gradient of batch1",
    },
    "Addmv": {"": _FACTOR, "mat": "needed for the gradient of vec", "vec": "needed for the gradient of mat"},
    "Mv": {"": _FACTOR, "self": "needed for the gradient of vec", "vec": "needed for the gradient of self"},
    "Dot": {"": _FACTOR, "self": "needed for the gradient of tensor", "tensor": "needed for the gradient of self"},
    "Mul": {"": _FACTOR, "self": "needed for the gradient of other", "other": "needed for the gradient of self"},
    "Linear": _CONVOLUTION,
    "Div": {
        "": "the divisor is needed for both gradients, what is divided for that of the divisor",
        "self": "needed for the gradient of the divisor",
        "other": "the divisor, needed for the gradient of what is divided",
    },
    "Addcmul": {
        "": _FACTOR,
        "tensor1": "needed for the gradient of tensor2",
        "tensor2": "needed for the gradient of tensor1",
    },
    "Addcdiv": {
        "": "the divisor is needed for both gradients, what is divided for that of the divisor",
        "tensor1": "needed for the gradient of the divisor",
        "tensor2": "the divisor, needed for the gradient of what is divided",
    },
    "Pow": {
        "": "base, exponent and result are needed for the gradients of base and exponent",
        "self": "the base, needed for its gradient",
        "exponent": "the exponent, needed for the gradient of the base",
        "result": "its own result, needed for the gradient of the exponent",
    },
    "Lerp": {"": "ends and weight are needed for each other's gradients"},
    "Atan2": {"": "both inputs are needed for both gradients"},
    "Maximum": dict.fromkeys(("", "self", "other"), _SIDES),
    "Minimum": dict.fromkeys(("", "self", "other"), _SIDES),
    "Where": {"": _SIDES, "condition": _SIDES},
    "Aminmax": {"": "input and results are compared, to tell which elements the gradient goes to"},
    "Convolution": _CONVOLUTION,
    "CudnnConvolution": _CONVOLUTION,
    "MkldnnConvolution": _CONVOLUTION,
    "MiopenConvolution": _CONVOLUTION,
    "NativeBatchNorm": _BATCH_NORM,
    "CudnnBatchNorm": _BATCH_NORM,
    "MiopenBatchNorm": _BATCH_NORM,
    "BatchNormWithUpdate": _BATCH_NORM,
    "NativeLayerNorm": _NORM,
    "NativeGroupNorm": _NORM,
    "FusedRmsNorm": _NORM | {"result1": "1/root mean square of each row, needed for the gradient of its input"},
    "NativeDropout": dict.fromkeys(("", "result1"), "the mask: " + _WHERE_TO),
    "FusedDropout": dict.fromkeys(("", "result1"), "the mask: " + _WHERE_TO),
    "AvgPool2D": {"": "its sizes are needed for the gradient of its input"},
    "AdaptiveAvgPool2D": {"": "its sizes are needed for the gradient of its input"},
    "NllLoss": _LOSS | {"self": "the log-probabilities, whose sizes their gradient needs"},
    "NllLoss2D": _LOSS | {"self": "the log-probabilities, whose sizes their gradient needs"},
    "MseLoss": _LOSS,
    "SmoothL1Loss": _LOSS,
    "HuberLoss": _LOSS,
    "SoftMarginLoss": _LOSS,
    "BinaryCrossEntropy": _LOSS,
    "BinaryCrossEntropyWithLogits": _LOSS,
    "CudnnRnn": _RNN,
    "MkldnnRnnLayer": _RNN,
    "ThnnFusedLstmCell": _RNN,
    "ThnnFusedGruCell": _RNN,
    "PreluKernel": {
        "": "the input is needed for both gradients, the weight for that of the input",
        "self": "needed for the gradients of the input and of the weight",
        "weight": _WEIGHT,
    },
}

_CUSTOM = "its forward gave it to ctx.save_for_backward"
_CHECKPOINT = "an input of the checkpointed region, which backward computes again from it"
_CUSTOMS = {
    "checkpoint": _CHECKPOINT,
    "_NoopSaveInputsBackward": _CHECKPOINT,  # of torch 2.6
    "CheckpointFunctionBackward": _CHECKPOINT,
    "CompiledFunctionBackward": "the backward that the compiler made needs it",
}
_ENDING = re.compile(r"Backward\d+$")


def why(node: str, field: str) -> str:
    """Return why ``node`` keeps its ``field``, or in general if that is empty; empty text where it is not known."""
    if node.endswith("Backward") or node in _CUSTOMS:
        return _CUSTOMS.get(node, _CUSTOM)
    base = _ENDING.sub("", node)
    reasons = REASONS.get(base) if base != node else None
    return "" if reasons is None else reasons.get(field) or reasons[""]
