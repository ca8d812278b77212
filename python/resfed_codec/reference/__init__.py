"""The format in readable NumPy: a second implementation, slow on purpose.

It is written from docs/format.md and not from the native code. Tests hold both to the same bytes.
"""

from resfed_codec.reference.keyframe import decode_keyframe, encode_keyframe
from resfed_codec.reference.update import decode, encode

__all__ = ["decode", "decode_keyframe", "encode", "encode_keyframe"]
