"""Datasets of the hub, and folders in its layout, through the `datasets` library: rows as lines.

A dataset is named `org/name`, a folder by its path. Behind a `?` may stand what else the library is to be
told: `org/name?config=main&split=train[:5000]&revision=v1.1`. The split is `train` unless another is named.
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
"""What may stand behind the `?`."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` leaves in a folder."""
_FILE_SUFFIXES = (".jsonl", ".json", ".gz", ".parquet", ".txt", ".csv")


_EMPTY = "a dataset without rows"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class DatasetName:
    """A dataset as a run names it."""

    path: str
    """`org/name`, or a folder."""
    config: str | None = None
    """Name of a configuration, where the dataset has several."""
    split: str = "train"
    """Which rows; may be a slice, such as `train[:5000]`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    def __str__(self) -> str:
        options = {"config": self.config, "split": self.split, "revision": self.revision}
        told = "&".join(f"{name}={value}" for name, value in options.items() if value)
        return f"{self.path}?{told}"


def parse_name(name: str, *, field: str) -> DatasetName:
    """The parts of a name.

    Raises:
        ConfigError: an option is unknown, empty or named twice.
    """
    path, _, query = name.partition("?")
    found: dict[str, str] = {}
    for part in query.split("&") if query else ():
        key, _, value = part.partition("=")
        if key not in OPTIONS or not value or key in found:
            raise ConfigError(
                field, got=name, allowed=f"once each behind the `?`: {', '.join(f'{o}=…' for o in OPTIONS)}"
            )
        found[key] = urllib.parse.unquote(value)
    return DatasetName(path, **found)


def may_be_hub_id(path: str) -> bool:
    """Whether a path that does not exist here may be meant for the hub."""
    return _HUB_ID.fullmatch(path) is not None and not path.lower().endswith(_FILE_SUFFIXES)


def scan_dataset(name: DatasetName, *, folder: Path | None, field: str) -> Iterator[Line]:
    """The rows of a dataset in order.

    Args:
        name: what to read.
        folder: where it lies on this machine; None for one of the hub.
        field: the setting that names it, for errors.

    Raises:
        ConfigError: there is no such dataset or split, it may not be read, or `datasets` is not installed.
        DataError: its files are damaged, or there is no row.
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
            str(name), 1, got=f"files that make no table: {_reason(error)}", allowed="whole files, all alike"
        ) from error
    except exceptions.DatasetNotFoundError as error:
        reason = _reason(error)
        mend = (
            "accept its terms on its page and" if "gated" in reason else "check the name; if it is private,"
        )
        raise ConfigError(
            field,
            got=str(name),
            allowed=f"a file, a folder or a dataset that you may read ({reason}): {mend} {_LOG_IN}",
        ) from error
    except IndexError as error:
        # What `datasets` makes of a saved table without rows.
        raise DataError(str(name), 1, got=_EMPTY, allowed="at least one row") from error
    except KeyError as error:
        raise ConfigError(field, got=str(name), allowed=f"a split that it has, not {error}") from error
    except (ValueError, OSError, exceptions.DatasetsError) as error:
        raise ConfigError(
            field, got=str(name), allowed=f"a dataset that can be read ({_reason(error)})"
        ) from error
    return rows


def _reason(error: BaseException) -> str:
    """The innermost cause says what is wrong; those around it say that something is."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = (line.strip(" .") for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
