"""Prompts of the deployed policy: what is kept of an exchange, which ones are left out, and what a reviewer
decides.

Texts come masked. Of exchanges that are left out only their number is kept, by day, API key and outcome.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fairlead.errors import Conflict
from fairlead.types import Message
from services.feedback.store.base import Connection, Row, listed
from services.feedback.store.canonical import canonical, drawn, keyed
from services.feedback.store.context import Context
from services.feedback.store.limits import check_choice, check_identifier, check_word
from services.feedback.store.prompts import (
    add_prompt,
    checked_prompt,
    prompt_from,
    require_prompt,
    screen_prompt,
)
from services.feedback.store.records import NewPrompt, Prompt

Outcome = Literal["kept", "not_drawn", "duplicate", "near_duplicate", "over_user", "over_key", "failed"]
"""What becomes of an exchange."""
_CANDIDATES = 50
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCollected:
    """A prompt to keep, after it was masked."""

    prompt: NewPrompt
    """In the state `new`."""
    user: str
    """The end user; empty if the request named none. Only a keyed hash is kept."""
    api_key: str
    """Id of the API key of the request; empty without keys."""
    request_id: str
    """Id of the request."""
    weight_versions: tuple[str, ...]
    """Weights that answered."""
    metadata: Mapping[str, str]
    """Of the request, masked."""
    masked: Mapping[str, int]
    """How much was masked, by kind."""
    exact: str
    """Mark of those that are the same."""
    prefix: str
    """Mark of those that begin the same; empty for a short text."""
    bands: tuple[str, ...]
    """Marks, of which similar texts share at least one."""
    signature: tuple[int, ...]
    """Numbers below 2³²: the share of equal ones of two prompts is their similarity."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept."""

    share: float
    """With which every exchange was drawn."""
    per_user: int
    """Most prompts of one end user of an API key."""
    per_key: int
    """Most prompts of an API key."""
    similarity: float
    """Least similarity of near-duplicates."""


@dataclass(frozen=True, slots=True)
class Collected:
    """A prompt that was collected."""

    prompt: Prompt
    """The prompt."""
    api_key: str
    """Id of the API key of the request."""
    weight_versions: tuple[str, ...]
    """Weights that answered."""
    metadata: Mapping[str, str]
    """Of the request, masked."""
    masked: Mapping[str, int]
    """How much was masked, by kind."""
    share: float
    """Probability with which it was drawn."""
    alike: int
    """Exchanges left out because they were like it. It represents (1 + alike) ÷ share exchanges."""
    reason: str | None
    """Why it was rejected."""


class CollectedPrompts:
    """Prompts of the deployed policy."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def draws(self, exchange: str, share: float) -> bool:
        """Return whether an exchange is drawn; always the same for the same id."""
        return drawn(self._context.secret, share, "exchange", exchange)

    def mark_secret(self) -> bytes:
        """Return the key of marks and signatures."""
        return keyed(self._context.secret, "likeness")

    def add(
        self,
        batch: str,
        exchanges: Sequence[NewCollected],
        bounds: Bounds,
        *,
        left_out: Mapping[tuple[str, Outcome], int],
    ) -> Counter[Outcome]:
        """Keep prompts within the bounds, in one transaction; return how many had which outcome.

        A batch of the same id again changes nothing.

        Args:
            batch: id of the batch.
            exchanges: masked.
            bounds: how much is kept.
            left_out: numbers of exchanges that were left out before, by API key and outcome.

        Raises:
            InvalidInput: a field is invalid or too long; nothing is kept then.
        """
        check_identifier("batch", batch)
        for index, one in enumerate(exchanges):
            checked_prompt(one.prompt, f"exchanges[{index}].prompt", self._context.limits)
            check_identifier(f"exchanges[{index}].api_key", one.api_key, empty=True)
            check_identifier(f"exchanges[{index}].request_id", one.request_id, empty=True)
        now = self._context.now()
        counts = Counter(dict(left_out))
        with self._context.database.writing() as connection:
            # One batch at a time: two near-duplicates must meet, and limits hold.
            connection.run("SELECT name FROM setting WHERE name = 'secret' FOR UPDATE")
            connection.run("DELETE FROM collected_batch WHERE at < :limit", limit=now - _DAY_SECONDS)
            if not connection.run(
                """
                INSERT INTO collected_batch (id, at) VALUES (:id, :at)
                ON CONFLICT (id) DO NOTHING RETURNING id
                """,
                id=batch,
                at=now,
            ):
                return Counter()
            for one in exchanges:
                counts[one.api_key, self._add(connection, one, bounds, now)] += 1
            day = time.strftime("%Y-%m-%d", time.gmtime(now))
            connection.run_many(
                """
                INSERT INTO collected_count (day, api_key, outcome, number)
                VALUES (:day, :api_key, :outcome, :number)
                ON CONFLICT (day, api_key, outcome) DO UPDATE
                SET number = collected_count.number + excluded.number
                """,
                [
                    {"day": day, "api_key": key, "outcome": outcome, "number": number}
                    for (key, outcome), number in sorted(counts.items())
                ],
            )
        outcomes: Counter[Outcome] = Counter()
        for (_, outcome), number in counts.items():
            outcomes[outcome] += number
        return outcomes

    def page(self, state: str, *, after: str = "", limit: int = 100) -> list[tuple[Prompt, Collected | None]]:
        """Return prompts in the order in which they were added, with what is known of those that were
        collected.

        Args:
            state: `new`, `screened` or `rejected`.
            after: id of the last prompt of the page before.
            limit: length of the page.
        """
        check_choice("state", state, ("new", "screened", "rejected"))
        with self._context.database.reading() as connection:
            rows = connection.run(
                f"""
                {_SELECT.replace("JOIN", "LEFT JOIN")} WHERE prompt.state = :state
                  {_AFTER if after else ""} ORDER BY prompt.made, prompt.id LIMIT :limit
                """,
                state=state,
                limit=min(limit, self._context.limits.page),
                **({"after": after} if after else {}),
            )
        return [(prompt_from(row), None if row["share"] is None else _collected(row)) for row in rows]

    def pool(self, count: int, *, seed: int) -> tuple[list[Collected], int]:
        """Return screened prompts of no task in an order drawn at random, and how many there are in all.

        Args:
            count: most that are returned.
            seed: of the order; it depends on the store's secret too.
        """
        with self._context.database.reading() as connection:
            ids = [
                str(row["id"])
                for row in connection.run(
                    f"""
                    SELECT prompt.id FROM prompt JOIN collected ON collected.prompt = prompt.id
                    WHERE prompt.state = 'screened' AND {_UNUSED}
                    """
                )
            ]
            order = sorted(ids, key=lambda one: keyed(self._context.secret, "pool", str(seed), one))[:count]
            found: dict[str, Collected] = {}
            for start in range(0, len(order), 500):
                names, values = listed("id", order[start : start + 500])
                for row in connection.run(f"{_SELECT} WHERE prompt.id IN ({names})", **values):
                    found[row["id"]] = _collected(row)
        return [found[one] for one in order], len(ids)

    def decide(
        self,
        prompt: str,
        state: str,
        *,
        screener: str | None,
        masked: Sequence[Message] | None = None,
        reason: str | None = None,
    ) -> Prompt:
        """Accept or reject a prompt, whether it was collected or imported.

        The text of one that is rejected is deleted, unless a task has it.

        Args:
            prompt: the id.
            state: `screened` or `rejected`.
            screener: id of the person who decides; None for a program.
            masked: turns without what nobody must see; the prompt gets their id, and the old turns are
                deleted. Only for a prompt without answers and tasks.
            reason: why it is rejected.

        Raises:
            Conflict: it is rejected already, and its text deleted.
            InvalidInput: the state or the turns are invalid, or the prompt is in use.
            NotFound: there is no such prompt.
        """
        if reason is not None:
            check_word("reason", reason)
        with self._context.database.writing() as connection:
            if require_prompt(connection, prompt, lock=True).state == "rejected":
                raise Conflict(f"prompt {prompt} is rejected, and its text deleted")
            found = screen_prompt(connection, self._context, prompt, state, masked=masked)
            connection.run(
                """
                UPDATE collected SET screened = :now, screener = :screener, reason = :reason
                WHERE prompt = :prompt
                """,
                now=self._context.now(),
                screener=screener,
                reason=reason,
                prompt=found.id,
            )
            if state == "rejected":
                connection.run(
                    f"UPDATE prompt SET turns = '[]' WHERE id = :id AND {_UNUSED} AND {_UNANSWERED}",
                    id=prompt,
                )
                connection.run("UPDATE collected SET metadata = '{}' WHERE prompt = :id", id=prompt)
            return require_prompt(connection, found.id)

    def expire(self, older_than_seconds: float) -> int:
        """Delete prompts that nobody has screened in time; return how many."""
        limit = self._context.now() - older_than_seconds
        with self._context.database.writing() as connection:
            rows = connection.run(
                f"""
                DELETE FROM prompt WHERE state = 'new' AND made < :limit
                  AND id IN (SELECT prompt FROM collected) AND {_UNUSED} AND {_UNANSWERED} RETURNING id
                """,
                limit=limit,
            )
        return len(rows)

    def counts(self) -> list[dict[str, object]]:
        """Return how many exchanges had which outcome, by day and API key."""
        with self._context.database.reading() as connection:
            rows = connection.run(
                "SELECT day, api_key, outcome, number FROM collected_count ORDER BY day, api_key, outcome"
            )
        return [{name: row[name] for name in ("day", "api_key", "outcome", "number")} for row in rows]

    def _add(self, connection: Connection, one: NewCollected, bounds: Bounds, now: float) -> Outcome:
        for row in _marked(connection, (one.exact,)):
            _count_alike(connection, row["prompt"])
            return "duplicate"
        starts = (one.prefix,) if one.prefix else ()
        for row in _marked(connection, (*starts, *one.bands)):
            if row["mark"] in starts or _similarity(row, one.signature) >= bounds.similarity:
                _count_alike(connection, row["prompt"])
                return "near_duplicate"
        origin = keyed(self._context.secret, "origin", one.api_key, one.user).hex()
        if _number(connection, "origin", origin) >= bounds.per_user:
            return "over_user"
        if _number(connection, "api_key", one.api_key) >= bounds.per_key:
            return "over_key"
        subject = keyed(self._context.secret, "subject", one.user).hex() if one.user else None
        added = add_prompt(connection, replace(one.prompt, subject=subject), now)
        if not added.new:
            return "duplicate"
        connection.run(
            """
            INSERT INTO collected (prompt, api_key, origin, request_id, weight_versions, metadata, masked,
              share, alike, signature)
            VALUES (:prompt, :api_key, :origin, :request_id, :weight_versions, :metadata, :masked, :share, 0,
              :signature)
            """,
            prompt=added.id,
            api_key=one.api_key,
            origin=origin,
            request_id=one.request_id,
            weight_versions=canonical(list(one.weight_versions)),
            metadata=canonical(dict(one.metadata)),
            masked=canonical(dict(one.masked)),
            share=bounds.share,
            signature=" ".join(f"{value:x}" for value in one.signature),
        )
        connection.run_many(
            "INSERT INTO collected_mark (mark, prompt) VALUES (:mark, :prompt) ON CONFLICT DO NOTHING",
            [{"mark": mark, "prompt": added.id} for mark in (one.exact, *starts, *one.bands)],
        )
        return "kept"


_SELECT = """
SELECT prompt.*, collected.api_key, collected.weight_versions, collected.metadata, collected.masked,
  collected.share, collected.alike, collected.reason
FROM prompt JOIN collected ON collected.prompt = prompt.id
"""


_UNUSED = "NOT EXISTS (SELECT 1 FROM task WHERE task.prompt = prompt.id)"
_UNANSWERED = "NOT EXISTS (SELECT 1 FROM answer WHERE answer.prompt = prompt.id)"
_AFTER = "AND (prompt.made, prompt.id) > (SELECT made, id FROM prompt WHERE id = :after)"


def _marked(connection: Connection, marks: Sequence[str]) -> list[Row]:
    names, values = listed("mark", marks)
    return connection.run(
        f"""
        SELECT collected_mark.mark, collected.prompt, collected.signature
        FROM collected_mark JOIN collected ON collected.prompt = collected_mark.prompt
        WHERE collected_mark.mark IN ({names}) LIMIT :limit
        """,
        limit=_CANDIDATES,
        **values,
    )


def _similarity(row: Row, signature: Sequence[int]) -> float:
    other = [int(value, 16) for value in row["signature"].split()]
    return sum(a == b for a, b in zip(other, signature, strict=True)) / len(other)


def _count_alike(connection: Connection, prompt: str) -> None:
    connection.run("UPDATE collected SET alike = alike + 1 WHERE prompt = :prompt", prompt=prompt)


def _number(connection: Connection, column: Literal["origin", "api_key"], value: str) -> int:
    row = connection.one(f"SELECT COUNT(*) AS number FROM collected WHERE {column} = :value", value=value)
    return int(row["number"]) if row else 0


def _collected(row: Row) -> Collected:
    return Collected(
        prompt=prompt_from(row),
        api_key=row["api_key"],
        weight_versions=tuple(json.loads(row["weight_versions"])),
        metadata=json.loads(row["metadata"]),
        masked=json.loads(row["masked"]),
        share=float(row["share"]),
        alike=int(row["alike"]),
        reason=row["reason"],
    )
