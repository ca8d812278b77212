"""Compression codec for federated learning.

Client and server hold the same reference model; what travels is the residual against it,
sparsified by top-k, quantized, and entropy coded with adaptive binary rANS::

    import resfed_codec as rfc

    payload = rfc.encode(state, reference, sparsity=0.99)  # bytes
    recovered = rfc.decode(payload, reference)             # bitwise what the encoder recovers

States are mappings from names to arrays, sequences of arrays, or nested ones of both: of NumPy,
torch, JAX or Keras, or on a CUDA device of any library that speaks DLPack, such as CuPy.
"""

from __future__ import annotations

from resfed_codec import _interpreter, _native  # noqa: F401  # _interpreter first: it may refuse
from resfed_codec._native import DeviceArray
from resfed_codec.codec.aggregate import Aggregator
from resfed_codec.codec.keyframe import decode_keyframe, encode_keyframe
from resfed_codec.codec.numbers import checked_integer
from resfed_codec.codec.payload import PayloadInfo, QuantizerInfo, inspect
from resfed_codec.codec.update import decode, encode
from resfed_codec.config import CodecConfig
from resfed_codec.errors import CodecError, PayloadError, StateMismatchError
from resfed_codec.session.client import ClientSession
from resfed_codec.session.server import ServerSession
from resfed_codec.stream.link import Link
from resfed_codec.stream.predictor import AdaptivePredictor, LinearPredictor
from resfed_codec.stream.stream import Decoder, Encoder
from resfed_codec.tensors.cuda_support import release_workspace, unavailable_reason
from resfed_codec.tensors.replaced import buffer_names

__version__ = "0.1.0"


def set_num_threads(n: int) -> None:
    """Let the codec use up to ``n`` threads per call, for the whole process; results never change.

    Args:
        n: Threads, 1 to 4096.

    Raises:
        TypeError: ``n`` is not an integer.
        ValueError: ``n`` is out of range.
    """
    _native.set_num_threads(checked_integer("n", n, 1, 4096))


def get_num_threads() -> int:
    """Threads the codec may use per call.

    Initially ``OMP_NUM_THREADS`` if that is set, else the processors this process may run on.
    """
    return _native.num_threads()


def cuda_available() -> bool:
    """Whether CUDA tensors can be encoded and decoded here.

    They need a build with CUDA (from source, where nvcc is), an NVIDIA GPU and its driver. Where
    something is missing, a call with a CUDA tensor raises a TypeError that says what.
    """
    return not unavailable_reason()


__all__ = [
    "AdaptivePredictor",
    "Aggregator",
    "ClientSession",
    "CodecConfig",
    "CodecError",
    "Decoder",
    "DeviceArray",
    "Encoder",
    "LinearPredictor",
    "Link",
    "PayloadError",
    "PayloadInfo",
    "QuantizerInfo",
    "ServerSession",
    "StateMismatchError",
    "__version__",
    "buffer_names",
    "cuda_available",
    "decode",
    "decode_keyframe",
    "encode",
    "encode_keyframe",
    "get_num_threads",
    "inspect",
    "release_workspace",
    "set_num_threads",
]
