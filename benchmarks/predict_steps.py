"""The training steps that are predicted on the CPU and measured on CUDA: `make(name, device)` returns a step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Step = Callable[[], None]
VOCABULARY, WIDTH, LENGTH = 2048, 256, 256
APART = ("conv", "conv_bf16", "lstm")  # cuDNN's workspaces decide; reported apart


class Block(nn.Module):
    def __init__(self, dropout: float, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = norm(WIDTH), norm(WIDTH)
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down, self.dropout = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        query, key, value = self.attend(self.first(x)).view(batch, length, 3, 4, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + F.dropout(self.project(seen.transpose(1, 2).reshape(batch, length, width)), self.dropout)
        return x + F.dropout(self.down(F.gelu(self.up(self.second(x)))), self.dropout)


class Gpt(nn.Module):
    def __init__(self, layers: int = 3, dropout: float = 0.0, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(dropout, norm) for _ in range(layers))
        self.last, self.head = norm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.recompute = False

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.words(words) + self.places(torch.arange(words.shape[1], device=words.device))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return self.head(self.last(x))


def mlp(device: str, dtype: torch.dtype = torch.float32, optimizer: str = "SGD", **options: object) -> Step:
    with torch.device(device):
        layers = (
            nn.Linear(512, 2048),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(2048, 2048),
            nn.Tanh(),
            nn.Linear(2048, 10),
        )
        model, x, y = nn.Sequential(*layers).to(dtype), torch.randn(1024, 512, dtype=dtype), torch.zeros(1024).long()
    optimizer_ = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-3, **options)

    def step() -> None:
        F.cross_entropy(model(x).float(), y).backward()
        optimizer_.step()
        optimizer_.zero_grad()

    return step


def gpt(
    device: str,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    recompute: bool = False,
    accumulate: int = 1,
    dropout: float = 0.0,
    norm: type[nn.Module] = nn.LayerNorm,
    clip: bool = False,
    batch: int = 8,
) -> Step:
    with torch.device(device):
        model = Gpt(dropout=dropout, norm=norm).to(dtype)
        words = torch.zeros(batch, LENGTH, dtype=torch.long)
    model.recompute = recompute
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        for _ in range(accumulate):
            with torch.autocast("cuda", torch.bfloat16) if autocast else nullcontext():
                scores = model(words)
                loss = F.cross_entropy(scores.view(-1, VOCABULARY).float(), words.view(-1))
            del scores
            (loss / accumulate).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def conv(device: str, dtype: torch.dtype = torch.float32) -> Step:
    with torch.device(device):
        layers: list[nn.Module] = []
        for given, made in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU(), nn.MaxPool2d(2)]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10)).to(dtype)
        x, y = torch.randn(32, 3, 32, 32, dtype=dtype), torch.zeros(32, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        F.cross_entropy(model(x).float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lstm(device: str) -> Step:
    with torch.device(device):
        model, head = nn.LSTM(128, 256, 2, batch_first=True), nn.Linear(256, 10)
        x, y = torch.randn(16, 64, 128), torch.zeros(16, dtype=torch.long)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-3)

    def step() -> None:
        F.cross_entropy(head(model(x)[0][:, -1]), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformer(device: str, kind: str, dtype: torch.dtype = torch.float32) -> Step:
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    with torch.device(device):
        if kind == "bert":
            model = BertForMaskedLM(BertConfig(num_attention_heads=4, **sizes))
        else:
            model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes))
        words = torch.ones(8, LENGTH, dtype=torch.long)
    model = model.to(dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        model(input_ids=words, labels=words).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


BF16 = torch.bfloat16
STEPS: dict[str, Callable[[str], Step]] = {
    "mlp_sgd": mlp,
    "mlp_sgd_momentum": lambda device: mlp(device, momentum=0.9),
    "mlp_adam": lambda device: mlp(device, optimizer="Adam"),
    "mlp_adam_single": lambda device: mlp(device, optimizer="Adam", foreach=False),
    "mlp_adamw_fused": lambda device: mlp(device, optimizer="AdamW", fused=True),
    "mlp_bf16": lambda device: mlp(device, BF16, optimizer="Adam"),
    "gpt_fp32": gpt,
    "gpt_fp32_dropout": lambda device: gpt(device, dropout=0.1),
    "gpt_fp32_clip": lambda device: gpt(device, clip=True),
    "gpt_checkpoint": lambda device: gpt(device, recompute=True),
    "gpt_accumulate": lambda device: gpt(device, accumulate=3),
    "gpt_bf16": lambda device: gpt(device, BF16),
    "gpt_bf16_dropout": lambda device: gpt(device, BF16, dropout=0.1),
    "gpt_bf16_rms": lambda device: gpt(device, BF16, norm=nn.RMSNorm),
    "gpt_bf16_checkpoint": lambda device: gpt(device, BF16, recompute=True),
    "gpt_autocast": lambda device: gpt(device, autocast=True),
    "gpt_autocast_dropout": lambda device: gpt(device, autocast=True, dropout=0.1, clip=True),
    "bert_fp32": lambda device: transformer(device, "bert"),
    "bert_bf16": lambda device: transformer(device, "bert", BF16),
    "llama_fp32": lambda device: transformer(device, "llama"),
    "llama_bf16": lambda device: transformer(device, "llama", BF16),
    "conv": conv,
    "conv_bf16": lambda device: conv(device, BF16),
    "lstm": lstm,
}
