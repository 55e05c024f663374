"""Versions of the reward model as the Open Inference Protocol names them: integers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from fairlead.errors import NotFound
from fairlead.types import RewardInfo


def number_of(version: str) -> str:
    """Return a version as an integer in decimal, the only form that perf_analyzer reads."""
    if re.fullmatch(r"[0-9]{1,18}", version):
        return version
    if re.fullmatch(r"[0-9a-f]{1,15}", version):
        return str(int(version, 16))
    return str(int.from_bytes(hashlib.blake2b(version.encode(), digest_size=7).digest()))


def find(models: Sequence[RewardInfo], version: str, *, name: str) -> RewardInfo:
    """Return the served model of a version.

    Args:
        models: the served models, the current one first.
        version: its integer or its own version; empty for the current model.
        name: name of the model, for the error.

    Raises:
        NotFound: the version is not served.
    """
    if not version:
        return models[0]
    for info in models:
        if version in (info.model_version, number_of(info.model_version)):
            return info
    served = ", ".join(f"{number_of(info.model_version)} ({info.model_version})" for info in models)
    raise NotFound(f"{name!r} has no version {version[:80]!r} on this replica; it serves {served}")
