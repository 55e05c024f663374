"""What a run's `[data]` names, whatever it is: files, folders and datasets of the hub, line by line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from fairlead.config import RunConfig
from fairlead.data.files import scan_file
from fairlead.data.hub import may_be_hub_id, parse_name, scan_dataset
from fairlead.data.lines import Line
from fairlead.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Record = TypeVar("Record")


def names(config: RunConfig, kind: str) -> tuple[str, ...]:
    """What `data.<kind>` names, one thing or several; empty for nothing."""
    named: str | tuple[str, ...] = getattr(config.data, kind)
    return (named,) if isinstance(named, str) and named else tuple(named)


def scan(config: RunConfig, name: str, *, field: str) -> Iterator[Line | DataError]:
    """Every object of one source in order, and in place of a bad one its error.

    Args:
        config: says what relative paths are relative to.
        name: a file of JSON lines (plain or gzipped) or Parquet, a folder or a dataset of the hub as `hub`
            describes them.
        field: the setting that names it, for errors.

    Raises:
        ConfigError: there is nothing of that name, or it cannot be opened.
        DataError: it is damaged or empty.
    """
    if not name:
        raise ConfigError(field, got="no file", allowed="a file, a folder or a dataset of the hub")
    path = config.data_path(name)
    if not os.path.isfile(path):
        dataset = parse_name(name, field=field)
        folder = config.data_path(dataset.path)
        if os.path.isdir(folder):
            return scan_dataset(dataset, folder=folder, field=field)
        if may_be_hub_id(dataset.path):
            return scan_dataset(dataset, folder=None, field=field)
    return scan_file(path, field=field)


def read(config: RunConfig, kind: str, parse: Callable[[Line], Record]) -> Iterator[Record]:
    """The records of `data.<kind>` in order, all sources one behind the other.

    Raises:
        ConfigError: there is nothing of a name, or it cannot be opened.
        DataError: a bad line, unless `data.bad_lines` is `skip` and there are good ones; a damaged file.
    """
    field = f"data.{kind}"
    for name in names(config, kind):
        good = 0
        errors: list[DataError] = []
        for found in (attempt(line, parse) for line in scan(config, name, field=field)):
            if not isinstance(found, DataError):
                good += 1
                yield found
            elif config.data.bad_lines == "refuse":
                raise found
            else:
                errors.append(found)
        if errors and not good:
            raise errors[0]
        if errors:
            logger.warning("%s: %d bad lines are left out, the first: %s", name, len(errors), errors[0])


def attempt(line: Line | DataError, parse: Callable[[Line], Record]) -> Record | DataError:
    """The record of a line, or what is wrong with it."""
    if isinstance(line, DataError):
        return line
    try:
        return parse(line)
    except DataError as error:
        return error
