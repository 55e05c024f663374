"""What people hand in, skip, revise, withdraw and decide: each is an entry of the log.

Rows are locked in the order person, task, end of the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairlead.errors import Conflict, InvalidInput, NotFound, PermissionDenied
from services.feedback.store.base import Connection
from services.feedback.store.canonical import drawn
from services.feedback.store.context import Context
from services.feedback.store.judged import COUNTING, HANDED_IN, Entry, Ranking, Receipt, Said
from services.feedback.store.leases import has_place, lock_tasks, require_assignment
from services.feedback.store.limits import check_text, check_word
from services.feedback.store.log import append, by_request, request_key, require_entry
from services.feedback.store.people import require_active, require_person
from services.feedback.store.projects import require_project
from services.feedback.store.records import JUDGE, Assignment, Person, Task
from services.feedback.store.tasks import require_task, settle

_PEOPLE_OF_AUDIT = 2
"""People who get a task on which a judge is audited, at least."""
_SKIPS_FOR_REVIEW = 3
"""Skips of a task for one reason after which a reviewer looks at it."""


class Judgments:
    """What people say."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def hand_in(self, assignment: str, person: str, said: Said, *, request: str | None = None) -> Receipt:
        """Keep what a person says about a task, and close the task if it has its judgments.

        It is on the disk when this returns. The same request, or another for the same assignment, returns the
        first receipt and writes nothing. A judgment whose lease has ended counts as usual while its place is
        free; otherwise it is kept as late. A person who was paused meanwhile may hand in.

        Args:
            assignment: the id.
            person: its person.
            said: a ranking or a text, by the kind of the task.
            request: idempotency key of the client.

        Raises:
            Conflict: the task was skipped, or its texts are erased, or the request was another's.
            InvalidInput: what was said does not fit the task, or is too long.
            NotFound: the person has no such assignment.
        """
        key = request_key(person, request)
        with self._context.database.writing() as connection:
            someone = require_person(connection, person)
            known = require_assignment(connection, assignment, person)
            if before := _handed_in(connection, known, key):
                return before
            task = require_task(connection, known.task, lock=True)
            return self._keep(connection, someone, (known, task), said, key)

    def hand_in_many(self, person: str, judgments: Sequence[tuple[str, Said]]) -> list[Receipt]:
        """Keep what a person says about several assignments: all of it or nothing. See `hand_in`.

        Raises:
            Conflict: an assignment was skipped, or its texts are erased.
            InvalidInput: what was said does not fit a task, or an assignment is there twice; names the place.
            NotFound: the person has no such assignment.
        """
        found: list[Receipt] = []
        with self._context.database.writing() as connection:
            someone = require_person(connection, person)
            known = [require_assignment(connection, assignment, person) for assignment, _ in judgments]
            tasks = lock_tasks(connection, [one.task for one in known])
            seen = set[str]()
            for place, (one, (_, said)) in enumerate(zip(known, judgments, strict=True)):
                if one.id in seen:
                    raise InvalidInput(f"judgments[{place}].assignment", got=one.id, allowed="each once")
                seen.add(one.id)
                try:
                    found.append(
                        _handed_in(connection, one, None)
                        or self._keep(connection, someone, (one, tasks[one.task]), said, None)
                    )
                except InvalidInput as error:
                    where = f"judgments[{place}].{error.where}"
                    raise InvalidInput(where, got=error.got, allowed=error.allowed) from error
        return found

    def _keep(
        self,
        connection: Connection,
        someone: Person,
        work: tuple[Assignment, Task],
        said: Said,
        key: str | None,
    ) -> Receipt:
        """Keep what is said about a locked task."""
        known, task = work
        now = self._context.now()
        if known.state == "skipped":
            raise Conflict(f"assignment {known.id} was skipped: {known.reason}")
        if task.prompt is None:
            raise Conflict(f"the texts of assignment {known.id} are erased")
        body = said.checked(task, self._context.limits) | _shown(known)
        late = task.state != "open" or (
            known.until <= now and not has_place(connection, task, someone.id, now)
        )
        connection.run(
            "UPDATE assignment SET state = :state WHERE id = :id",
            state="late" if late else "done",
            id=known.id,
        )
        connection.run("DELETE FROM draft WHERE assignment = :id", id=known.id)
        if someone.kind == JUDGE and not late:
            self._draw_for_audit(connection, task)
        settle(connection, [task.id])
        kind = "judgment" if isinstance(said, Ranking) else "writing"
        fields = {"kind": kind, "task": task.id, "person": someone.id, "at": now, "late": late}
        return _receipt(append(connection, fields, body, request=key))

    def _draw_for_audit(self, connection: Connection, task: Task) -> None:
        """Give a locked task that a judge has labeled to people too, by the share of the project.

        The judge's judgment then takes no place of theirs, and at least two people get the task, so that the
        judge can be compared with them and they with one another. Nothing that they see says so.
        """
        share = require_project(connection, task.project).settings.audit_share
        if task.why == "gold" or not drawn(self._context.secret, share, "audit", task.id):
            return
        connection.run(
            "UPDATE task SET overlap = :overlap WHERE id = :task",
            task=task.id,
            overlap=max(task.overlap + 1, _judges_of(connection, task.id) + _PEOPLE_OF_AUDIT),
        )

    def skip(
        self, assignment: str, person: str, reason: str, *, note: str = "", request: str | None = None
    ) -> Receipt:
        """Give a task back for good; its place is free again. The third skip for one reason marks it for
        review.

        Args:
            assignment: the id.
            person: its person.
            reason: a word, such as `unclear`.
            note: what the person adds.
            request: idempotency key of the client.

        Raises:
            Conflict: it was handed in.
            InvalidInput: the reason or the note is invalid.
            NotFound: the person has no such assignment.
        """
        check_word("reason", reason)
        check_text("note", note, self._context.limits.note_characters, empty=True)
        key = request_key(person, request)
        now = self._context.now()
        with self._context.database.writing() as connection:
            require_person(connection, person)
            known = require_assignment(connection, assignment, person)
            before = by_request(connection, key)
            if before is not None and (before.kind != "skip" or before.task != known.task):
                raise _other_request(before)
            task = require_task(connection, known.task, lock=True)
            if known.state == "skipped":
                return _receipt(_entry_of_skip(connection, known), repeated=True)
            if known.state != "leased":
                raise Conflict(
                    f"assignment {assignment} is {known.state}: it cannot be skipped; revise or withdraw it"
                )
            connection.run(
                "UPDATE assignment SET state = 'skipped', reason = :reason WHERE id = :id",
                reason=reason,
                id=assignment,
            )
            connection.run("DELETE FROM draft WHERE assignment = :id", id=assignment)
            connection.run(
                """
                UPDATE task SET review = :reason WHERE id = :task AND review IS NULL AND :limit <= (
                  SELECT COUNT(*) FROM assignment
                  WHERE assignment.task = task.id AND assignment.state = 'skipped'
                    AND assignment.reason = :reason
                )
                """,
                task=task.id,
                reason=reason,
                limit=_SKIPS_FOR_REVIEW,
            )
            # A note about erased texts could quote them.
            said = {"reason": reason, "note": note if task.prompt else ""}
            fields = {"kind": "skip", "task": task.id, "person": person, "at": now}
            return _receipt(append(connection, fields, said, request=key))

    def revise(self, entry: str, person: str, said: Said, *, request: str | None = None) -> Receipt:
        """Replace a judgment by another of the same person, as a new entry.

        Args:
            entry: the judgment, or its newest revision.
            person: its author.
            said: what counts from now on.
            request: idempotency key of the client.

        Raises:
            Conflict: it was replaced or withdrawn before, its texts are erased, or the time to revise has
                passed.
            InvalidInput: what was said does not fit the task, or is too long.
            NotFound: there is no such judgment of this person.
            PermissionDenied: the person is not active.
        """
        key = request_key(person, request)
        now = self._context.now()
        with self._context.database.writing() as connection:
            require_active(require_person(connection, person))
            if before := by_request(connection, key):
                return _same(before, "revision", entry)
            known, task = self._correctable(connection, entry, person, now)
            body = said.checked(task, self._context.limits)
            shown = {name: (known.body or {}).get(name) for name in ("shown", "guideline")}
            fields = {
                **{"kind": "revision", "task": task.id, "person": person, "at": now},
                **{"late": known.late, "replaces": known.id},
            }
            return _receipt(append(connection, fields, body | shown, request=key))

    def withdraw(self, entry: str, person: str, *, request: str | None = None) -> Receipt:
        """Replace a judgment by nothing, as a new entry; its place is free again for somebody else.

        Args:
            entry: the judgment, or its newest revision.
            person: its author.
            request: idempotency key of the client.

        Raises:
            Conflict: it was replaced or withdrawn before, or the time to withdraw has passed.
            NotFound: there is no such judgment of this person.
            PermissionDenied: the person is not active.
        """
        key = request_key(person, request)
        now = self._context.now()
        with self._context.database.writing() as connection:
            require_active(require_person(connection, person))
            if before := by_request(connection, key):
                return _same(before, "withdrawal", entry)
            known, task = self._correctable(connection, entry, person, now)
            connection.run(
                "UPDATE assignment SET state = 'withdrawn' WHERE task = :task AND person = :person",
                task=task.id,
                person=person,
            )
            settle(connection, [task.id])
            fields = {
                **{"kind": "withdrawal", "task": task.id, "person": person, "at": now},
                **{"late": known.late, "replaces": known.id},
            }
            return _receipt(append(connection, fields, {}, request=key))

    def adjudicate(self, task: str, person: str, said: Said, *, request: str | None = None) -> Receipt:
        """Record the decision of a reviewer about a task; it replaces the decision before, and no judgment.

        Raises:
            Conflict: the texts of the task are erased.
            InvalidInput: what was said does not fit the task, or is too long.
            NotFound: there is no such task.
            PermissionDenied: the person is not an active reviewer or lead.
        """
        key = request_key(person, request)
        now = self._context.now()
        with self._context.database.writing() as connection:
            someone = require_active(require_person(connection, person))
            if someone.role not in ("reviewer", "lead"):
                raise PermissionDenied(f"a {someone.role} does not adjudicate; reviewers and leads do")
            known = require_task(connection, task, lock=True)
            if (before := by_request(connection, key)) is not None:
                if before.kind != "adjudication" or before.task != task:
                    raise _other_request(before)
                return _receipt(before, repeated=True)
            if known.prompt is None:
                raise Conflict(f"the texts of task {task} are erased")
            body = said.checked(known, self._context.limits)
            newest = connection.one(
                "SELECT id FROM entry WHERE task = :task AND kind = 'adjudication' ORDER BY seq DESC LIMIT 1",
                task=task,
            )
            fields = {
                **{"kind": "adjudication", "task": task, "person": person, "at": now},
                **{"replaces": None if newest is None else newest["id"]},
            }
            return _receipt(append(connection, fields, body, request=key))

    def _correctable(self, connection: Connection, entry: str, person: str, now: float) -> tuple[Entry, Task]:
        """Return an entry that its author may replace, and its task, locked."""
        known = require_entry(connection, entry)
        if known.person != person or known.kind not in COUNTING or known.task is None:
            raise NotFound(f"no judgment {entry!r} of this person")
        task = require_task(connection, known.task, lock=True)
        newer = connection.one("SELECT id, kind FROM entry WHERE replaces = :id", id=entry)
        if newer is not None:
            raise Conflict(f"entry {entry} was replaced by the {newer['kind']} {newer['id']}")
        if task.prompt is None or known.body is None:
            raise Conflict(f"the texts of entry {entry} are erased")
        names = ", ".join(f"'{kind}'" for kind in HANDED_IN)
        first = connection.one(
            f"SELECT at FROM entry WHERE task = :task AND person = :person AND kind IN ({names})",
            task=task.id,
            person=person,
        )
        window = require_project(connection, task.project).settings.revise_seconds
        if first is None or now - first["at"] > window:
            raise Conflict(f"entry {entry} can be changed only within {window:g} s after it was handed in")
        return known, task


def _judges_of(connection: Connection, task: str) -> int:
    """Return how many judges have labeled a task in time."""
    row = connection.one(
        """
        SELECT COUNT(*) AS number FROM assignment JOIN person ON person.id = assignment.person
        WHERE assignment.task = :task AND assignment.state = 'done' AND person.kind = 'judge'
        """,
        task=task,
    )
    return int(row["number"]) if row else 0


def _handed_in(connection: Connection, assignment: Assignment, key: str | None) -> Receipt | None:
    """Return the receipt of what was handed in before.

    Raises:
        Conflict: the request has written something else.
    """
    before = by_request(connection, key)
    if before is not None and (before.task != assignment.task or before.kind not in HANDED_IN):
        raise _other_request(before)
    if before is None:
        names = ", ".join(f"'{kind}'" for kind in HANDED_IN)
        row = connection.one(
            f"SELECT id FROM entry WHERE task = :task AND person = :person AND kind IN ({names})",
            task=assignment.task,
            person=assignment.person,
        )
        before = None if row is None else require_entry(connection, row["id"])
    return None if before is None else _receipt(before, repeated=True)


def _entry_of_skip(connection: Connection, assignment: Assignment) -> Entry:
    row = connection.one(
        "SELECT id FROM entry WHERE task = :task AND person = :person AND kind = 'skip'",
        task=assignment.task,
        person=assignment.person,
    )
    if row is None:
        raise NotFound(f"no entry for the skip of assignment {assignment.id}")
    return require_entry(connection, row["id"])


def _same(before: Entry, kind: str, replaced: str) -> Receipt:
    if before.kind != kind or before.replaces != replaced:
        raise _other_request(before)
    return _receipt(before, repeated=True)


def _other_request(before: Entry) -> InvalidInput:
    return InvalidInput("request", got=f"the id of a request for another {before.kind}", allowed="a new id")


def _shown(assignment: Assignment) -> dict[str, Any]:
    return {"shown": list(assignment.shown), "guideline": assignment.guideline}


def _receipt(entry: Entry, *, repeated: bool = False) -> Receipt:
    return Receipt(entry=entry.id, seq=entry.seq, late=entry.late, repeated=repeated)
