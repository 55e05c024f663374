"""A file of rankings that grows as they come: each line once, across interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fairlead.errors import ConfigError
from fairlead.feedback_client.client import FeedbackClient


class RankingsFile:
    """JSON lines as `data.fresh_rankings` reads them, with the place in the service's log as `seq`.

    The place is in the line, so that one write keeps both or neither.
    """

    def __init__(
        self,
        path: Path,
        *,
        project: str | None = None,
        keep: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    ) -> None:
        """
        Args:
            path: the file; an incomplete last line, of an interruption, is cut off.
            project: whose rankings; None for those of every project.
            keep: whether a line belongs into the file.

        Raises:
            ConfigError: something else wrote the file.
        """
        self._path = path
        self._project = project
        self._keep = keep
        self._after = _last_seq(path)

    def append_new(self, client: FeedbackClient) -> int:
        """Append what was ranked since the last line, and return how many lines that are.

        Rankings of model judges are left out: fresh rankings measure, and judges must not.

        Raises:
            FairleadError: as the client says.
        """
        count = 0
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            for found in client.judgments(after=self._after, project=self._project):
                line = found.get("line") or {}
                if "responses" in line and line.get("kind") != "judge" and self._keep(line):
                    text = json.dumps(line | {"seq": found["seq"]}, ensure_ascii=False)
                    file.write(text.encode("utf-8", "replace") + b"\n")
                    file.flush()
                    count += 1
                self._after = int(found["seq"])
        return count


def _last_seq(path: Path) -> int:
    """Return the place of the last whole line; if it has one, cut off an incomplete line after it."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if not data:
            return 0
        try:
            last = int(json.loads(whole.splitlines()[-1])["seq"])
        except (ValueError, KeyError, TypeError, IndexError):
            got = f"{path}, whose last whole line has no `seq`"
            raise ConfigError("file", got=got, allowed="a file of followed rankings, or a new one") from None
        file.truncate(len(whole))
    return last
