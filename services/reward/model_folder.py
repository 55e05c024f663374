"""A folder in which newer reward models appear: which is the newest, and whether it is all there.

Knows files and names, and no model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fairlead.errors import ConfigError

LATEST = "latest"
"""A link to a version's folder, or a file that holds its name."""

_MAKES_A_MODEL = ("config.json", "ensemble.json")
_READ = ("*.json", "*.safetensors", "*.model", "*.jinja")


@dataclass(frozen=True, slots=True)
class Version:
    """What lies in a folder now."""

    path: Path
    """The folder, links resolved."""
    files: tuple[tuple[str, int, int], ...]
    """Name, bytes and time of change of every file that a model is read from."""


def newest(folder: Path) -> Version | None:
    """The newest model in a folder of versions, or the folder itself if it is a model; None if there is none.

    `latest` decides; without it the last by name, numbers in names counted as such (`v10` comes after `v9`).

    Raises:
        OSError: if it cannot be read.
    """
    path = _newest(folder.expanduser())
    if path is None or not path.is_dir():
        return None
    path = path.resolve()
    # Members of an ensemble are a level below.
    files = sorted({file for pattern in _READ for level in ("", "*/") for file in path.glob(level + pattern)})
    stats = [(file, file.stat()) for file in files]
    found = tuple((str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns) for file, stat in stats)
    return Version(path, found)


def first(folder: str) -> str:
    """Path of the model to begin with.

    Raises:
        ConfigError: if the folder is none, or holds no model.
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
    # What is being written often begins with a dot or an underscore.
    versions = [path for path in folder.iterdir() if _is_model(path) and path.name[0] not in "._"]
    return max(versions, key=lambda path: _natural(path.name), default=None)


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _MAKES_A_MODEL)


def _natural(name: str) -> list[tuple[int, str]]:
    """Digits compare as numbers, before letters."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name) if part]
