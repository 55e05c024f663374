"""Versions of policy weights, and the data exchanged to fetch them: replicas, failed sources, offers.

The rules are those of the weights service; nothing here knows the wire.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from fairlead.errors import InvalidInput


@dataclass(frozen=True, slots=True, order=True)
class WeightVersion:
    """The version of a set of policy weights; ordered by incarnation, then update."""

    incarnation: int
    """Start of the trainer that published it, from 1. Version 0-0 is the model loaded from its path."""
    update: int
    """Number of optimizer updates, from 0."""

    def __str__(self) -> str:
        return f"{self.incarnation}-{self.update}"

    @classmethod
    def parse(cls, text: str) -> WeightVersion:
        """Return the version that `str` returned as text.

        Raises:
            InvalidInput: if the text is not `<incarnation>-<update>`.
        """
        match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})", text)
        if match is None:
            raise InvalidInput("weight_version", got=text, allowed="<incarnation>-<update>, such as 1-20")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """The weights that generated the tokens [start, end)."""

    version: WeightVersion
    """Version of the weights."""
    start: int
    """Index of the first token."""
    end: int
    """Index after the last token."""


ORIGIN = ""
"""Used as a relay address: the weights service itself."""


@dataclass(frozen=True, slots=True)
class WeightReplica:
    """A policy replica as the weights service knows it."""

    replica_id: str
    """Id of one start of the process."""
    relay_address: str = ""
    """`host:port` from which other replicas fetch; empty if it does not relay."""
    versions: tuple[WeightVersion, ...] = ()
    """Versions that it has complete and verified."""


class SourceFailure(enum.Enum):
    """How a source of weights failed."""

    BROKEN = "broken"
    """No response, an interrupted transfer, or the version is missing."""
    CORRUPT = "corrupt"
    """The bytes do not match the manifest."""


@dataclass(frozen=True, slots=True)
class FailedSource:
    """A source of weights that failed and is not to be used again."""

    relay_address: str
    """Its relay address; `ORIGIN` for the weights service."""
    failure: SourceFailure
    """How it failed."""


@dataclass(frozen=True, slots=True)
class DirectOffer:
    """An address outside gRPC from which the bytes of one call can be read."""

    host: str
    """Empty on the wire: the receiver uses the host that it called."""
    port: int
    """TCP port."""
    ticket: bytes
    """Sent first by the receiver; valid only for this call."""
