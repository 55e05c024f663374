"""The trainer's side of the Redis queue: the fence, dispatch, outcomes, snapshots. Used by one thread.

Every write is one Lua script (`lua/`) that compares the incarnation first. Knows nothing about the ledger:
the trainer decides which tasks are settled and which must be sent again.
"""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import redis

from fairlead.codec import decode_outcome, encode_task
from fairlead.config.infrastructure import QueueSection
from fairlead.errors import CorruptData, CorruptOutcome, Fenced, QueueUnavailable, SchemaTooNew
from fairlead.transports.rollouts.base import OutcomeEntry, QueueSnapshot, QueueStats, Sending
from fairlead.transports.rollouts.redis_connection import (
    GROUP,
    Keys,
    address,
    check_server,
    check_url,
    client_options,
    errors_of,
    no_retry,
    script,
)
from fairlead.transports.rollouts.redis_snapshot import decode_snapshot
from fairlead.types import PromptTask

_Item = TypeVar("_Item")

_SCRIPTS = ("take_fence", "dispatch", "delete", "snapshot")
_TASKS_PER_CALL = 256
_PAGE_TASKS = 256
_LONGEST_BLOCK_SECONDS = 2.0


class RedisTrainerQueue:
    """TrainerQueue over Redis Streams; see `base.TrainerQueue`.

    A lost connection is reported once, as QueueUnavailable, even if the server is already available again:
    Redis may have lost data in the meantime, so the caller must reconcile. The next call reconnects.
    """

    def __init__(
        self, section: QueueSection, *, run: str, on_error: Callable[[str], None] = lambda _: None
    ) -> None:
        """Prepare the connection; the first call makes it.

        Args:
            section: address and limits.
            run: name of the run.
            on_error: called with the operation after each call to Redis that failed.
        """
        self._section = section
        self._on_error = on_error
        self._keys = Keys(run)
        self._where = address(check_url(section))
        self._owner = ""
        self._numbers = _Numbers()
        self._connected = False
        self._loss_reported = False
        self._read_entries = 0
        self._read_bytes = 0
        self._client = redis.Redis.from_url(
            section.redis_url,
            retry=no_retry(),
            redis_connect_func=self._on_connect,
            **client_options(section),
        )
        self._scripts = {name: self._client.register_script(script(name)) for name in _SCRIPTS}

    @classmethod
    def connect(
        cls, section: QueueSection, *, run: str, on_error: Callable[[str], None] = lambda _: None
    ) -> RedisTrainerQueue:
        """Connect to Redis and check the server; the arguments are those of the constructor.

        Raises:
            ConfigError: if the URL is invalid.
            QueueUnavailable: if Redis does not answer.
            QueueMisconfigured: if Redis rejects the credentials or would lose work.
        """
        queue = cls(section, run=run, on_error=on_error)
        try:
            with queue._calling("connect"):
                info = cast("Mapping[str, object]", queue._client.info())
                settings: Mapping[str, object] = {}
                with suppress(redis.ResponseError):
                    settings = cast("Mapping[str, object]", queue._client.config_get("appendfsync"))
            check_server(info, settings, where=queue._where)
            queue.known_incarnation()  # a node of a cluster may refer to another one
        except BaseException:
            queue.close()
            raise
        return queue

    def known_incarnation(self) -> int:
        """See `TrainerQueue.known_incarnation`."""
        with self._calling("fence"):
            held = cast("bytes | None", self._client.get(self._keys.fence))
        return int(held.partition(b":")[0]) if held else 0

    def take_fence(self, incarnation: int) -> None:
        """See `TrainerQueue.take_fence`. Safe to repeat by the trainer that holds it."""
        if not self._owner.startswith(f"{incarnation}:"):
            self._owner = f"{incarnation}:{secrets.token_hex(8)}"
            self._numbers = _Numbers()
        self._run("take_fence", [self._owner])

    def dispatch(self, tasks: Sequence[PromptTask]) -> Sequence[Sending]:
        """See `TrainerQueue.dispatch`. After an error, some of the tasks may have been sent."""
        sendings: list[Sending] = []
        for batch in _batches(tasks):
            arguments: list[str | int | bytes] = [self._fence_owner()]
            for task in batch:
                arguments += [task.task_id, self._numbers.last(task.task_id) + 1, encode_task(task)]
            numbers = self._run("dispatch", arguments)
            for task, number in zip(batch, numbers, strict=True):
                self._numbers.note(task.task_id, number)
                sendings.append(Sending(int(self._owner.partition(":")[0]), number))
        return sendings

    def read(self, *, after: str, count: int, block_seconds: float) -> Sequence[OutcomeEntry]:
        """See `TrainerQueue.read`."""
        deadline = time.monotonic() + block_seconds
        while True:
            remaining = deadline - time.monotonic()
            wait_ms = max(1, round(min(remaining, _LONGEST_BLOCK_SECONDS) * 1000)) if remaining > 0 else None
            with self._calling("read"):
                reply = cast(
                    Any, self._client.xread({self._keys.rollouts: after}, count=count, block=wait_ms)
                )
            if reply:
                self._measure(reply[0][1])
                return entries_before_corrupt(
                    _decode_entry(entry_id.decode(), fields) for entry_id, fields in reply[0][1]
                )
            if remaining <= 0:
                return []

    def delete(self, entry_ids: Iterable[str]) -> None:
        """See `TrainerQueue.delete`."""
        for batch in _batches(list(entry_ids)):
            self._run("delete", [self._fence_owner(), *batch])

    def snapshot(self) -> QueueSnapshot:
        """See `TrainerQueue.snapshot`."""
        return decode_snapshot(self._run("snapshot", []))

    def stats(self) -> QueueStats:
        """See `TrainerQueue.stats`."""
        with self._calling("stats"):
            memory = cast("Mapping[str, Any]", self._client.info("memory"))
            outcomes = self._client.xlen(self._keys.rollouts)
            groups = cast(Any, self._client.xinfo_groups(self._keys.prompts)) if self._has_prompts() else []
        group = next((found for found in groups if found["name"] == GROUP.encode()), None)
        waiting, in_flight = (group["lag"] or 0, group["pending"]) if group else (0, 0)
        return QueueStats(
            waiting,
            in_flight,
            outcomes,
            memory_bytes=int(memory["used_memory"]),
            outcome_bytes=round(outcomes * self._read_bytes / max(1, self._read_entries)),
            limit_bytes=int(memory.get("maxmemory", 0)),
        )

    def close(self) -> None:
        """See `TrainerQueue.close`."""
        self._client.close()

    def _measure(self, raw: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> None:
        self._read_entries += len(raw)
        self._read_bytes += sum(len(fields.get(b"outcome", b"")) for _, fields in raw)

    def _has_prompts(self) -> bool:
        return bool(self._client.exists(self._keys.prompts))

    def _fence_owner(self) -> str:
        if not self._owner:
            raise Fenced("this trainer has not taken the fence")
        return self._owner

    def _run(self, name: str, arguments: Sequence[str | int | bytes]) -> Any:  # noqa: ANN401 - the type of the reply depends on the script
        with self._calling("fence" if name == "take_fence" else name):
            return self._scripts[name](keys=self._keys.all(), args=arguments)

    @contextmanager
    def _calling(self, operation: str) -> Iterator[None]:
        try:
            with errors_of(self._where):
                yield
        except QueueUnavailable:
            self._on_error(operation)
            self._loss_reported = True
            raise

    def _on_connect(self, connection: redis.Connection) -> None:
        connection.on_connect()  # type: ignore[no-untyped-call]
        if self._connected and not self._loss_reported:
            raise redis.ConnectionError("the connection was lost; reconnecting")
        self._connected = True
        self._loss_reported = False


class _Numbers:
    """The number of the last sending of each task by this incarnation, in four bytes per task.

    Kept here because Redis may lose them, and a number must never be used for two sendings of a task.
    """

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}

    def last(self, task_id: int) -> int:
        """Return the number of the last sending, 0 if there was none."""
        page = self._pages.get(task_id // _PAGE_TASKS)
        return page[task_id % _PAGE_TASKS] if page is not None else 0

    def note(self, task_id: int, number: int) -> None:
        """Record the number of a sending."""
        page = self._pages.setdefault(task_id // _PAGE_TASKS, array("I", bytes(4 * _PAGE_TASKS)))
        page[task_id % _PAGE_TASKS] = number


def _batches(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), _TASKS_PER_CALL):
        yield items[start : start + _TASKS_PER_CALL]


def _decode_entry(entry_id: str, fields: Mapping[bytes, bytes]) -> OutcomeEntry:
    try:
        sending = Sending(int(fields[b"incarnation"]), int(fields[b"number"]))
        task_id = int(fields[b"task"])
        payload = fields[b"outcome"]
    except (KeyError, ValueError) as error:
        raise CorruptOutcome(entry_id, str(error)) from error
    return decode_outcome_entry(entry_id, task_id, sending, payload)


def decode_outcome_entry(entry_id: str, task_id: int, sending: Sending, payload: bytes) -> OutcomeEntry:
    """Decode an outcome of the queue.

    Raises:
        CorruptOutcome: if the payload cannot be decoded, or belongs to another task.
        SchemaTooNew: if the outcome was written by a newer Fairlead.
    """
    try:
        outcome = decode_outcome(payload)
    except CorruptData as error:
        raise CorruptOutcome(entry_id, str(error)) from error
    except SchemaTooNew as error:
        raise SchemaTooNew(f"outcome entry {entry_id}: {error}") from error
    if outcome.task.task_id != task_id:
        raise CorruptOutcome(entry_id, f"entry of task {task_id} contains task {outcome.task.task_id}")
    return OutcomeEntry(entry_id, sending, outcome)


def entries_before_corrupt(entries: Iterable[OutcomeEntry]) -> list[OutcomeEntry]:
    """Return the entries before the first one that cannot be decoded; entries are decoded one by one.

    Raises:
        CorruptOutcome, SchemaTooNew: if the very first entry cannot be decoded.
    """
    found: list[OutcomeEntry] = []
    try:
        for entry in entries:
            found.append(entry)
    except (CorruptOutcome, SchemaTooNew):
        if not found:
            raise
    return found
