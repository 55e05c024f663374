"""What the stand-in for a cluster's API computes of objects: selectors, schemas, fields and their merge."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any


def selects(selector: str, labels: dict[str, str]) -> bool:
    """Return whether labels match a selector such as `a=b,c in (d,e),f!=g`."""
    if any(labels.get(name) == value for name, value in re.findall(r"([\w./-]+)!=([\w.-]+)", selector)):
        return False
    parts = re.findall(r"([\w./-]+)(?:=([\w.-]+)| in \(([^)]*)\))", selector)
    return all(
        labels.get(name) in ([value] if value else several.split(",")) for name, value, several in parts
    )


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the value of every field that has no others in it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    else:
        yield path, json.dumps(value, sort_keys=True)


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return an object with the fields of another one, field by field."""
    both = copy.deepcopy(old)
    _merge(both, new)
    return both


def _merge(both: dict[str, Any], new: dict[str, Any]) -> None:
    for name, value in new.items():
        inner = both.get(name)
        if isinstance(value, dict) and isinstance(inner, dict):
            _merge(inner, value)
        else:
            both[name] = value
