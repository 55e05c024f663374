"""Read datasets of the hub, and folders in its layout, through the `datasets` library: rows as lines.

A dataset is named `org/name`, a folder by its path. Options of the library follow a `?`:
`org/name?config=main&split=train[:5000]&revision=v1.1`. The default split is `train`.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairlead.data.lines import Line
from fairlead.errors import ConfigError, DataError, install_command

OPTIONS = ("config", "split", "revision")
"""Options that may follow the `?`."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SAVED = ("state.json", "dataset_dict.json")
"""Files that `save_to_disk` writes into a folder."""
_FILE_SUFFIXES = (".jsonl", ".json", ".gz", ".parquet", ".txt", ".csv")
_EMPTY = "a dataset without rows"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class DatasetName:
    """A dataset as the configuration names it."""

    path: str
    """`org/name`, or a folder."""
    config: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = "train"
    """Split, or a slice of it such as `train[:5000]`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    def __str__(self) -> str:
        options = {"config": self.config, "split": self.split, "revision": self.revision}
        query = "&".join(f"{name}={value}" for name, value in options.items() if value)
        return f"{self.path}?{query}"


def parse_name(name: str, *, field: str) -> DatasetName:
    """Parse the name of a dataset.

    Raises:
        ConfigError: if an option is unknown, empty or repeated.
    """
    path, _, query = name.partition("?")
    found: dict[str, str] = {}
    for part in query.split("&") if query else ():
        key, _, value = part.partition("=")
        if key not in OPTIONS or not value or key in found:
            raise ConfigError(
                field,
                got=name,
                allowed=f"each option once after the `?`: {', '.join(f'{o}=…' for o in OPTIONS)}",
            )
        found[key] = urllib.parse.unquote(value)
    return DatasetName(path, **found)


def may_be_hub_id(path: str) -> bool:
    """Return whether a path that does not exist locally may be a hub id."""
    return _HUB_ID.fullmatch(path) is not None and not path.lower().endswith(_FILE_SUFFIXES)


def scan_dataset(name: DatasetName, *, folder: Path | None, field: str) -> Iterator[Line]:
    """Yield the rows of a dataset in order.

    Args:
        name: the dataset.
        folder: its local folder; None for a dataset of the hub.
        field: the setting that names it, for errors.

    Raises:
        ConfigError: if there is no such dataset or split, access is denied, or `datasets` is not installed.
        DataError: if its files are damaged, or it has no rows.
    """
    if folder is not None:
        name = replace(name, path=str(folder))
    rows = _load(name, folder, field)
    number = 0
    for number, values in enumerate(rows, start=1):
        yield Line(str(name), number, values)
    if number == 0:
        raise DataError(str(name), 1, got=_EMPTY, allowed="at least one row")


def _load(name: DatasetName, folder: Path | None, field: str) -> Iterable[dict[str, Any]]:
    try:
        import datasets
        from datasets import exceptions
    except ImportError:
        where = f"a folder {folder}" if folder else f"{name.path}, neither a file nor a folder here"
        raise ConfigError(
            field,
            got=where,
            allowed=f"a file that exists; for datasets of the hub: {install_command('data')}",
        ) from None
    rows: Iterable[dict[str, Any]]
    try:
        if folder is not None and any((folder / mark).exists() for mark in _SAVED):
            found = datasets.load_from_disk(str(folder))
            rows = found[name.split] if isinstance(found, datasets.DatasetDict) else found
        else:
            path = str(folder or name.path)
            rows = datasets.load_dataset(path, name.config, split=name.split, revision=name.revision)
    except exceptions.DatasetGenerationError as error:
        raise DataError(
            str(name),
            1,
            got=f"files that do not form a table: {_reason(error)}",
            allowed="complete files with the same columns",
        ) from error
    except exceptions.DatasetNotFoundError as error:
        reason = _reason(error)
        remedy = (
            "accept its terms on its page and" if "gated" in reason else "check the name; if it is private,"
        )
        raise ConfigError(
            field,
            got=str(name),
            allowed=f"a file, a folder or a dataset that you may read ({reason}): {remedy} {_LOG_IN}",
        ) from error
    except IndexError as error:
        # `datasets` raises this for a saved table without rows.
        raise DataError(str(name), 1, got=_EMPTY, allowed="at least one row") from error
    except KeyError as error:
        raise ConfigError(
            field, got=str(name), allowed=f"a split of the dataset; it has no {error}"
        ) from error
    except (ValueError, OSError, exceptions.DatasetsError) as error:
        raise ConfigError(
            field, got=str(name), allowed=f"a dataset that can be read ({_reason(error)})"
        ) from error
    return rows


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost cause, which is the most specific."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = (line.strip(" .") for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
