"""Records the settings that a process reads. Python imports this module at its start, from PYTHONPATH.

The checks of the configuration itself do not count. Each key is a line of the file that READS_FILE names.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_CHECKS = ("_check", "check", "_limits", "_setting")


def trace(path: str) -> None:
    from pydantic import BaseModel

    from fairlead.config import RunConfig
    from fairlead.config.base import Section

    out = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open until the process ends
    seen: set[str] = set()
    sections: dict[int, tuple[object, str]] = {}

    def read(self: Any, name: str) -> Any:
        value = object.__getattribute__(self, name)
        cls = type(self)
        if name.startswith("_") or name not in cls.__pydantic_fields__:
            return value
        caller = sys._getframe(1)
        module = caller.f_globals.get("__name__", "")
        if module.startswith("pydantic") or (
            module.startswith("fairlead.config") and caller.f_code.co_name.startswith(_CHECKS)
        ):
            return value
        if cls is RunConfig:
            key = name
        elif id(self) in sections:
            key = f"{sections[id(self)][1]}.{name}"
        else:
            return value
        if isinstance(value, BaseModel):
            sections[id(value)] = (value, key)
        elif key not in seen:
            seen.add(key)
            out.write(f"{key}\n")
        return value

    RunConfig.__getattribute__ = read  # type: ignore[method-assign]
    Section.__getattribute__ = read  # type: ignore[method-assign]


if "-m" in sys.orig_argv and "READS_FILE" in os.environ:
    trace(os.environ["READS_FILE"])
