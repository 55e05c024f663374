"""The line that the trainer logs after each update, and how to find the last one in its log.

`fairlead k8s run list` reads it: of a run in a cluster without a volume at hand, only the log is there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

_NAN = float("nan")
_LINE = "update %d of %d: reward %.3f, KL %.3f"
_PATTERN = re.compile(r"\bupdate (\d+) of (\d+): reward ")


def log_update(logger: logging.Logger, update: int, updates: int, figures: Mapping[str, float]) -> None:
    """Log the number of an update, how many there will be, and its mean reward and KL, NaN if unknown."""
    logger.info(_LINE, update, updates, figures.get("reward", _NAN), figures.get("kl", _NAN))


def last_update(text: str) -> tuple[int, int] | None:
    """Return the last update in the text of a log and how many there will be; None if it has none."""
    found = _PATTERN.findall(text)
    return (int(found[-1][0]), int(found[-1][1])) if found else None
