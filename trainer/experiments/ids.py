"""Which run of a tool a stage continues: `experiments.json` in the run's folder.

A stage that was interrupted continues its run there; one that starts from scratch gets a new one. Knows no
tool.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

from trainer import durable

FILE = "experiments.json"
_LOCK = threading.Lock()


class TrackedId:
    """The id of a stage's run in one tool."""

    def __init__(self, folder: Path, tool: str, stage: str, *, first_step: int) -> None:
        """
        Args:
            folder: the run's folder.
            tool: such as `mlflow`.
            stage: such as `ppo`.
            first_step: where the stage continues; 0: from the start.
        """
        self._path = folder / FILE
        self._key = f"{tool}/{stage}"
        self._first_step = first_step

    def last(self) -> str | None:
        """Return the id of the run to continue; None for a new one.

        A stage that has finished is continued if it has a checkpoint, as with more updates, and otherwise
        begun again, as with `--force`.
        """
        found = _read(self._path).get(self._key)
        if found is None or (found["finished"] and not self._first_step):
            return None
        return str(found["id"])

    def note(self, number: str, *, finished: bool) -> None:
        """Remember the id, and whether the stage has finished."""
        with _LOCK:
            content = _read(self._path) | {self._key: {"id": number, "finished": finished}}
            durable.write_json(self._path, content)


def _read(path: Path) -> dict[str, dict[str, object]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        key: value
        for key, value in content.items()
        if isinstance(value, dict) and {"id", "finished"} <= value.keys()
    }
