"""The networks that are trained to fit the trained tables."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from benchmarks.small_federation import Batches

SIDE = 16  # of an image
CONTEXT = 64  # of a language model, in bytes
HASHED = 16384  # rows of the table of n-grams

Norm = Callable[[int], nn.Module]


def eight_groups(n_channels: int) -> nn.Module:
    return nn.GroupNorm(8, n_channels)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(),
        nn.Linear(256, 10),
    )  # fmt: skip


def cnn(norm: Norm, widths: tuple[int, ...], kernel: int = 3, n_channels: int = 1) -> nn.Module:
    """Convolutions, with pooling after every second one, and an output layer."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip((n_channels, *widths), widths, strict=False)):
        layers += [
            nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=False),
            norm(n_out),
            nn.ReLU(),
        ]
        if i % 2:
            layers.append(nn.MaxPool2d(2))
    side = SIDE >> (len(widths) // 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side * side, 10, bias=False))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 24, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 400), nn.ReLU(), nn.Linear(400, 300),
        nn.ReLU(), nn.Linear(300, 10),
    )  # fmt: skip


class Residual(nn.Module):
    """Two convolutions 3 x 3 beside a convolution 1 x 1."""

    def __init__(self, norm: Norm, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1, self.norm2 = norm(n_out), norm(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(hidden + self.shortcut(x))


def resnet(norm: Norm) -> nn.Module:
    """A residual network for color images, 300k parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), norm(32), nn.ReLU(),
        Residual(norm, 32, 32, 1), Residual(norm, 32, 64, 2), Residual(norm, 64, 128, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


class Transformer(nn.Module):
    """A causal byte-level language model of two blocks, width 128."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(256, 128)
        self.place = nn.Embedding(CONTEXT, 128)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 512, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(128)
        self.head = nn.Linear(128, 256, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 256, length) for tokens (batch, length)."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.token(tokens) + self.place(torch.arange(length))
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        logits: torch.Tensor = self.head(self.norm(x)).transpose(1, 2)
        return logits


class Adapters(nn.Module):
    """Low-rank adapters (LoRA) of all matrices in the blocks of a Transformer, which is frozen.

    Only the adapters are in the state. The Transformer is trained first, on ``draw``'s ``client``.
    """

    def __init__(self, rank: int, draw: Batches, client: int, steps: int = 240) -> None:
        super().__init__()
        base = Transformer()
        optimizer = torch.optim.Adam(base.parameters(), 1e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            tokens, targets = draw(client, generator)
            loss = functional.cross_entropy(base(tokens), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self._base = (base.requires_grad_(False),)  # a tuple, so that it is no submodule
        self._factors = {}
        for name, weight in base.blocks.named_parameters():
            if weight.ndim == 2:
                a, b = f"{name}_a".replace(".", "_"), f"{name}_b".replace(".", "_")
                n_out, n_in = weight.shape
                self.register_parameter(a, nn.Parameter(torch.randn(rank, n_in) * n_in**-0.5))
                self.register_parameter(b, nn.Parameter(torch.zeros(n_out, rank)))
                self._factors[f"blocks.{name}"] = a, b

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        base = self._base[0]
        adapted = {
            name: base.get_parameter(name) + getattr(self, b) @ getattr(self, a)
            for name, (a, b) in self._factors.items()
        }
        logits: torch.Tensor = functional_call(base, adapted, (tokens,))
        return logits


class NGrams(nn.Module):
    """The next byte from a hashed table of the last one, two and three bytes: 94 % embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(HASHED, 32)
        self.hidden = nn.Linear(32, 96)
        self.out = nn.Linear(96, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 256, length) for tokens (batch, length)."""
        before = functional.pad(tokens, (2, 0))
        first, second = before[:, :-2], before[:, 1:-1]
        two = (second * 257 + tokens * 7919 + 256) % HASHED
        three = (first * 5003 + second * 1009 + tokens * 31 + 512) % HASHED
        x = self.table(tokens) + self.table(two) + self.table(three)
        logits: torch.Tensor = self.out(functional.relu(self.hidden(x))).transpose(1, 2)
        return logits


class Gru(nn.Module):
    """A recurrent byte-level language model."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(256, 64)
        self.recurrent = nn.GRU(64, 192, batch_first=True)
        self.out = nn.Linear(192, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 256, length) for tokens (batch, length)."""
        logits: torch.Tensor = self.out(self.recurrent(self.token(tokens))[0]).transpose(1, 2)
        return logits
