"""Versions of models as the Open Inference Protocol names them, alike over gRPC and HTTP."""

from __future__ import annotations

import hashlib
import re


def number_of(version: str) -> str:
    """A version as Triton's clients expect it, an integer: perf_analyzer reads no other."""
    if re.fullmatch(r"[0-9]{1,18}", version):
        return version
    if re.fullmatch(r"[0-9a-f]{1,15}", version):
        return str(int(version, 16))
    return str(int.from_bytes(hashlib.blake2b(version.encode(), digest_size=7).digest()))
