"""Read files of JSON lines, plain or gzipped, and Parquet files; the first bytes decide which it is.

Used by `sources`, which knows what a run names. An invalid line is yielded as an error, so that the caller
decides whether to stop; a damaged file ends the reading.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fairlead.data.lines import Line, parse
from fairlead.errors import ConfigError, DataError, install_command

if TYPE_CHECKING:
    from pyarrow import RecordBatch

MAX_LINE_BYTES = 64 << 20
"""A longer line is not read: it is another kind of file, or a decompression bomb."""
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_BATCH_ROWS = 256


def scan_file(path: Path, *, field: str) -> Iterator[Line | DataError]:
    """Yield every object of a file in order, or the error of an invalid one; blank lines are skipped.

    Args:
        path: the file.
        field: the setting that names it, for errors.

    Raises:
        ConfigError: if it is absent, cannot be opened, or needs a package that is not installed.
        DataError: if it is damaged, truncated or empty.
    """
    file, empty = str(path), True
    try:
        with path.open("rb") as raw:
            magic = raw.read(len(_PARQUET))
            raw.seek(0)
            if magic == _PARQUET or (magic and path.suffix == ".parquet"):
                found = _scan_parquet(raw, file, field)
            else:
                found = _scan_json(raw, file, packed=magic.startswith(_GZIP))
            for line in found:
                empty = False
                yield line
    except FileNotFoundError:
        raise ConfigError(field, got=file, allowed="a file that exists") from None
    except OSError as error:
        raise ConfigError(field, got=file, allowed=f"a readable file ({error.strerror})") from error
    if empty:
        raise DataError(file, 1, got="an empty file", allowed="one JSON object per line, or rows of Parquet")


def _scan_json(raw: BinaryIO, file: str, *, packed: bool) -> Iterator[Line | DataError]:
    number = 0
    try:
        with gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw) as stream:
            while content := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(content) > MAX_LINE_BYTES:
                    raise DataError(
                        file,
                        number,
                        got=f"a line of more than {MAX_LINE_BYTES >> 20} MiB",
                        allowed="one JSON object per line",
                    )
                if content.strip():
                    yield parse(file, number, content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(file, number + 1, got=f"a damaged gzip: {error}", allowed="a whole file") from error


def _scan_parquet(raw: BinaryIO, file: str, field: str) -> Iterator[Line | DataError]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigError(
            field, got=file, allowed=f"JSON lines, or pyarrow to read Parquet: {install_command('data')}"
        ) from None
    number = 0
    try:
        for batch in parquet.ParquetFile(raw).iter_batches(batch_size=_BATCH_ROWS):
            for row in range(batch.num_rows):
                number += 1
                yield _row(batch, row, file, number)
    # pyarrow reports some damage as an ArrowException and some as an OSError.
    except (ArrowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            file, number + 1, got="a damaged Parquet file", allowed=f"a whole file ({reason})"
        ) from error


def _row(batch: RecordBatch, row: int, file: str, number: int) -> Line | DataError:
    values: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[row].as_py()
        except UnicodeDecodeError as error:
            bad = error.object[error.start]
            return DataError(
                file,
                number,
                got=f"byte 0x{bad:02x} at position {error.start} of `{name}`",
                allowed="UTF-8",
            )
        except ValueError:
            # For instance a time in nanoseconds, for which Python has no type; no record reads such a value.
            continue
    return Line(file, number, values)
