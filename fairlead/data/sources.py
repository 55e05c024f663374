"""Read the sources that `[data]` names, line by line: files, folders and datasets of the hub."""

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
    """Return the sources that `data.<kind>` names; empty if there are none."""
    named: str | tuple[str, ...] = getattr(config.data, kind)
    return (named,) if isinstance(named, str) and named else tuple(named)


def scan(config: RunConfig, name: str, *, field: str) -> Iterator[Line | DataError]:
    """Yield every object of one source in order, or the error of an invalid one.

    Args:
        config: relative paths are resolved against its folder.
        name: a file of JSON lines (plain or gzipped) or Parquet, a folder or a dataset of the hub as `hub`
            describes them.
        field: the setting that names it, for errors.

    Raises:
        ConfigError: if nothing has that name, or it cannot be opened.
        DataError: if it is damaged or empty.
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
    """Yield the records of `data.<kind>` in order, one source after the other.

    Raises:
        ConfigError: if nothing has a name that is listed, or it cannot be opened.
        DataError: for an invalid line, unless `data.bad_lines` is `skip` and the source has valid ones; for a
            damaged file.
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
            logger.warning("%s: skipped %d invalid lines, the first: %s", name, len(errors), errors[0])


def attempt(line: Line | DataError, parse: Callable[[Line], Record]) -> Record | DataError:
    """Return the record of a line, or the error that describes what is wrong with it."""
    if isinstance(line, DataError):
        return line
    try:
        return parse(line)
    except DataError as error:
        return error
