"""Canonical bytes, the digests made of them, and the order in which a person sees the answers of a task."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.types import Message

FIRST_PREVIOUS = ""
"""What the first entry of the log has for the entry before it."""


def canonical(value: object) -> str:
    """Return JSON with sorted keys, in ASCII and without spaces: equal values have equal texts.

    Raises:
        ValueError: for a number that is not finite.
    """
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def sha256(text: str) -> str:
    """Return the SHA-256 of an ASCII text, in hexadecimal digits."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def turns_text(turns: Sequence[Message]) -> str:
    """Return the canonical text of the turns of a prompt."""
    return canonical([[turn.role, turn.content] for turn in turns])


def turns_of(text: str) -> tuple[Message, ...]:
    """Return the turns of a canonical text."""
    return tuple(Message(role, content) for role, content in json.loads(text))


def answer_id(prompt: str, text: str) -> str:
    """Return the id of an answer: a digest of its prompt's id and its text."""
    return sha256(canonical([prompt, text]))


def content_sha256(nonce: str, body: str) -> str:
    """Return the digest that binds an entry to its content.

    The nonce is deleted with the content, so that nobody can confirm a guess of it afterwards.
    """
    return sha256(canonical([nonce, body]))


def entry_id(row: Mapping[str, Any]) -> str:
    """Return the id of an entry: a digest of all its columns, of its content's digest and of the entry
    before.
    """
    columns = ("seq", "kind", "task", "person", "at", "late", "request", "replaces", "content_sha256")
    values = {name: row[name] for name in columns} | {"previous": row["previous"] or FIRST_PREVIOUS}
    return sha256(canonical(values))


def snapshot_digest(entries: Sequence[str]) -> str:
    """Return the name of a snapshot: the digest of its entries' ids, one a line."""
    return sha256("".join(f"{entry}\n" for entry in entries))


def shown_order(secret: str, task: str, person: str, answers: Sequence[str]) -> tuple[str, ...]:
    """Return answers in the order that a person sees: uniform over people and tasks, and always the same."""
    return tuple(sorted(answers, key=lambda answer: keyed(secret, "order", task, person, answer)))


def drawn(secret: str, share: float, *parts: str) -> bool:
    """Return whether a draw with a given chance succeeds; always the same for the same parts."""
    return int.from_bytes(keyed(secret, "draw", *parts)[:8], "big") < share * 2**64


def keyed(secret: str, *parts: str) -> bytes:
    """Return a digest that nobody can compute without the store's secret."""
    return hmac.digest(secret.encode("ascii"), canonical(parts).encode("ascii"), "sha256")
