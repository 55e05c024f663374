"""Fairlead: reinforcement learning from human feedback as services.

The names that most users need can be imported from here; each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Read when grpc is imported, so set before every other import; why: fairlead/rpc/forks.py.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

if TYPE_CHECKING:
    from fairlead.clients import (
        AsyncPolicyClient,
        AsyncReferenceClient,
        AsyncRewardClient,
        PolicyClient,
        ReferenceClient,
        RewardClient,
    )
    from fairlead.clients.ranking import Ranked, Ranking
    from fairlead.errors import FairleadError, InvalidInput
    from fairlead.rpc.retry import RetryPolicy
    from fairlead.rpc.tls import Tls
    from fairlead.types import (
        Completion,
        Message,
        Priority,
        SamplingParams,
        Scores,
        TextPair,
        TokenPair,
        WeightVersion,
        WholeText,
    )

__all__ = [
    "AsyncPolicyClient",
    "AsyncReferenceClient",
    "AsyncRewardClient",
    "Completion",
    "FairleadError",
    "InvalidInput",
    "Message",
    "PolicyClient",
    "Priority",
    "Ranked",
    "Ranking",
    "ReferenceClient",
    "RetryPolicy",
    "RewardClient",
    "SamplingParams",
    "Scores",
    "TextPair",
    "Tls",
    "TokenPair",
    "WeightVersion",
    "WholeText",
]

_HOME = {
    **dict.fromkeys(["FairleadError", "InvalidInput"], "fairlead.errors"),
    **dict.fromkeys(["Tls"], "fairlead.rpc.tls"),
    **dict.fromkeys(["Ranked", "Ranking"], "fairlead.clients.ranking"),
    **dict.fromkeys(["RetryPolicy"], "fairlead.rpc.retry"),
    **dict.fromkeys(
        [
            "Completion",
            "Message",
            "Priority",
            "SamplingParams",
            "Scores",
            "TextPair",
            "TokenPair",
            "WeightVersion",
            "WholeText",
        ],
        "fairlead.types",
    ),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "fairlead.clients")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
