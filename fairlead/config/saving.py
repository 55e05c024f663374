"""Saving a run's configuration as TOML, the inverse of `load`, for the file in the run's folder.

Secrets are omitted; otherwise `load` of the saved file gives the same configuration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fairlead.config.infrastructure import RedisSection, redis_url_without_secrets

if TYPE_CHECKING:
    from fairlead.config.run import RunConfig

_Redis = TypeVar("_Redis", bound=RedisSection)


def without_secrets(config: RunConfig) -> RunConfig:
    """Return the configuration with absolute paths and without secrets, in fields or in URLs."""
    return config.model_copy(
        update={
            "queue": _without_password(config.queue),
            "keys": _without_password(config.keys),
            "runs": config.runs.absolute(),
            "base": config.base.absolute(),
        }
    )


def save(config: RunConfig, path: Path) -> None:
    """Write the configuration, without secrets, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, as_toml(config))


def replace_text(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a file atomically: readers see the old text or the new text. A failure leaves only the old one.

    Only the owner may read it unless `mode` says otherwise: a configuration names paths, addresses and users.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def as_toml(config: RunConfig, *, without_defaults: bool = False, only: Collection[str] | None = None) -> str:
    """Return the configuration as TOML, without secrets.

    Args:
        config: the configuration.
        without_defaults: leave out values that are defaults.
        only: dotted keys of the settings and sections to write; None writes all.
    """
    values = without_secrets(config).model_dump(
        mode="json", exclude_none=True, exclude_defaults=without_defaults
    )
    return "\n".join(_lines(values if only is None else _selected(values, only))) + "\n"


def is_selected(key: str, only: Collection[str]) -> bool:
    """Return whether a dotted key is one of `only`, or of one of its sections."""
    return any(key == one or key.startswith(f"{one}.") for one in only)


def _selected(table: Mapping[str, object], only: Collection[str], prefix: str = "") -> Mapping[str, object]:
    found: dict[str, object] = {}
    for key, value in table.items():
        if is_selected(f"{prefix}{key}", only):
            found[key] = value
        elif isinstance(value, Mapping) and (inner := _selected(value, only, f"{prefix}{key}.")):
            found[key] = inner
    return found


def _without_password(section: _Redis) -> _Redis:
    url = redis_url_without_secrets(section.redis_url) if section.redis_url else ""
    return section.model_copy(update={"redis_password": None, "redis_url": url})


def _lines(table: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yield the lines of a table, values first: in TOML everything after a `[header]` belongs to it."""
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{key} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield f"\n[{prefix}{key}]"
            yield from _lines(value, f"{prefix}{key}.")


def _value(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    # JSON's strings, numbers and truth values are TOML's too, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
