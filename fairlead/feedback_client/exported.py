"""Files that were exported from the feedback service: remove what was forgotten, and find what is left of it.

Lines of exports name judgments, tasks and labelers by ids that occur nowhere else, so that exactly those are
removed. Files without such ids are searched for the texts and never changed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.errors import ConfigError

SHORTEST_TEXT = 16
"""Characters; shorter texts are in too many files to say anything."""
_ID = re.compile(rb"[0-9a-f]{64}|[0-9a-f]{32}|labeler-[0-9a-f]{12}")
_WEIGHTS = (".safetensors",)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A file in which something was found."""

    path: Path
    """The file."""
    removed: int
    """Lines, or elements of an array, that were removed."""
    left: int
    """Texts that it still holds."""


def clean(places: Iterable[Path], ids: Collection[str], texts: Sequence[str]) -> list[Cleaned]:
    """Remove lines that name an id from files of JSON lines, and elements from arrays in JSON; then look for
    the texts.

    Args:
        places: files, and folders with all that is in them. Files of weights are passed over, and so are
            links.
        ids: of entries, tasks, answers and prompts, and pseudonyms.
        texts: what must not be left; those shorter than `SHORTEST_TEXT` are passed over.

    Returns:
        The files that were changed or still hold a text.

    Raises:
        ConfigError: a place does not exist or cannot be read or written.
    """
    marks = {one.encode() for one in ids}
    written = [set(_written(text)) for text in texts if len(text) >= SHORTEST_TEXT]
    found = []
    for path in _files(places):
        try:
            data = path.read_bytes()
            kept, removed = _without(data, marks)
            if removed:
                _replace(path, kept)
        except OSError as error:
            raise _unusable(path, error.strerror) from error
        left = sum(any(one in kept for one in forms) for forms in written)
        if removed or left:
            found.append(Cleaned(path, removed, left))
    return found


def _files(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        if not place.exists():
            raise _unusable(place, "not there")
        several = sorted(place.rglob("*")) if place.is_dir() else [place]
        yield from (
            one for one in several if one.is_file() and not one.is_symlink() and one.suffix not in _WEIGHTS
        )


def _without(data: bytes, marks: Collection[bytes]) -> tuple[bytes, int]:
    """Return a file without what names a mark, and how much that was."""

    def names(text: bytes) -> bool:
        return any(one in marks for one in _ID.findall(text))

    if not names(data):
        return data, 0
    start = data.lstrip()[:1]
    if start == b"[":
        return _without_elements(data, names)
    if start != b"{":
        return data, 0
    lines = data.splitlines(keepends=True)
    kept = [line for line in lines if not (line.lstrip()[:1] == b"{" and names(line))]
    # One object over several lines is no file of lines.
    whole = all(not line.strip() or line.strip()[-1:] == b"}" for line in lines)
    return (b"".join(kept), len(lines) - len(kept)) if whole else (data, 0)


def _without_elements(data: bytes, names: Callable[[bytes], bool]) -> tuple[bytes, int]:
    try:
        elements: list[Any] = json.loads(data)
    except ValueError:
        return data, 0
    kept = [one for one in elements if not names(json.dumps(one).encode())]
    return json.dumps(kept, ensure_ascii=False).encode("utf-8", "replace") + b"\n", len(elements) - len(kept)


def _written(text: str) -> Iterator[bytes]:
    """Yield a text as it may be written in a file."""
    yield text.encode("utf-8", "replace")
    yield json.dumps(text)[1:-1].encode()
    yield json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "replace")


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(data)
    aside.chmod(path.stat().st_mode & 0o777)
    aside.replace(path)


def _unusable(path: Path, why: str | None) -> ConfigError:
    return ConfigError(
        "--files", got=f"{path} ({why})", allowed="files or folders that can be read and written"
    )
