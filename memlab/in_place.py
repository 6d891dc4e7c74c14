"""What torch says of a saved tensor that was changed in place, in the words of the torch that runs.

Saved-tensor hooks switch torch's own check off, so memlab makes it; the text must not differ. It names the node that
made the tensor. That name is looked for only when it is needed: see `memlab.ledger` on why nodes are left alone.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from memlab import hook_stack
from memlab.node_names import saved_fields

LEAF, VIEW = -1, -2  # a view whose base was changed is recomputed by autograd: torch calls it an output of AsStrided
# The saved fields of two-operand nodes that belong to the second operand; MulBackward0 saves self and other.
_SECOND = ("other", "mat2", "batch2", "tensor2", "weight", "exponent", "vec2")


def in_place_text(packed: Any) -> str:
    """Return the text of the RuntimeError that torch would raise for this packed tensor (`memlab.hooks.Packed`)."""
    template = _template()
    tensor = packed.value
    text = template.replace("[torch.FloatTensor [3]]", f"[{tensor.type()} {list(tensor.shape)}]")
    versions = f"is at version {tensor._version}; expected version {packed.version}"
    text = text.replace("is at version 1; expected version 0", versions)
    if packed.output == LEAF:
        return re.sub(r", which is output 0 of Exp(Backward0)?,", "", text)
    output, name = (0, "AsStridedBackward0") if packed.output == VIEW else _maker(packed)
    if "ExpBackward0" not in template:
        name = re.sub(r"Backward\d*$", "", name)
    return re.sub(r"output 0 of Exp(Backward0)?,", f"output {output} of {name},", text)


def _maker(packed: Any) -> tuple[int, str]:
    """Return output and name of the node that made the tensor.

    It is the node that runs now, if it saved its own output, or one that feeds it, of which torch always says output 0.
    """
    node = torch._C._current_autograd_node()
    field, index = _field_of(packed, node)
    if field.startswith("result"):
        return packed.output, str(node.name())
    makers = [maker for maker, output in node.next_functions if maker is not None and _fits(maker, output, packed)]
    if field in _SECOND and makers:
        return 0, str(makers[-1].name())
    if index < len(makers):
        return 0, str(makers[index].name())
    return packed.output, str(node.name())  # past the inputs of a custom Function: it saved its output


def _fits(maker: Any, output: int, packed: Any) -> bool:
    if output != packed.output or maker.name() == "torch::autograd::AccumulateGrad":
        return False
    metadata = maker._input_metadata
    return output >= len(metadata) or tuple(metadata[output].shape) == tuple(packed.value.shape)


def _field_of(packed: Any, node: Any) -> tuple[str, int]:
    """Return the field of ``node`` that holds ``packed``, and its place among several saved tensors."""
    for attribute, name in saved_fields(type(node)):
        raw = getattr(node, attribute)
        several = isinstance(raw, (tuple, list))
        for index, each in enumerate(raw if several else (raw,)):
            if each is not None and getattr(each, "data", None) is packed:
                return name, index if several else 0
    return "", 0


def _template() -> str:
    hidden = hook_stack.drop_all()
    try:
        with torch._C._DisableTorchDispatch(), torch.inference_mode(False), torch.enable_grad():
            changed = torch.ones(3, requires_grad=True, device="cpu").exp()
            with torch.no_grad():
                changed.add_(1)
            _ = changed.grad_fn._saved_result  # type: ignore[union-attr]
    except RuntimeError as error:
        return str(error)
    finally:
        hook_stack.put_back(hidden)
    raise AssertionError("torch no longer refuses a saved tensor that was changed in place")
