"""Saving a run's configuration as TOML, the inverse of `load`, for the file in the run's folder.

Secrets are omitted; otherwise `load` of the saved file gives the same configuration.
"""

from __future__ import annotations

import json
import os
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fairlead.config.infrastructure import RedisSection

if TYPE_CHECKING:
    from fairlead.config.run import RunConfig

_Redis = TypeVar("_Redis", bound=RedisSection)


def without_secrets(config: RunConfig) -> RunConfig:
    """Return the configuration with absolute paths and without passwords, in fields or in URLs."""
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


def replace_text(path: Path, text: str) -> None:
    """Replace a file atomically: readers see the old text or the new text."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def as_toml(config: RunConfig, *, without_defaults: bool = False) -> str:
    """Return the configuration as TOML, without secrets and, if wanted, without values that are defaults."""
    values = without_secrets(config).model_dump(
        mode="json", exclude_none=True, exclude_defaults=without_defaults
    )
    return "\n".join(_lines(values)) + "\n"


def _without_password(section: _Redis) -> _Redis:
    return section.model_copy(
        update={"redis_password": None, "redis_url": _url_without_password(section.redis_url)}
    )


def _url_without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.password is None:
        return url
    user = parts.username or ""
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}@{host}" if user else host).geturl()


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
