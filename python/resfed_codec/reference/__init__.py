"""The format in readable NumPy: a second implementation, slow on purpose.

It is written from docs/format.md and not from the native code, with which it shares nothing but the
exceptions. Tests hold both to the same bytes. Models are NumPy arrays, bfloat16 those of ml_dtypes.
"""

from resfed_codec.reference.keyframe import decode_keyframe, encode_keyframe
from resfed_codec.reference.update import decode, encode

__all__ = ["decode", "decode_keyframe", "encode", "encode_keyframe"]
