"""Names of methods as tables and charts show them."""

from __future__ import annotations

from typing import Any

NAMES = {
    "codec": "ours",
    "codec_select": "ours (selection)",
    "codec_gathered": "ours (gathered)",
    "codec_diloco": "ours (DiLoCo)",
    "resfed": "ResFed paper's scheme",
    "topk": "top-k",
    "stc": "STC",
    "qsgd": "QSGD",
    "signsgd": "signSGD",
    "eden": "DRIVE/EDEN",
    "diloco": "DiLoCo",
    "sparseloco": "SparseLoCo",
    "flasc": "FLASC",
}
FEEDBACK = {
    (True, True): "feedback both ways",
    (True, False): "feedback up",
    (True, None): "feedback up, default down",
    (False, None): "default down",
    (False, True): "feedback down",
    (False, False): "no feedback",
}
WORDS = {"up": "predictor up", "down": "predictor down", "exclude": "lossless"}
"""Display names of options; other options keep their name."""


def name_of(method: str, options: dict[str, Any]) -> str:
    """For example ``ours 0.99, feedback both ways``; 0.99 is the sparsity.

    Different options have different names.
    """
    rest = dict(options)
    name = NAMES.get(method, method)
    if "sparsity" in rest:
        name += f" {rest.pop('sparsity')}"
    words = [name]
    if method == "codec":
        ways = (rest.pop("up_feedback", False), rest.pop("down_feedback", False))
        words.append(FEEDBACK[ways])
    if method == "codec_select":
        feedback = rest.pop("feedback", False)
        words.append(FEEDBACK[feedback, feedback])
    words += [_word(WORDS.get(key, key), value) for key, value in sorted(rest.items())]
    return ", ".join(words)


def _word(key: str, value: Any) -> str:
    if value is True:
        return key
    return f"{key} {' '.join(value) if isinstance(value, (tuple, list)) else value}"
