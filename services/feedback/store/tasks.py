"""Tasks with their prompts and answers: import, change, and what reviewers have to look at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from fairlead.errors import InvalidInput, NotFound
from services.feedback.store.base import Connection, Row, listed
from services.feedback.store.canonical import answer_id, canonical, drawn, sha256, turns_text
from services.feedback.store.context import Context, new_id
from services.feedback.store.limits import (
    Limits,
    check_choice,
    check_identifier,
    check_object,
    check_text,
    check_whole,
)
from services.feedback.store.people import require_people
from services.feedback.store.projects import require_project
from services.feedback.store.prompts import add_prompt, checked_prompt
from services.feedback.store.records import (
    REASONS,
    TASK_KINDS,
    Added,
    Answer,
    NewTask,
    Project,
    Task,
)

_MAX_PRIORITY = 1_000_000
_MAX_ROUND = 1_000_000
_PROVENANCE = ("run", "weight_version", "model_digest", "request_id")


class Tasks:
    """The tasks of the store."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def add(self, project: str, tasks: Sequence[NewTask]) -> list[Added]:
        """Add tasks in one transaction. Content that is there already keeps its id, overlap and priority.

        The content of a task is its kind, prompt and answers, with `why` and `round`: an audit of a task, or
        the same answers in another round, are tasks of their own.

        Args:
            project: id of the project.
            tasks: in the order in which they are given out.

        Raises:
            InvalidInput: a field is invalid or too long; nothing is added then.
            NotFound: there is no such project or author.
        """
        limits = self._context.limits
        if len(tasks) > limits.tasks:
            raise InvalidInput(
                "tasks", got=f"{len(tasks)} tasks", allowed=f"at most {limits.tasks} in one call"
            )
        now = self._context.now()
        with self._context.database.writing() as connection:
            # Locked, so that numbers are unique and two imports of the same content meet.
            known = require_project(connection, project, lock=True)
            for index, task in enumerate(tasks):
                _check(task, known, index, limits)
            newest = connection.one(
                "SELECT COALESCE(MAX(number), 0) AS number FROM task WHERE project = :project",
                project=project,
            )
            number = int(newest["number"]) if newest else 0
            _add_texts(connection, tasks, now)
            found = []
            for task in tasks:
                added = self._add(connection, known, task, (number + 1, now))
                number += added.new
                found.append(added)
        return found

    def get(self, task: str) -> Task:
        """Return a task.

        Raises:
            NotFound: there is none.
        """
        with self._context.database.reading() as connection:
            return require_task(connection, task)

    def page(
        self,
        project: str,
        *,
        after: int = 0,
        state: str | None = None,
        review: bool = False,
        why: str | None = None,
    ) -> list[Task]:
        """Return tasks in the order of their numbers, at most a page of them.

        Args:
            project: id of the project.
            after: number of the last task of the page before.
            state: only `open`, `closed` or `withdrawn` ones.
            review: only those that a reviewer has to look at.
            why: only those that were chosen for this reason.
        """
        given = {name: value for name, value in (("state", state), ("why", why)) if value is not None}
        with self._context.database.reading() as connection:
            rows = connection.run(
                "SELECT * FROM task WHERE project = :project AND number > :after"
                + "".join(f" AND {name} = :{name}" for name in given)
                + (" AND review IS NOT NULL" if review else "")
                + " ORDER BY number LIMIT :limit",
                project=project,
                after=after,
                limit=self._context.limits.page,
                **given,
            )
            return tasks_of(connection, rows)

    def answers(self, task: str) -> list[Answer]:
        """Return the answers of a task with all that is known about them, in the order of import."""
        with self._context.database.reading() as connection:
            known = require_task(connection, task)
            found = answers_of(connection, known.answers)
        return [found[answer] for answer in known.answers]

    def change(self, task: str, changes: Mapping[str, object]) -> Task:
        """Change a task. One that has its judgments closes, one that wants more opens.

        Args:
            task: the id.
            changes: new values of some of `priority`, `overlap`, `state` (`open` or `withdrawn`) and `review`
                (None: a reviewer has looked at it).

        Raises:
            InvalidInput: a value is invalid.
            NotFound: there is no such task.
        """
        for name in changes:
            check_choice("field", name, ("priority", "overlap", "state", "review"))
        if "priority" in changes:
            check_whole("priority", changes["priority"], -_MAX_PRIORITY, _MAX_PRIORITY)
        if "overlap" in changes:
            check_whole("overlap", changes["overlap"], 1, self._context.limits.overlap)
        if "state" in changes:
            check_choice("state", changes["state"], ("open", "withdrawn"))
        if changes.get("review") is not None:
            raise InvalidInput("review", got=changes["review"], allowed="None")
        with self._context.database.writing() as connection:
            known = require_task(connection, task, lock=True)
            if changes.get("state") == "open" and known.prompt is None:
                raise InvalidInput(
                    "state", got="open", allowed="withdrawn: the texts of this task are erased"
                )
            values = {name: getattr(known, name) for name in ("priority", "overlap", "state", "review")}
            connection.run(
                """
                UPDATE task SET priority = :priority, overlap = :overlap, state = :state, review = :review
                WHERE id = :id
                """,
                id=task,
                **(values | dict(changes)),
            )
            settle(connection, [task])
            return require_task(connection, task)

    def _add(self, connection: Connection, project: Project, task: NewTask, made: tuple[int, float]) -> Added:
        number, now = made
        prompt = sha256(turns_text(task.prompt.turns))
        answers = [answer_id(prompt, answer.text) for answer in task.answers]
        digest = sha256(canonical([project.id, task.kind, prompt, sorted(answers), task.why, task.round]))
        known = connection.one("SELECT id FROM task WHERE digest = :digest", digest=digest)
        if known is not None:
            return Added(known["id"], new=False)
        settings = project.settings
        shared = drawn(self._context.secret, settings.shared_share, "shared", digest)
        found = new_id()
        connection.run(
            """
            INSERT INTO task (id, project, number, digest, kind, prompt, overlap, priority, why, round, gold,
              state, made)
            VALUES (:id, :project, :number, :digest, :kind, :prompt, :overlap, :priority, :why, :round, :gold,
              'open', :made)
            """,
            id=found,
            project=project.id,
            number=number,
            digest=digest,
            kind=task.kind,
            prompt=prompt,
            overlap=task.overlap or (settings.overlap if shared else 1),
            priority=task.priority,
            why=task.why,
            round=task.round,
            gold=None if task.gold is None else canonical(dict(task.gold)),
            made=now,
        )
        connection.run_many(
            "INSERT INTO task_answer (task, place, answer) VALUES (:task, :place, :answer)",
            [{"task": found, "place": place, "answer": answer} for place, answer in enumerate(answers)],
        )
        return Added(found, new=True)


def require_task(connection: Connection, task: str, *, lock: bool = False) -> Task:
    """Return a task.

    Args:
        connection: within a transaction.
        task: the id.
        lock: whether others have to wait until the transaction ends.

    Raises:
        NotFound: there is none.
    """
    row = connection.one("SELECT * FROM task WHERE id = :id" + (" FOR UPDATE" if lock else ""), id=task)
    if row is None:
        raise NotFound(f"no task {task!r}")
    return tasks_of(connection, [row])[0]


def tasks_of(connection: Connection, rows: Sequence[Row]) -> list[Task]:
    """Return the tasks of rows, with their answers."""
    if not rows:
        return []
    names, values = listed("task", [row["id"] for row in rows])
    answers: dict[str, list[str]] = {}
    for row in connection.run(
        f"SELECT task, answer FROM task_answer WHERE task IN ({names}) ORDER BY task, place", **values
    ):
        answers.setdefault(row["task"], []).append(row["answer"])
    fields = [name for name in Task.__dataclass_fields__ if name not in ("answers", "gold")]
    return [
        Task(
            **{name: row[name] for name in fields},
            answers=tuple(answers.get(row["id"], ())),
            gold=None if row["gold"] is None else json.loads(row["gold"]),
        )
        for row in rows
    ]


def answers_of(connection: Connection, ids: Iterable[str]) -> dict[str, Answer]:
    """Return answers by their id."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    names, values = listed("answer", wanted)
    fields = [name for name in Answer.__dataclass_fields__ if name not in ("text", "sampling")]
    return {
        row["id"]: Answer(
            **{name: row[name] for name in fields},
            text=json.loads(row["text"]),
            sampling=json.loads(row["sampling"]),
        )
        for row in connection.run(f"SELECT * FROM answer WHERE id IN ({names})", **values)
    }


def settle(connection: Connection, tasks: Sequence[str]) -> None:
    """Close tasks that have their judgments, and open closed ones that want more. Their rows must be locked.

    Gold questions never close: everybody may be asked.
    """
    statement = """
        UPDATE task SET state = CASE
          WHEN why <> 'gold' AND overlap <= (
            SELECT COUNT(*) FROM assignment WHERE assignment.task = task.id AND assignment.state = 'done'
          ) THEN 'closed' ELSE 'open' END
        WHERE id = :task AND state <> 'withdrawn'
        """
    for task in tasks:
        connection.run(statement, task=task)


def _add_texts(connection: Connection, tasks: Sequence[NewTask], now: float) -> None:
    """Add prompts and answers, in the order of their ids, so that two imports cannot wait for each other."""
    require_people(connection, {author for task in tasks for author in _authors(task)})
    prompts = {sha256(turns_text(task.prompt.turns)): task for task in tasks}
    answers = {}
    for _, task in sorted(prompts.items(), key=lambda item: item[0]):
        add_prompt(connection, task.prompt, now)
    for task in tasks:
        prompt = sha256(turns_text(task.prompt.turns))
        answers.update({answer_id(prompt, answer.text): (prompt, answer) for answer in task.answers})
    connection.run_many(
        """
        INSERT INTO answer (id, prompt, text, author, run, weight_version, model_digest, sampling,
          request_id, made)
        VALUES (:id, :prompt, :text, :author, :run, :weight_version, :model_digest, :sampling,
          :request_id, :made)
        ON CONFLICT (id) DO NOTHING
        """,
        [
            {
                **{name: getattr(answer, name) for name in ("author", *_PROVENANCE)},
                "id": found,
                "prompt": prompt,
                "text": canonical(answer.text),
                "sampling": canonical(dict(answer.sampling)),
                "made": now,
            }
            for found, (prompt, answer) in sorted(answers.items(), key=lambda item: item[0])
        ],
    )


def _authors(task: NewTask) -> set[str]:
    return {author for author in (task.prompt.author, *(answer.author for answer in task.answers)) if author}


def _check(task: NewTask, project: Project, index: int, limits: Limits) -> None:
    where = f"tasks[{index}]"
    settings = project.settings
    check_choice(f"{where}.kind", task.kind, TASK_KINDS)
    check_choice(f"{where}.kind", task.kind, settings.kinds)
    check_choice(f"{where}.why", task.why, REASONS)
    check_whole(f"{where}.priority", task.priority, -_MAX_PRIORITY, _MAX_PRIORITY)
    check_whole(f"{where}.round", task.round, 0, _MAX_ROUND)
    if task.overlap is not None:
        check_whole(f"{where}.overlap", task.overlap, 1, limits.overlap)
    if (task.gold is not None) != (task.why == "gold"):
        raise InvalidInput(f"{where}.gold", got=task.gold, allowed='an object, and only with why="gold"')
    if task.gold is not None:
        check_object(f"{where}.gold", task.gold, limits.details_bytes)
    checked_prompt(task.prompt, f"{where}.prompt", limits)
    low, high = {
        "rank": (settings.min_answers, settings.max_answers),
        "pair": (2, 2),
        "edit": (1, settings.max_answers),
    }.get(task.kind, (0, 0))
    if not low <= (count := len(task.answers)) <= high:
        allowed = f"{low} to {high}" if low < high else "none" if not high else str(high)
        raise InvalidInput(f"{where}.answers", got=f"{count} answers", allowed=f"{allowed} for {task.kind}")
    texts = set()
    for number, answer in enumerate(task.answers):
        name = f"{where}.answers[{number}]"
        texts.add(check_text(f"{name}.text", answer.text, limits.text_characters, empty=True))
        for field in _PROVENANCE:
            check_identifier(f"{name}.{field}", getattr(answer, field), empty=True)
        check_object(f"{name}.sampling", answer.sampling, limits.details_bytes)
    if len(texts) < len(task.answers):
        raise InvalidInput(f"{where}.answers", got="two equal texts", allowed="answers that differ")
