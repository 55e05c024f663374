"""Results of minutes in files, each with a digest of what it is of; a damaged file is made again."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from trainer import durable

logger = logging.getLogger(__name__)


def read(file: Path, digest: str) -> dict[str, Any] | None:
    """Return what `write` wrote with this digest; None if there is none, or the file is damaged."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        same = found["digest"] == digest
    except (ValueError, KeyError, TypeError) as error:
        warn(file, error)
        return None
    return found if same else None


def write(file: Path, digest: str, values: dict[str, Any]) -> None:
    """Replace a file by values and the digest of what they are of."""
    durable.write_json(file, {"digest": digest, **values})


def warn(file: Path, error: Exception) -> None:
    """Log that a file is damaged and is made again."""
    logger.warning("%s is damaged (%s) and is made again", file, error)
