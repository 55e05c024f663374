"""The rounds of runs that learn from a project: what runs have reported, and how much people said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairlead.errors import InvalidInput
from services.feedback.store.canonical import canonical
from services.feedback.store.context import Context
from services.feedback.store.judged import COUNTING
from services.feedback.store.limits import (
    check_choice,
    check_identifier,
    check_object,
    check_text,
    check_whole,
)
from services.feedback.store.projects import require_project
from services.feedback.store.records import JUDGE, RANKED_KINDS

STATES = ("working", "stopped", "done")
"""States of a round."""
_MOST = 1_000_000
_MESSAGE_CHARACTERS = 10_000
_COUNTING = ", ".join(f"'{kind}'" for kind in COUNTING)
_RANKED = ", ".join(f"'{kind}'" for kind in RANKED_KINDS)


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a run reported about a round."""

    run: str
    """Name of the run."""
    number: int
    """From 0."""
    step: str
    """Step that it has begun, such as `judgments` or `reward_model`."""
    state: str
    """One of STATES."""
    message: str
    """Why it has stopped; empty otherwise."""
    wanted: int | None
    """Judgments, without those of held-out people, that it waits for."""
    gate: Mapping[str, Any] | None
    """What the gate found; None before."""
    at: float
    """When it reported something last."""


@dataclass(frozen=True, slots=True)
class RoundCounts:
    """What people were asked and said in a round."""

    number: int
    """From 0."""
    tasks: int
    """Tasks, without gold questions."""
    open: int
    """Those that still want a judgment."""
    train: int
    """Rankings that may be trained on, without those of judges."""
    heldout: int
    """Rankings of held-out people."""
    judges: int
    """Rankings of judges."""


class Rounds:
    """The rounds of the store."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def report(self, project: str, run: str, number: int, changes: Mapping[str, object]) -> RoundReport:
        """Keep what a run reports about a round; what it does not name stays as it was.

        Args:
            project: id of the project.
            run: name of the run.
            number: of the round.
            changes: new values of some of `step`, `state`, `message`, `wanted` and `gate`.

        Raises:
            InvalidInput: a value is invalid.
            NotFound: there is no such project.
        """
        check_identifier("run", run)
        check_whole("number", number, 0, _MOST)
        for name, value in changes.items():
            self._check(name, value)
        key = {"project": project, "run": run, "number": number}
        with self._context.database.writing() as connection:
            require_project(connection, project, lock=True)
            known = connection.one(
                "SELECT body FROM round_report WHERE project = :project AND run = :run AND number = :number",
                **key,
            )
            first = {"step": "", "state": "working", "message": "", "wanted": None, "gate": None}
            body = first | (json.loads(known["body"]) if known else {}) | dict(changes)
            (row,) = connection.run(
                """
                INSERT INTO round_report (project, run, number, body, at)
                VALUES (:project, :run, :number, :body, :at)
                ON CONFLICT (project, run, number) DO UPDATE SET body = excluded.body, at = excluded.at
                RETURNING *
                """,
                **key,
                body=canonical(body),
                at=self._context.now(),
            )
        return RoundReport(run=run, number=number, at=row["at"], **body)

    def reports(self, project: str) -> list[RoundReport]:
        """Return what runs have reported about the rounds of a project, by run and number."""
        with self._context.database.reading() as connection:
            rows = connection.run(
                "SELECT * FROM round_report WHERE project = :project ORDER BY run, number", project=project
            )
        return [
            RoundReport(run=row["run"], number=row["number"], at=row["at"], **json.loads(row["body"]))
            for row in rows
        ]

    def counts(self, project: str) -> list[RoundCounts]:
        """Return what people were asked and said in each round of a project, without gold questions."""
        with self._context.database.reading() as connection:
            tasks = connection.run(
                f"""
                SELECT round, COUNT(*) AS tasks, SUM(CASE WHEN state = 'open' THEN 1 ELSE 0 END) AS open
                FROM task WHERE project = :project AND why <> 'gold' AND kind IN ({_RANKED})
                GROUP BY round ORDER BY round
                """,
                project=project,
            )
            said = connection.run(
                f"""
                SELECT task.round,
                  CASE WHEN person.kind = '{JUDGE}' THEN 'judges' ELSE person.cohort END AS whose,
                  COUNT(*) AS number
                FROM entry JOIN task ON task.id = entry.task JOIN person ON person.id = entry.person
                JOIN content ON content.entry = entry.id
                WHERE entry.kind IN ({_COUNTING}) AND task.project = :project AND task.why <> 'gold'
                  AND task.kind IN ({_RANKED})
                  AND NOT EXISTS (SELECT 1 FROM entry AS later WHERE later.replaces = entry.id)
                GROUP BY 1, 2
                """,
                project=project,
            )
        number = {(row["round"], row["whose"]): int(row["number"]) for row in said}
        return [
            RoundCounts(
                number=row["round"],
                tasks=int(row["tasks"]),
                open=int(row["open"]),
                **{whose: number.get((row["round"], whose), 0) for whose in ("train", "heldout", "judges")},
            )
            for row in tasks
        ]

    def of_snapshots(self) -> dict[str, int]:
        """Return the round of each snapshot whose judgments are all of one round, by digest.

        What its filter asked for does not say it: the same list may have been asked for in another way.
        """
        with self._context.database.reading() as connection:
            rows = connection.run(
                """
                SELECT member.snapshot, MIN(task.round) AS first FROM member
                JOIN entry ON entry.id = member.entry JOIN task ON task.id = entry.task
                GROUP BY member.snapshot HAVING MIN(task.round) = MAX(task.round)
                """
            )
        return {row["snapshot"]: row["first"] for row in rows}

    def _check(self, name: str, value: object) -> None:
        if name == "step":
            check_identifier(name, value)
        elif name == "state":
            check_choice(name, value, STATES)
        elif name == "message":
            check_text(name, value, _MESSAGE_CHARACTERS, empty=True)
        elif name == "wanted":
            check_whole(name, value, 0, _MOST)
        elif name == "gate":
            check_object(name, value, self._context.limits.details_bytes)
        else:
            raise InvalidInput("field", got=name, allowed="step, state, message, wanted or gate")
