"""Lists of trainings that answer a question together, the most important first."""

from __future__ import annotations

from itertools import product

from benchmarks.federated.config import RunConfig

DIGITS = RunConfig(data="digits", model="tiny_cnn", rounds=30, lr=0.05, batch=32)
CIFAR_SUBSET = RunConfig(
    data="cifar10", model="groupnorm_cnn", rounds=50, images=5000, test_images=2000
)
PAPER = RunConfig(data="cifar10", model="resfed_cnn", rounds=200)

RULES = (
    "codec:sparsity={0}",
    "codec:sparsity={0},down_feedback=True",
    "codec:sparsity={0},up_feedback=True,down_feedback=True",
    "codec:sparsity={0},up=res0,down_feedback=True",
    "codec:sparsity={0},up=res1,down_feedback=True",
    "codec:sparsity={0},up=adaptive,down_feedback=True",
)


def rules(*sparsities: float) -> list[str]:
    return [rule.format(sparsity) for sparsity, rule in product(sparsities, RULES)]


SUITES: dict[str, tuple[RunConfig, list[str], list[int]]] = {
    "quick": (DIGITS, ["uncompressed", *rules(0.95)], [0, 1]),
    "cpu": (CIFAR_SUBSET, ["uncompressed", *rules(0.95, 0.99)], [0, 1, 2]),
}
"""By name: what all trainings share, the methods, the seeds. A seed goes through all methods before
the next one begins."""
