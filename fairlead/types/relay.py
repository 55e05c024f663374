"""What replicas tell the origin of the weights: who they are, what they hold, and which source failed them.

Data alone, between the store that fetches and the registry that hands out sources; beside `types`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fairlead.types import WeightVersion

ORIGIN = ""
"""In the place of a relay address: the weights service itself."""


@dataclass(frozen=True, slots=True)
class WeightReplica:
    """A policy replica as the origin knows it."""

    replica_id: str
    """Made anew at every start of the process."""
    relay_address: str = ""
    """`host:port` where its peers fetch from it; empty if it does not relay."""
    versions: tuple[WeightVersion, ...] = ()
    """What it holds whole and verified."""


class SourceFailure(enum.Enum):
    """How a source failed."""

    BROKEN = "broken"
    """No answer, a stop in the middle, or the version is not there."""
    CORRUPT = "corrupt"
    """Bytes that do not match the manifest."""


@dataclass(frozen=True, slots=True)
class FailedSource:
    """A source that is not to be given again."""

    relay_address: str
    """Whose; `ORIGIN` for the weights service."""
    failure: SourceFailure
    """How."""


@dataclass(frozen=True, slots=True)
class DirectOffer:
    """Where the bytes of one call are to be had beside it."""

    host: str
    """Empty as the sender makes it: whoever asks knows whom they asked."""
    port: int
    """TCP port."""
    ticket: bytes
    """Shown first, and good for this call alone."""
