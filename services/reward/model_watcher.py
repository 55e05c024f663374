"""Watch a folder in which newer reward models appear, and put the newest into service without an
interruption.

A model is loaded and probed before it gets requests. If anything is wrong with it, the replica keeps the
served model.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from fairlead.backoff import Backoff
from fairlead.errors import ConfigError
from services.reward.swapping import SwappingScoring

logger = logging.getLogger(__name__)

LATEST = "latest"
"""A link to the folder of a version, or a file that holds the folder's name."""

_LONGEST_PAUSE_SECONDS = 300.0
_MODEL_MARKERS = ("config.json", "adapter_config.json", "ensemble.json")
_MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja")


@dataclass(frozen=True, slots=True)
class FolderState:
    """The newest model in a folder, as it is now."""

    path: Path
    """The model's folder, links resolved."""
    files: tuple[tuple[str, int, int], ...]
    """Name, bytes and modification time of every file that a model is read from."""


class ModelWatcher:
    """Watches one folder for one scoring."""

    def __init__(self, folder: Path, scoring: SwappingScoring, *, interval_seconds: float) -> None:
        """
        Args:
            folder: the folder that the scoring's first model came from.
            scoring: loads newer models.
            interval_seconds: time between two checks.
        """
        self._folder = folder
        self._scoring = scoring
        self._interval_seconds = interval_seconds
        self._backoff = Backoff(2.0 * interval_seconds, _LONGEST_PAUSE_SECONDS, jitter=0.0)
        self._served: FolderState | None = None
        self._seen: FolderState | None = None
        self._failed: FolderState | None = None
        self._failures = 0
        self._retry_at = 0.0

    async def run(self) -> NoReturn:
        """Check the folder until cancelled."""
        while True:
            try:
                await self._check()
            except OSError as error:
                logger.warning("cannot read the watched folder %s: %s", self._folder, error)
            await asyncio.sleep(self._interval_seconds)

    async def _check(self) -> None:
        found = await asyncio.to_thread(newest, self._folder)
        # Two equal checks in a row: the files are complete.
        settled = found == self._seen
        self._seen = found
        if found is None or found == self._served or not settled:
            return
        if found == self._failed and time.monotonic() < self._retry_at:
            return
        try:
            # The model that the replica started with is loaded once more, and found to be the same.
            await self._scoring.load(str(found.path))
        except Exception as error:  # noqa: BLE001 - retried with growing pauses
            self._record_failure(found, error)
            return
        self._served = found
        self._failed = None
        self._failures = 0

    def _record_failure(self, found: FolderState, error: Exception) -> None:
        self._failures = self._failures + 1 if found == self._failed else 1
        self._failed = found
        delay = self._backoff.seconds(self._failures)
        self._retry_at = time.monotonic() + delay
        logger.warning(
            "cannot load %s, the served model is kept: %s",
            found.path,
            error,
            extra={"failures": self._failures, "retry_seconds": delay},
        )


def newest(folder: Path) -> FolderState | None:
    """Return the newest model of a folder, or the folder itself if it is a model; None without a model.

    `latest` names the newest if it exists. Otherwise the newest is the last by name, with numbers in names
    compared as numbers (`v10` comes after `v9`).

    Raises:
        OSError: the folder cannot be read.
    """
    path = _newest(folder.expanduser())
    if path is None or not path.is_dir():
        return None
    path = path.resolve()
    # The members of an ensemble are one level below.
    patterns = [level + pattern for pattern in _MODEL_FILES for level in ("", "*/")]
    files = sorted({file for pattern in patterns for file in path.glob(pattern)})
    stats = [(file, file.stat()) for file in files]
    return FolderState(
        path, tuple((str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns) for file, stat in stats)
    )


def first(folder: str) -> str:
    """Return the path of the model to start with.

    Raises:
        ConfigError: `folder` is not a folder, or holds no model.
    """
    try:
        found = newest(Path(folder))
    except OSError as error:
        raise ConfigError("reward.path", got=f"{folder}: {error}", allowed="a folder to watch") from error
    if found is None:
        raise ConfigError("reward.path", got=folder, allowed="a local folder with a model or versions of one")
    return str(found.path)


def _newest(folder: Path) -> Path | None:
    latest = folder / LATEST
    if latest.is_file():
        name = latest.read_text(encoding="utf-8", errors="replace").strip()
        return folder / name if name else None
    if latest.is_dir():
        return latest
    if _is_model(folder):
        return folder
    if not folder.is_dir():
        return None
    # Folders that are still being written often begin with a dot or an underscore.
    versions = [path for path in folder.iterdir() if _is_model(path) and path.name[0] not in "._"]
    return max(versions, key=lambda path: _natural_key(path.name), default=None)


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _MODEL_MARKERS)


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key in which digits compare as numbers, before letters."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name) if part]
