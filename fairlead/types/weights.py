"""The names of policy weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fairlead.errors import InvalidInput


@dataclass(frozen=True, slots=True, order=True)
class WeightVersion:
    """Names a set of policy weights; ordered by incarnation, then update."""

    incarnation: int
    """Which start of the trainer published it, from 1. (0, 0) is the model as loaded from its path."""
    update: int
    """Optimizer updates behind it, from 0."""

    def __str__(self) -> str:
        return f"{self.incarnation}-{self.update}"

    @classmethod
    def parse(cls, text: str) -> WeightVersion:
        """The inverse of `str`.

        Raises:
            InvalidInput: if the text is not `<incarnation>-<update>`.
        """
        match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})", text)
        if match is None:
            raise InvalidInput("weight_version", got=text, allowed="<incarnation>-<update>, such as 1-20")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Which weights made the tokens [start, end)."""

    version: WeightVersion
    """The weights."""
    start: int
    """Index of the first token."""
    end: int
    """Index behind the last token."""
