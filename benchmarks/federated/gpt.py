"""A small GPT on bytes, and low-rank adapters for it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

RANK = 16
"""Rank of adapters (LoRA; Hu et al., arXiv:2106.09685)."""

ADAPTERS = "_lora"
"""Suffix of the name of a model that trains only adapters."""


class Size(NamedTuple):
    """Size of a GPT: width, layers, heads, and context length in bytes."""

    width: int
    layers: int
    heads: int
    context: int


SIZES = {
    "gpt": Size(320, 5, 5, 256),
    "gpt_small": Size(128, 4, 4, 128),
    "gpt_tiny": Size(32, 2, 2, 32),
}


class Gpt(nn.Module):
    """The decoder of GPT-2, pre-normalised; the output layer is tied to the embedding."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.token = nn.Embedding(256, size.width)
        self.place = nn.Embedding(size.context, size.width)
        self.blocks = nn.Sequential(*[_Block(size) for _ in range(size.layers)])
        self.norm = nn.LayerNorm(size.width)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                ends_branch = name.endswith(("out.weight", "down.weight"))
                std = 0.02 / (math.sqrt(2 * size.layers) if ends_branch else 1)
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, length, 256)`` of the bytes that follow ``tokens``, int64."""
        hidden = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        return functional.linear(self.norm(self.blocks(hidden)), self.token.weight)


class _Block(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm_attention = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.norm_mlp = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, 4 * size.width, bias=False)
        self.down = nn.Linear(4 * size.width, size.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        hidden: torch.Tensor = self.down(functional.gelu(self.up(self.norm_mlp(x))))
        return x + hidden


class _Adapted(nn.Module):
    """A frozen linear layer plus a low-rank product, which is 0 at first."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.empty(RANK, linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, RANK))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = functional.linear(functional.linear(x, self.a), self.b)
        output: torch.Tensor = self.linear(x) + low
        return output


def build_gpt(name: str, seed: int) -> Gpt:
    """A GPT of ``SIZES`` with weights drawn by ``seed``.

    Raises:
        ValueError: No GPT has that name.
    """
    if name not in SIZES:
        raise ValueError(f"model {name!r}: must be one of {', '.join(SIZES)}, or such with _lora")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Gpt(SIZES[name])


def add_adapters(model: Gpt, seed: int) -> None:
    """Add adapters to all linear layers of all blocks and freeze the other parameters."""
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks:
            for name, layer in list(block.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(block, name, _Adapted(layer))
