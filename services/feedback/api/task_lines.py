"""Tasks in files of JSON lines, as `fairlead generate` writes them: files of a page, or of the start."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import ValidationError

from fairlead.errors import InvalidInput
from services.feedback.api.bodies import MAX_ITEMS
from services.feedback.api.tasks import TaskBody
from services.feedback.store import Store
from services.feedback.store.records import NewTask
from services.runtime.http.failures import invalid_input


def tasks_of(data: bytes, store: Store, *, file: str = "file", kind: str = "") -> list[NewTask]:
    """Return the tasks of JSON lines.

    Args:
        data: the lines.
        store: knows the secret of hashes.
        file: name for errors.
        kind: of lines that name none.

    Raises:
        InvalidInput: names the line and its field.
    """
    found = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"line {number}", got=str(error), allowed="an object in JSON") from None
        if isinstance(value, dict) and kind:
            value.setdefault("kind", kind)
        try:
            found.append(TaskBody.model_validate(value).new(store))
        except ValidationError as error:
            wrong = invalid_input(error.errors(include_url=False), value)
            raise InvalidInput(
                f"line {number}: {wrong.where}", got=wrong.got, allowed=wrong.allowed
            ) from None
    if not found:
        raise InvalidInput(
            file, got="no lines", allowed='lines such as {"prompt": "…", "responses": ["…", "…"]}'
        )
    return found


def add_all(store: Store, project: str, tasks: Sequence[NewTask]) -> int:
    """Add any number of tasks to a project, and return how many of them are new.

    Raises:
        InvalidInput: a task does not fit the project.
    """
    parts = [tasks[start : start + MAX_ITEMS] for start in range(0, len(tasks), MAX_ITEMS)]
    return sum(added.new for part in parts for added in store.tasks.add(project, part))
