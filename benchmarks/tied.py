"""What a tied weight costs: two names, one matrix, sent under both names or under one.

    python -m benchmarks.tied

Trains a small language model on the words of Python's standard library. Its output layer is tied to
its embedding, as most language models' are, so ``state_dict()`` has that matrix twice. The state
after some more steps is coded against the one before, with both names and with one.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import resfed_codec as rfc
from benchmarks.common import write_results
from benchmarks.federated.text import load_text

N_WORDS, WIDTH, CONTEXT, BATCH = 4096, 64, 4, 256
FIRST_STEPS, STEPS = 400, 40
WAYS: dict[str, dict[str, Any]] = {
    "sparsity 0.9": {"sparsity": 0.9},
    "sparsity 0.99": {"sparsity": 0.99},
    "error 0.5": {"sparsity": None, "max_error": 0.5},
    'exclude="*"': {"exclude": "*"},
}


class Words(nn.Module):
    """The next word from the last ones; 262,144 of 303,296 parameters are the tied matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_WORDS, WIDTH)
        self.hidden = nn.Linear(CONTEXT * WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, N_WORDS, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, words: Tensor) -> Tensor:
        x = torch.relu(self.hidden(self.embedding(words).flatten(1)))
        scores: Tensor = self.head(self.narrow(x))
        return scores


def load_words() -> Tensor:
    """The numbers of the text's words; 0 is any that is not among the most frequent."""
    text = load_text("python").train.tobytes()[:4_000_000].decode(errors="ignore")
    words = re.findall(r"\w+|[^\w\s]", text)
    numbers = {word: i for i, (word, _) in enumerate(Counter(words).most_common(N_WORDS - 1), 1)}
    return torch.tensor([numbers.get(word, 0) for word in words])


def train(model: nn.Module, words: Tensor, n_steps: int, generator: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(n_steps):
        starts = torch.randint(len(words) - CONTEXT, (BATCH, 1), generator=generator)
        batch = words[starts + torch.arange(CONTEXT + 1)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[:, :-1]), batch[:, -1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def main() -> None:
    torch.manual_seed(0)
    model, words, generator = Words(), load_words(), torch.Generator().manual_seed(0)
    train(model, words, FIRST_STEPS, generator)
    reference = copy_of(model)
    train(model, words, STEPS, generator)
    state = copy_of(model)
    whole = sum(t.nbytes for n, t in state.items() if n != "head.weight")

    rows = []
    for way, options in WAYS.items():
        twice = rfc.encode(state, reference, **options)
        old, new = without(reference, "head.weight"), without(state, "head.weight")
        once = rfc.encode(new, old, **options)
        decoded = rfc.decode(twice, reference)
        a, b = decoded["embedding.weight"], decoded["head.weight"]
        rows.append(
            {
                "payload": way,
                "under both names, bytes": len(twice),
                "under one, bytes": len(once),
                "ratio": len(twice) / len(once),
                "elements in which the two differ after decoding": int((a != b).sum()),
            }
        )
    keyframes = [len(rfc.encode_keyframe(m)) for m in (state, without(state, "head.weight"))]
    rows.append(
        {
            "payload": "keyframe",
            "under both names, bytes": keyframes[0],
            "under one, bytes": keyframes[1],
            "ratio": keyframes[0] / keyframes[1],
            "elements in which the two differ after decoding": 0,
        }
    )
    share = np.prod(state["head.weight"].shape) * 4 / whole
    note = (
        f"The tied matrix is {share:.1%} of the model, which has {whole:,} bytes with one of both."
    )
    print(write_results("tied", "What a tied weight costs", rows, note))


def without(model: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: tensor for n, tensor in model.items() if n != name}


if __name__ == "__main__":
    main()
