"""Tensors that a round replaces instead of adding to them: the default of ``dense``.

Running statistics, codebooks kept as moving averages, the vectors of spectral normalization: their
names tell, as frameworks give them. The encoder alone decides; payloads list what is dense.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from resfed_codec.tensors.dtypes import LOSSY_DTYPES
from resfed_codec.tensors.torch_tensors import torch_module

if TYPE_CHECKING:
    from resfed_codec.tensors.layout import TensorSpec

_SEPARATORS = re.compile(r"[./\[\]'\"~|]+")
"""Between the parts of a name: of PyTorch, Keras and Flax, and of JAX's keystr."""

_END = re.compile(r":\d+$|[/.]\.ATTRIBUTES[/.]VARIABLE_VALUE$|\.(raw_)?value$")
"""What TensorFlow and its checkpoints, and JAX's keystr of Flax NNX, put behind a name."""

_STATISTIC = re.compile(
    r"""(running|moving)_(mean|var|variance|std|covar|min|max|avg|average)$
    | (^|_)(avg|ema)_(mean|var)$                        # Chainer, and others
    | ^renorm_(mean|stddev)$                            # batch renormalization in Keras
    | ^_?(ema_)?cluster_(size|usage)$ | ^_?(embed|embedding|codebook)_(avg|sum)$ # codebooks
    | ^_?ema_(w|dw)$ | ^z_avg$
    | ^sn_u$ | ^vector_u$                               # spectral normalization in Keras""",
    re.VERBOSE,
)
"""Last components of names that suffice to recognize a tensor."""

_HAIKU_AVERAGE = re.compile("^ema_|_ema$")
"""The component before the last if a module keeps a moving average."""

_COLLECTIONS = {"batch_stats", "batch_stat"}
"""Components before the last that suffice to recognize a tensor: Flax's collections."""

_BESIDE = {
    "mean": ("var", "variance"),  # BatchNorm of Flax NNX, Normalization of Keras
    "var": ("mean",),
    "variance": ("mean",),
    "_mean": ("_variance",),  # of Paddle
    "_variance": ("_mean",),
    "min_val": ("max_val",),  # torch.ao's observers
    "max_val": ("min_val",),
    "histogram": ("min_val",),
    "scale": ("zero_point",),
    "zero_point": ("scale",),
    "embed": ("embed_avg",),  # codebooks
    "weight": ("embed_avg",),
    "embeddings": ("z_avg",),
    "N": ("z_avg",),
    "u0": ("sv0",),  # spectral normalization of BigGAN
    "sv0": ("u0",),
}
"""Last components that suffice if a tensor of the same module has one of these."""


def replaced_tensors(specs: Sequence[TensorSpec]) -> list[str]:
    """Names of the float tensors that are replaced in each round, as far as names tell."""
    parts = {spec.name: _parts(spec.name) for spec in specs}
    names = {tuple(p) for p in parts.values()}
    return [spec.name for spec in specs if spec.is_float and _is_replaced(parts[spec.name], names)]


def _parts(name: str) -> list[str]:
    return [part for part in _SEPARATORS.split(_END.sub("", name)) if part]


def _is_replaced(parts: list[str], names: set[tuple[str, ...]]) -> bool:
    if not parts:
        return False
    *module, last = parts
    if _STATISTIC.search(last) or not _COLLECTIONS.isdisjoint(module):
        return True
    if last in ("average", "hidden") and module and _HAIKU_AVERAGE.search(module[-1]):
        return True
    if last == "weight" and module and module[-1] in ("embedding", "_embedding"):
        return any((*module[:-1], other) in names for other in ("ema_w", "_ema_w"))  # a codebook
    if any((*module, other) in names for other in _BESIDE.get(last, ())):
        return True
    # torch.nn.utils: spectral_norm keeps NAME_orig, NAME_u, NAME_v; weight_norm NAME_g, NAME_v.
    if last.endswith(("_u", "_v")) and last not in ("_u", "_v"):
        return any((*module, last[:-2] + end) in names for end in ("_orig", "_bar"))
    # torch.nn.utils.parametrizations: MODULE.parametrizations.NAME.0._u beside NAME.original
    is_parametrization = len(module) >= 3 and module[-3] == "parametrizations"
    return last in ("_u", "_v") and is_parametrization


_WRAPPER = re.compile(r"(^|\.)(?:_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.)+")
"""Parts of names that ``state_dict()`` of a wrapped module leaves out."""


def buffer_names(module: Any) -> tuple[str, ...]:
    """Names of a module's floating-point buffers, for ``CodecConfig(dense=...)``.

    Optimizers add to parameters; what modules keep in buffers (running statistics, moving averages,
    vectors of spectral normalization) they mostly replace. By default the codec goes by names that
    frameworks use; the module itself knows better::

        config = rfc.CodecConfig(sparsity=0.99, dense=rfc.buffer_names(model))

    Buffers that never change, such as masks, cost nothing.

    Args:
        module: A ``torch.nn.Module``. Its parameters and buffers are not read. Or a Keras model of
            which ``model.weights`` are sent.

    Returns:
        The names as in ``module.state_dict()``, in its order: those of persistent buffers of
        float16, bfloat16, float32 and float64. A name that a wrapper adds to (``module.``,
        ``_orig_mod.``) is as the wrapper gives it: ask the module whose ``state_dict()`` is sent.
        Of a Keras model, the positions in ``model.weights`` of what is not trained.

    Raises:
        TypeError: ``module`` is neither.
    """
    keras_model = getattr(sys.modules.get("keras"), "Model", None)
    if keras_model is not None and isinstance(module, keras_model):
        weights = enumerate(module.weights)
        return tuple(str(i) for i, w in weights if not w.trainable and w.dtype in LOSSY_DTYPES)
    torch = torch_module()
    if torch is None or not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"module: must be a torch.nn.Module or a Keras model, not {type(module).__name__}"
        )
    buffers = dict(module.named_buffers(remove_duplicate=False))
    names = {_WRAPPER.sub(r"\1", name) for name in buffers}  # some hooks copy what is in buffers,
    same = {id(buffer) for buffer in buffers.values()}  # others rename it
    return tuple(
        name
        for name, value in module.state_dict(keep_vars=True).items()
        if (id(value) in same or _WRAPPER.sub(r"\1", name) in names)
        and str(value.dtype).removeprefix("torch.") in LOSSY_DTYPES
    )
