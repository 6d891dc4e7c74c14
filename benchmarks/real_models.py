"""Code that nobody here wrote: totals by line and module against the ledger, gradients against those without it.

    python benchmarks/real_models.py

Tiny random models of installed packages, made from config objects: nothing is downloaded. What is not installed is
named in the table. Each model runs forward and backward three times: bare, bare again (is it deterministic at all?),
and under a watch. All sums are compared to the byte, all gradients bit for bit. The graph's own bill, read from the
nodes without the ledger, is the independent witness of the ledger's total.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import memlab
from memlab.doctor import machine

Loss = Callable[[], Tensor]
Made = tuple[nn.Module, Loss]
WIDTH, WORDS, BATCH, LENGTH = 32, 64, 2, 12


@dataclass
class Row:
    """One model: what was saved after its forward, and by how much each sum differs from it."""

    name: str
    saved: int = 0
    lines: int = 0
    modules: int = 0
    named: int = 0
    differences: dict[str, int] = field(default_factory=dict)
    gradients: str = ""
    missing: str = ""


def words() -> Tensor:
    return torch.randint(1, WORDS, (BATCH, LENGTH))


def causal(name: str, **config: int) -> Made:
    import transformers

    configured = getattr(transformers, f"{name}Config")(**config)
    kind = {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM"}[name]
    model, ids = getattr(transformers, kind)(configured), words()
    return model, lambda: model(input_ids=ids, labels=ids).loss


def bert() -> Made:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model, ids = BertForMaskedLM(BertConfig(vocab_size=WORDS, **sizes)), words()
    return model, lambda: model(input_ids=ids, labels=ids).loss


def gpt2() -> Made:
    return causal("GPT2", vocab_size=WORDS, n_positions=LENGTH, n_embd=WIDTH, n_layer=2, n_head=2)


def llama() -> Made:
    return causal(
        "Llama",
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def vit() -> Made:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4
    )
    model, images = ViTForImageClassification(config), torch.randn(BATCH, 3, 16, 16)
    labels = torch.zeros(BATCH, dtype=torch.long)
    return model, lambda: model(pixel_values=images, labels=labels).loss


def t5() -> Made:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=WORDS, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model, ids = T5ForConditionalGeneration(config), words()
    return model, lambda: model(input_ids=ids, labels=ids).loss


def x_transformer() -> Made:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(dim=WIDTH, depth=2, heads=2, rotary_pos_emb=True, attn_dropout=0.1, ff_dropout=0.1)
    wrapped = TransformerWrapper(num_tokens=WORDS, max_seq_len=LENGTH, attn_layers=layers)
    model, ids = AutoregressiveWrapper(wrapped), words()
    return model, lambda: model(ids)


def x_encoder() -> Made:
    from x_transformers import Encoder, ViTransformerWrapper

    layers = Encoder(dim=WIDTH, depth=2, heads=2)
    model = ViTransformerWrapper(image_size=16, patch_size=4, num_classes=5, attn_layers=layers)
    images = torch.randn(BATCH, 3, 16, 16)
    return model, lambda: model(images).square().mean()


def recurrent(kind: str) -> Made:
    model, x = getattr(nn, kind)(WIDTH, WIDTH, num_layers=2, dropout=0.1), torch.randn(LENGTH, BATCH, WIDTH)
    return model, lambda: model(x)[0].square().mean()


def transformer() -> Made:
    model = nn.Transformer(WIDTH, nhead=2, num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=64)
    source, target = torch.randn(LENGTH, BATCH, WIDTH), torch.randn(LENGTH, BATCH, WIDTH)
    return model, lambda: model(source, target).square().mean()


def checkpointed(*, reentrant: bool) -> Made:
    layers = [nn.TransformerEncoderLayer(WIDTH, 2, 64, batch_first=True) for _ in range(3)]
    model, x = nn.ModuleList(layers), torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)

    def loss() -> Tensor:
        state = x * 1.0
        for layer in model:
            state = checkpoint(layer, state, use_reentrant=reentrant)
        return state.square().mean()

    return model, loss


MODELS: dict[str, Callable[[], Made]] = {
    "transformers BERT": bert,
    "transformers GPT-2": gpt2,
    "transformers Llama": llama,
    "transformers ViT": vit,
    "transformers T5": t5,
    "x-transformers decoder": x_transformer,
    "x-transformers ViT": x_encoder,
    "torch RNN": lambda: recurrent("RNN"),
    "torch GRU": lambda: recurrent("GRU"),
    "torch LSTM": lambda: recurrent("LSTM"),
    "torch Transformer": transformer,
    "torch checkpoint": lambda: checkpointed(reentrant=False),
    "torch checkpoint, reentrant": lambda: checkpointed(reentrant=True),
}


def gradients(model: nn.Module, loss: Loss) -> list[Tensor | None]:
    model.zero_grad()
    torch.manual_seed(1)
    loss().backward()
    return [None if each.grad is None else each.grad.clone() for each in model.parameters()]


def same(one: list[Tensor | None], other: list[Tensor | None]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all((a is None) == (b is None) and (a is None or b is None or torch.equal(a, b)) for a, b in pairs)


def measure(name: str, make: Callable[[], Made]) -> Row:
    torch.manual_seed(0)
    try:
        model, loss = make()
    except ImportError as error:
        return Row(name, missing=f"not installed: {error}")
    model.train()
    bare, again = gradients(model, loss), gradients(model, loss)
    model.zero_grad()
    torch.manual_seed(1)
    with memlab.watch() as seen:
        kept = loss()
        row = Row(name, seen.saved.bytes, len(seen.saved.lines))
        by_module = seen.saved.by("module")
        row.modules, row.named = len(by_module), sum(1 for each in by_module if each)
        row.differences = {
            "line": sum(seen.saved.by("line").values()) - row.saved,
            "module": sum(by_module.values()) - row.saved,
            "class": sum(seen.saved.by("kind").values()) - row.saved,
            "bill": memlab.bill(kept).bytes - row.saved,
        }
        kept.backward()
    watched = [None if each.grad is None else each.grad.clone() for each in model.parameters()]
    if not same(bare, again):
        row.gradients = "not deterministic without memlab"
    else:
        row.gradients = "equal" if same(bare, watched) else "DIFFERENT"
    return row


def table(rows: list[Row]) -> str:
    head = "| model | saved | storages | modules | by line | by module | by class | graph's bill | gradients |"
    lines = [head, "|---|---:|---:|---:|---:|---:|---:|---:|---|"]
    for row in rows:
        if row.missing:
            lines.append(f"| {row.name} | {row.missing} | | | | | | | |")
        else:
            cells = " | ".join(f"{row.differences[each]:+,} B" for each in ("line", "module", "class", "bill"))
            lines.append(f"| {row.name} | {row.saved:,} B | {row.lines} | {row.named} | {cells} | {row.gradients} |")
    return "\n".join(lines)


def versions() -> str:
    found = []
    for name in ("transformers", "x-transformers"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is not installed")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write the table to this file, too")
    given = parser.parse_args()
    rows = [measure(name, make) for name, make in MODELS.items()]
    facts = "".join(f"- {name}: {value}\n" for name, value in machine("cpu").items())
    text = (
        "# Code that nobody here wrote\n\n`python benchmarks/real_models.py`. Saved for backward after the forward, "
        "and by how much the sums of the\ngroups, and the bill read from the graph's nodes, differ from it; "
        "gradients bit for bit beside a run without memlab.\n\n"
        f"{facts}- {versions()}\n\n{table(rows)}\n"
    )
    print(text, end="")
    if given.out:
        Path(given.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
