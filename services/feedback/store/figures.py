"""Counts for pages and metrics. Agreement and bias are computed from `Snapshots.judged`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.feedback.store.context import Context


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a project."""

    tasks: Mapping[str, int]
    """Tasks by state, without gold questions."""
    wanted: int
    """Judgments that open tasks still want, those in work included."""
    leases: int
    """Tasks in work."""
    expired: int
    """Leases that have ended without a judgment."""
    done: int
    """Judgments in time, without gold questions."""
    late: int
    """Judgments that came late."""
    withdrawn: int
    """Judgments that were withdrawn."""
    skipped: Mapping[str, int]
    """Skips by reason."""
    review: int
    """Tasks that a reviewer has to look at."""


@dataclass(frozen=True, slots=True)
class LabelerCounts:
    """What a person has done in a project."""

    person: str
    """Id of the person."""
    leased: int
    """Tasks in work, ended leases included."""
    done: int
    """Judgments in time, gold questions included."""
    late: int
    """Judgments that came late."""
    skipped: int
    """Tasks skipped."""
    withdrawn: int
    """Judgments withdrawn."""
    revised: int
    """Revisions."""
    last: float | None
    """When the person last wrote an entry."""


@dataclass(frozen=True, slots=True)
class OwnCounts:
    """What a person has handed in, as they see it themselves."""

    done: int
    """Judgments handed in, late and withdrawn ones too."""
    lately: int
    """Of these, since the time that was asked for."""


class Figures:
    """Counts."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def progress(self, project: str) -> Progress:
        """Return the state of a project."""
        asked = {"project": project, "now": self._context.now()}
        with self._context.database.reading() as connection:
            tasks = connection.run(
                """
                SELECT state, COUNT(*) AS number, COUNT(review) AS review,
                  COALESCE(SUM(overlap), 0) AS overlap
                FROM task WHERE project = :project AND why <> 'gold' GROUP BY state ORDER BY state
                """,
                project=project,
            )
            states = connection.run(
                """
                SELECT assignment.state, assignment.reason, COUNT(*) AS number,
                  SUM(CASE WHEN assignment.until > :now THEN 1 ELSE 0 END) AS unexpired,
                  SUM(CASE WHEN task.state = 'open' THEN 1 ELSE 0 END) AS still_open
                FROM assignment JOIN task ON task.id = assignment.task
                WHERE task.project = :project AND task.why <> 'gold'
                GROUP BY assignment.state, assignment.reason
                ORDER BY assignment.state, assignment.reason
                """,
                **asked,
            )
        counts = {row["state"]: row for row in states if row["state"] != "skipped"}
        number = {name: int(row["number"]) for name, row in counts.items()}
        leased = counts.get("leased", {"number": 0, "unexpired": 0})
        opened = next((row for row in tasks if row["state"] == "open"), {"overlap": 0})
        done_open = int(counts["done"]["still_open"]) if "done" in counts else 0
        return Progress(
            tasks={row["state"]: int(row["number"]) for row in tasks},
            wanted=int(opened["overlap"]) - done_open,
            leases=int(leased["unexpired"]),
            expired=int(leased["number"]) - int(leased["unexpired"]),
            done=number.get("done", 0),
            late=number.get("late", 0),
            withdrawn=number.get("withdrawn", 0),
            skipped={row["reason"]: int(row["number"]) for row in states if row["state"] == "skipped"},
            review=sum(int(row["review"]) for row in tasks),
        )

    def labelers(self, project: str) -> list[LabelerCounts]:
        """Return what each person has done in a project, by id."""
        with self._context.database.reading() as connection:
            states = connection.run(
                """
                SELECT assignment.person, assignment.state, COUNT(*) AS number
                FROM assignment JOIN task ON task.id = assignment.task
                WHERE task.project = :project GROUP BY assignment.person, assignment.state
                """,
                project=project,
            )
            written = connection.run(
                """
                SELECT entry.person, MAX(entry.at) AS last,
                  SUM(CASE WHEN entry.kind = 'revision' THEN 1 ELSE 0 END) AS revised
                FROM entry JOIN task ON task.id = entry.task
                WHERE task.project = :project AND entry.person IS NOT NULL GROUP BY entry.person
                """,
                project=project,
            )
        counts: dict[str, dict[str, int]] = {}
        for row in states:
            counts.setdefault(row["person"], {})[row["state"]] = int(row["number"])
        log = {row["person"]: row for row in written}
        names = ("leased", "done", "late", "skipped", "withdrawn")
        return [
            LabelerCounts(
                person=person,
                **{name: counts.get(person, {}).get(name, 0) for name in names},
                revised=int(log[person]["revised"]) if person in log else 0,
                last=float(log[person]["last"]) if person in log else None,
            )
            for person in sorted(counts.keys() | log.keys())
        ]

    def own(self, project: str, person: str, *, since: float) -> OwnCounts:
        """Return what a person has handed in for a project, in all and since a time."""
        with self._context.database.reading() as connection:
            row = connection.one(
                """
                SELECT COUNT(*) AS done,
                  COALESCE(SUM(CASE WHEN entry.at >= :since THEN 1 ELSE 0 END), 0) AS lately
                FROM entry JOIN task ON task.id = entry.task
                WHERE entry.person = :person AND task.project = :project
                  AND entry.kind IN ('judgment', 'writing')
                """,
                project=project,
                person=person,
                since=since,
            )
        return OwnCounts(int(row["done"]), int(row["lately"])) if row else OwnCounts(0, 0)

    def hours(self, project: str, *, since: float) -> dict[int, int]:
        """Return the judgments handed in by hour since 1970, from a time on; hours without one are absent."""
        with self._context.database.reading() as connection:
            rows = connection.run(
                """
                SELECT entry.at FROM entry JOIN task ON task.id = entry.task
                WHERE task.project = :project AND entry.kind IN ('judgment', 'writing') AND entry.at >= :since
                ORDER BY entry.seq
                """,
                project=project,
                since=since,
            )
        found: dict[int, int] = {}
        for row in rows:
            hour = int(row["at"] // 3600)
            found[hour] = found.get(hour, 0) + 1
        return found
