"""Suites: lists of trainings for one comparison, the most important first."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from benchmarks.federated.config import RunConfig
from benchmarks.servers import RULES as RULES_OF_SERVERS

DIGITS = RunConfig(data="digits", model="tiny_cnn", rounds=30, lr=0.05, batch=32)
CIFAR_SUBSET = RunConfig(
    data="cifar10", model="groupnorm_cnn", rounds=50, images=5000, test_images=2000
)
PAPER = RunConfig(data="cifar10", model="resfed_cnn", rounds=150)

BOTH = "codec:sparsity={0},up_feedback=True,down_feedback=True"

RULES = (
    "codec:sparsity={0}",
    "codec:sparsity={0},down_feedback=True",
    BOTH,
    "codec:sparsity={0},up=res0,down_feedback=True",
    "codec:sparsity={0},up=res1,down_feedback=True",
    "codec:sparsity={0},up=adaptive,down_feedback=True",
)


def rules(*sparsities: float) -> list[str]:
    """All of ``RULES`` at each sparsity."""
    return [rule.format(sparsity) for sparsity, rule in product(sparsities, RULES)]


SERVERS = [
    f"codec:sparsity=0.99,up_feedback=True,down_feedback={down},server={rule}"
    for rule, down in product(RULES_OF_SERVERS, (False, True, None))
]

SETTINGS = (
    BOTH.format(0.995),
    "codec:max_bytes=1600,up_feedback=True,down_feedback=True",
    BOTH.format(0.99) + ",up=adaptive",
    BOTH.format(0.99) + ",bits=1",
    BOTH.format(0.99) + ",keyframe=True",
)

SPLITS = (
    BOTH.format(0.99),
    "uncompressed",
    "stc:sparsity=0.99",
    "codec:sparsity=0.99",
)

PEERS = (
    "stc:sparsity=0.99",
    "topk:sparsity=0.99",
    "resfed:sparsity=0.99",
    "eden",
    "qsgd:bits=4",
    "signsgd",
    "float16",
    "qsgd:bits=8",
    "resfed:sparsity=0.95",
)

EXACT = ",exclude=*running*"

BATCHNORM = (
    "uncompressed",
    BOTH.format(0.99) + EXACT,
    BOTH.format(0.99),
    "codec:sparsity=0.99" + EXACT,
    BOTH.format(0.99) + ",statistics=budget",
    "codec:sparsity=0.99,statistics=budget",
    BOTH.format(0.99) + ",statistics=apart,statistics_bits=5",
    BOTH.format(0.99) + ",statistics=float16",
    BOTH.format(0.99) + ",statistics=kept",
    BOTH.format(0.99) + ",statistics=budget,vector_share=100",
    BOTH.format(0.99) + EXACT + ",statistics_every=5",
)

SELECTION = (
    "codec_select:sparsity=0.99,rule=magnitude,feedback=True",
    "codec_select:sparsity=0.99,rule=rate,feedback=True",
    "codec_select:sparsity=0.99,rule=rms,feedback=True",
    "codec_select:sparsity=0.99,rule=magnitude",
    "codec_select:sparsity=0.99,rule=rate",
    "codec_select:sparsity=0.99,rule=tensor,feedback=True",
    "codec_select:sparsity=0.99,rule=group,feedback=True",
)

PAPER_CPU = (
    BOTH.format(0.99),
    "uncompressed",
    "resfed:sparsity=0.99",
    "stc:sparsity=0.99",
)

DILOCO = RunConfig(
    data="python",
    model="gpt",
    split="parts",
    clients=8,
    rounds=40,
    steps=30,
    batch=4,
    lr=1e-3,
    optimizer="adamw_kept",
    precision="bf16",
)
LOCO = (
    "sparseloco",
    "codec_gathered",
    "diloco",
    f"codec_gathered:sparsity={1 - 32 / 4096}",
    "codec_diloco",
    "codec_gathered:decay=0.95",
)

LORA = replace(
    DILOCO, data="topics", model="gpt_lora", clients=10, rounds=20, steps=10, optimizer="adamw"
)
ADAPTERS = (
    "uncompressed",
    BOTH.format(0.99),
    "flasc",
    BOTH.format(0.95),
    "float16",
    "flasc:up_density=0.0625,down_density=0.0625",
)

PAPER_ROW = (
    BOTH.format(0.99),
    "uncompressed",
    "resfed:sparsity=0.99",
    "stc:sparsity=0.99",
    BOTH.format(0.995),
    BOTH.format(0.98),
)

SUITES: dict[str, tuple[RunConfig, list[str], list[int]]] = {
    "quick": (DIGITS, ["uncompressed", *rules(0.95)], [0, 1]),
    "servers": (DIGITS, SERVERS, [0, 1, 2]),
    "cpu": (
        CIFAR_SUBSET,
        ["uncompressed", *rules(0.95, 0.99), *SETTINGS, *PEERS],
        [0, 1, 2],
    ),
    "iid": (replace(CIFAR_SUBSET, split="iid", rounds=30), [*SPLITS], [0, 1, 2]),
    "dirichlet": (replace(CIFAR_SUBSET, split="dirichlet:0.3", rounds=30), [*SPLITS], [0, 1, 2]),
    "batchnorm": (
        replace(CIFAR_SUBSET, model="batchnorm_cnn", rounds=20),
        [*BATCHNORM],
        [0, 1, 2],
    ),
    "batchnorm-steps": (
        replace(
            PAPER,
            model="batchnorm_cnn",
            rounds=12,
            test_images=2000,
            precision="bf16",
            statistics="both",
        ),
        [BOTH.format(0.99)],
        [0, 1, 2],
    ),
    "selection": (CIFAR_SUBSET, [*SELECTION], [0, 1, 2]),
    "paper-cpu": (
        replace(PAPER, rounds=40, images=1000, test_images=1000, batch=20),
        [*PAPER_CPU],
        [0],
    ),
    "diloco": (DILOCO, [*LOCO], [0, 1, 2]),
    "lora": (LORA, [*ADAPTERS], [0, 1, 2]),
    "paper": (replace(PAPER, precision="bf16"), [*PAPER_ROW], [0, 1, 2]),
}
"""By name: the common configuration, the methods and the seeds. A seed runs with all methods before
the next seed starts."""
