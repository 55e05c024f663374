"""Prompts: import, and the review of collected ones before anybody else sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from fairlead.errors import InvalidInput, NotFound
from fairlead.types import Message
from services.feedback.store.base import Connection, Row
from services.feedback.store.canonical import canonical, sha256, turns_of, turns_text
from services.feedback.store.context import Context
from services.feedback.store.limits import Limits, check_choice, check_identifier, check_text
from services.feedback.store.people import require_people
from services.feedback.store.records import PLAIN_TEXT, Added, NewPrompt, Prompt

_STATES = ("new", "screened")
_MESSAGE_ROLES = ("system", "user", "assistant")


class Prompts:
    """The prompts of the store."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def add(self, prompts: Sequence[NewPrompt]) -> list[Added]:
        """Add prompts in one transaction. The same turns have the same id, and keep what was known of them.

        Raises:
            InvalidInput: a field is invalid or too long; nothing is added then.
            NotFound: there is no such author.
        """
        limits = self._context.limits
        if len(prompts) > limits.tasks:
            raise InvalidInput(
                "prompts", got=f"{len(prompts)}", allowed=f"at most {limits.tasks} in one call"
            )
        for index, prompt in enumerate(prompts):
            checked_prompt(prompt, f"prompts[{index}]", limits)
        now = self._context.now()
        # In the order of their ids, so that two imports cannot wait for each other.
        order = sorted(range(len(prompts)), key=lambda index: sha256(turns_text(prompts[index].turns)))
        with self._context.database.writing() as connection:
            require_people(connection, {prompt.author for prompt in prompts if prompt.author})
            found = {index: add_prompt(connection, prompts[index], now) for index in order}
        return [found[index] for index in range(len(prompts))]

    def get(self, prompt: str) -> Prompt:
        """Return a prompt.

        Raises:
            NotFound: there is none.
        """
        with self._context.database.reading() as connection:
            return require_prompt(connection, prompt)

    def containing(self, text: str, *, limit: int) -> list[Prompt]:
        """Return prompts whose id begins with a text or whose turns contain it, in upper or lower case, the
        newest first.
        """
        # Turns are JSON in ASCII; `!` escapes what LIKE would read.
        inner = re.sub(r"([!%_])", r"!\1", canonical(text)[1:-1])
        with self._context.database.reading() as connection:
            rows = connection.run(
                """
                SELECT * FROM prompt WHERE LOWER(turns) LIKE LOWER(:part) ESCAPE '!'
                  OR id LIKE :start ESCAPE '!' ORDER BY made DESC, id LIMIT :limit
                """,
                part=f"%{inner}%",
                start=f"{inner}%",
                limit=max(0, min(limit, self._context.limits.page)),
            )
        return [prompt_from(row) for row in rows]

    def page(self, *, state: str | None = None, subject: str | None = None) -> list[Prompt]:
        """Return prompts in the order in which they were added, at most a page of them.

        Args:
            state: only `new`, `screened` or `rejected` ones.
            subject: only those of one end user.
        """
        wanted = {"state": state, "subject": subject}
        given = {name: value for name, value in wanted.items() if value is not None}
        with self._context.database.reading() as connection:
            rows = connection.run(
                "SELECT * FROM prompt"
                + "".join(
                    f" {'AND' if place else 'WHERE'} {name} = :{name}" for place, name in enumerate(given)
                )
                + " ORDER BY made, id LIMIT :limit",
                limit=self._context.limits.page,
                **given,
            )
        return [prompt_from(row) for row in rows]

    def count(self, subject: str) -> int:
        """Return how many prompts there are of an end user."""
        with self._context.database.reading() as connection:
            row = connection.one(
                "SELECT COUNT(*) AS number FROM prompt WHERE subject = :subject", subject=subject
            )
        return int(row["number"]) if row else 0

    def screen(self, prompt: str, state: str, *, masked: Sequence[Message] | None = None) -> Prompt:
        """Accept or reject a prompt that was collected.

        Args:
            prompt: the id.
            state: `screened` or `rejected`.
            masked: turns without what must not be seen; the prompt gets their id, and the old turns are
                deleted. Only for a prompt that has no answers yet.

        Raises:
            InvalidInput: the state or the turns are invalid, or the prompt is in use.
            NotFound: there is no such prompt.
        """
        with self._context.database.writing() as connection:
            return screen_prompt(connection, self._context, prompt, state, masked=masked)


def screen_prompt(
    connection: Connection,
    context: Context,
    prompt: str,
    state: str,
    *,
    masked: Sequence[Message] | None = None,
) -> Prompt:
    """Accept or reject a prompt; see `Prompts.screen`.

    Raises:
        InvalidInput: the state or the turns are invalid, or the prompt is in use.
        NotFound: there is no such prompt.
    """
    check_choice("state", state, ("screened", "rejected"))
    known = require_prompt(connection, prompt, lock=True)
    if masked is None:
        connection.run("UPDATE prompt SET state = :state WHERE id = :id", state=state, id=prompt)
        return replace(known, state=state)
    if connection.one("SELECT id FROM answer WHERE prompt = :id LIMIT 1", id=prompt) or connection.one(
        "SELECT id FROM task WHERE prompt = :id LIMIT 1", id=prompt
    ):
        raise InvalidInput("masked", got="a prompt in use", allowed="a prompt without answers and tasks")
    fields = NewPrompt.__dataclass_fields__
    kept = {name: getattr(known, name) for name in fields if name not in ("turns", "state")}
    renewed = NewPrompt(turns=tuple(masked), state="screened", **kept)
    checked_prompt(renewed, "masked", context.limits)
    if turns_text(masked) == turns_text(known.turns):
        raise InvalidInput("masked", got="the same turns", allowed="turns that differ, or None")
    added = add_prompt(connection, renewed, context.now())
    # The text of one that was rejected is deleted.
    connection.run(
        "UPDATE prompt SET state = :state, turns = :turns WHERE id = :id",
        state=state,
        turns=turns_text(masked),
        id=added.id,
    )
    for table, same in (("collected", "TRUE"), ("collected_mark", "other.mark = collected_mark.mark")):
        connection.run(
            f"""
            UPDATE {table} SET prompt = :new WHERE prompt = :old
              AND NOT EXISTS (SELECT 1 FROM {table} AS other WHERE other.prompt = :new AND {same})
            """,
            new=added.id,
            old=prompt,
        )
    connection.run("DELETE FROM prompt WHERE id = :id", id=prompt)
    return require_prompt(connection, added.id)


def checked_prompt(prompt: NewPrompt, where: str, limits: Limits) -> None:
    """Check a prompt.

    Raises:
        InvalidInput: a field is invalid or too long.
    """
    if not 1 <= len(prompt.turns) <= limits.turns:
        raise InvalidInput(f"{where}.turns", got=f"{len(prompt.turns)} turns", allowed=f"1 to {limits.turns}")
    for number, turn in enumerate(prompt.turns):
        roles = (*_MESSAGE_ROLES, PLAIN_TEXT) if len(prompt.turns) == 1 else _MESSAGE_ROLES
        check_choice(f"{where}.turns[{number}].role", turn.role, roles)
        check_text(f"{where}.turns[{number}].content", turn.content, limits.text_characters, empty=True)
    if prompt.turns[-1].role == "assistant":
        raise InvalidInput(f"{where}.turns", got="the assistant's turn last", allowed="a turn to answer last")
    check_choice(f"{where}.state", prompt.state, _STATES)
    check_identifier(f"{where}.source", prompt.source)
    for name in ("consent", "language"):
        check_identifier(f"{where}.{name}", getattr(prompt, name), empty=True)
    for name in ("subject", "split_group", "cluster"):
        if (value := getattr(prompt, name)) is not None:
            check_identifier(f"{where}.{name}", value)


def add_prompt(connection: Connection, prompt: NewPrompt, now: float) -> Added:
    """Add a checked prompt, unless the same turns are there."""
    turns = turns_text(prompt.turns)
    found = sha256(turns)
    row = connection.one(
        """
        INSERT INTO prompt (id, turns, source, consent, subject, author, split_group, cluster, language,
          state, made)
        VALUES (:id, :turns, :source, :consent, :subject, :author, :split_group, :cluster, :language,
          :state, :made)
        ON CONFLICT (id) DO NOTHING RETURNING id
        """,
        id=found,
        turns=turns,
        made=now,
        **{
            name: getattr(prompt, name)
            for name in (
                "source",
                "consent",
                "subject",
                "author",
                "split_group",
                "cluster",
                "language",
                "state",
            )
        },
    )
    return Added(found, new=row is not None)


def require_prompt(connection: Connection, prompt: str, *, lock: bool = False) -> Prompt:
    """Return a prompt.

    Raises:
        NotFound: there is none.
    """
    row = connection.one("SELECT * FROM prompt WHERE id = :id" + (" FOR UPDATE" if lock else ""), id=prompt)
    if row is None:
        raise NotFound(f"no prompt {prompt!r}")
    return prompt_from(row)


def prompt_from(row: Row) -> Prompt:
    """Return the prompt of a row of its table."""
    fields = {name: row[name] for name in Prompt.__dataclass_fields__}
    return Prompt(**(fields | {"turns": turns_of(row["turns"])}))
