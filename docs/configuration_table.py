"""Writes docs/configuration.md from the docstrings in fairlead/config: `python docs/configuration_table.py`.

A test compares the two.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import annotated_types
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from fairlead.config import RunConfig

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """# Configuration

One TOML file describes a whole run; each process reads the sections it needs. A value is taken from, in this
order: a flag (`--set ppo.updates=50`), the environment (`FAIRLEAD_PPO__UPDATES=50`), the file, the default
below. A misspelt key is refused, with the nearest right one. The configuration that a run used is kept,
without secrets, in `runs/<name>/config.toml`.

The page is made from the docstrings in `fairlead/config/` by `python docs/configuration_table.py`; a test
compares the two.
"""
_NAMES = {
    str: "text",
    SecretStr: "text",
    Path: "path",
    int: "integer",
    float: "number",
    bool: "true or false",
}


def page() -> str:
    """The page as it should be."""
    top = {name: field for name, field in RunConfig.model_fields.items() if not _section(field)}
    parts = [HEAD, "\n## Top of the file\n", *_rows(top)]
    for name, model in _sections(RunConfig):
        plain = {key: field for key, field in model.model_fields.items() if not _section(field)}
        parts += [f"\n## `[{name}]`\n", f"{' '.join((inspect.getdoc(model) or '').split())}\n", *_rows(plain)]
    return "\n".join(parts) + "\n"


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is not None:
            yield prefix + name, section
            yield from _sections(section, f"{prefix}{name}.")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _rows(fields: dict[str, FieldInfo]) -> list[str]:
    rows = ["| key | type | default | what it does |", "|---|---|---|---|"]
    for name, field in fields.items():
        what = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {_kind(field)} | {_default(field.default)} | {what} |")
    return rows


def _kind(field: FieldInfo) -> str:
    limits = _limits(field)
    return _type_name(field.annotation) + (f", {limits}" if limits else "")


def _type_name(kind: object) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(choice) for choice in arguments if choice is not type(None))
    if origin in (tuple, list):
        return f"list of {_type_name(arguments[0])}"
    return _NAMES.get(kind, str(kind))  # type: ignore[call-overload, no-any-return]


def _limits(field: FieldInfo) -> str:
    words = []
    for limit in field.metadata:
        if isinstance(limit, annotated_types.Ge):
            words.append(f"≥ {limit.ge}")
        elif isinstance(limit, annotated_types.Gt):
            words.append(f"> {limit.gt}")
        elif isinstance(limit, annotated_types.Le):
            words.append(f"≤ {limit.le}")
        elif isinstance(limit, annotated_types.Lt):
            words.append(f"< {limit.lt}")
    return ", ".join(words)


def _default(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        value = list(value)
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
