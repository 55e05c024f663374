"""The transports as the state machine uses them: both sides, access to the content, and faults.

The memory queue gets the same losses and restorations as Redis, so that both keep the same rules.
"""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import redis

from fairlead.config.infrastructure import QueueSection
from fairlead.errors import QueueUnavailable
from fairlead.local import valkey
from fairlead.transports.rollouts.base import Sending, TrainerQueue, WorkerQueue
from fairlead.transports.rollouts.redis_connection import GROUP, Keys
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from tests.contract.queue_damage import damage, damaged
from tests.memory_queue import MemoryBroker, MemoryTrainerQueue, QueuedSending

LONG_AGO_MS = 10_000_000
MAX_FAILURES, MAX_DELIVERIES = 3, 4

OpenSending = tuple[int, int, int, str]
"""Incarnation, number, failures, entry."""


class World(Protocol):
    """One run's queue and its environment."""

    nowhere: str
    """ID of an entry that never exists."""

    async def worker(self, consumer: str) -> WorkerQueue: ...
    def trainer(self) -> TrainerQueue: ...
    def prompts(self) -> list[tuple[str, int, Sending]]: ...
    def outcomes(self) -> list[tuple[str, int, Sending, int]]: ...
    def open(self) -> dict[int, OpenSending]: ...
    def consumers(self) -> set[str] | None: ...
    def content(self) -> object: ...
    def age(self, entry: str, owner: str, *, milliseconds: int) -> None: ...
    def damage_prompt(self, entry: str, *, cut: bool) -> None: ...
    def damage_outcome(self, entry: str, *, cut: bool) -> None: ...
    def drop_prompt(self, entry: str) -> Callable[[], str]: ...
    def drop_outcome(self, entry: str) -> Callable[[], str]: ...
    def drop_consumer(self, consumer: str) -> None: ...
    def drop(self, what: str) -> None: ...
    def keep(self) -> Callable[[], None]: ...
    def can_restart(self) -> bool: ...
    def restart(self, *, with_data: bool) -> None: ...
    def close(self) -> None: ...


class RedisWorld:
    """On a real Valkey."""

    nowhere = "0-1"
    runs = itertools.count()
    restarts = 0

    def __init__(self, server: valkey.ValkeyServer, process: ExitStack | None = None) -> None:
        self.server, self.process = server, process
        self.name = f"states-{next(self.runs)}"
        self.keys = Keys(self.name)
        self.section = QueueSection(
            redis_url=server.url,
            lease_seconds=600,
            max_failures=MAX_FAILURES,
            max_deliveries=MAX_DELIVERIES,
        )
        self.raw = redis.Redis.from_url(server.url, protocol=2)
        self.trainers: list[RedisTrainerQueue] = []

    async def worker(self, consumer: str) -> WorkerQueue:
        return await RedisWorkerQueue.connect(self.section, run=self.name, consumer=consumer)

    def trainer(self) -> TrainerQueue:
        self.trainers.append(RedisTrainerQueue.connect(self.section, run=self.name))
        return self.trainers[-1]

    def prompts(self) -> list[tuple[str, int, Sending]]:
        return [
            (entry.decode(), int(fields[b"task"]), _sending(fields))
            for entry, fields in self.raw.xrange(self.keys.prompts)
        ]

    def outcomes(self) -> list[tuple[str, int, Sending, int]]:
        return [
            (entry.decode(), int(fields[b"task"]), _sending(fields), len(fields[b"outcome"]))
            for entry, fields in self.raw.xrange(self.keys.rollouts)
        ]

    def open(self) -> dict[int, OpenSending]:
        found = {}
        for task, stored in self.raw.hgetall(self.keys.outstanding).items():
            incarnation, number, failures, entry = stored.decode().split(":")
            found[int(task)] = (int(incarnation), int(number), int(failures), entry)
        return found

    def consumers(self) -> set[str] | None:
        return {info["name"].decode() for info in self.raw.xinfo_consumers(self.keys.prompts, GROUP)}

    def content(self) -> object:
        return [self.raw.dump(key) for key in self.keys.all()]

    def age(self, entry: str, owner: str, *, milliseconds: int) -> None:
        self.raw.xclaim(self.keys.prompts, GROUP, owner, 0, [entry], idle=milliseconds, justid=True)

    def damage_prompt(self, entry: str, *, cut: bool) -> None:
        damage(self.raw, self.keys.prompts, entry, b"prompt", cut=cut)

    def damage_outcome(self, entry: str, *, cut: bool) -> None:
        damage(self.raw, self.keys.rollouts, entry, b"outcome", cut=cut)

    def drop_prompt(self, entry: str) -> Callable[[], str]:
        return self._drop(self.keys.prompts, entry)

    def drop_outcome(self, entry: str) -> Callable[[], str]:
        return self._drop(self.keys.rollouts, entry)

    def drop_consumer(self, consumer: str) -> None:
        if self.raw.exists(self.keys.prompts) and self.raw.xinfo_groups(self.keys.prompts):
            self.raw.xgroup_delconsumer(self.keys.prompts, GROUP, consumer)

    def drop(self, what: str) -> None:
        if what == "scripts":
            self.raw.script_flush()
        elif what != "group":
            self.raw.delete(getattr(self.keys, what))
        elif self.raw.exists(self.keys.prompts):
            self.raw.xgroup_destroy(self.keys.prompts, GROUP)

    def keep(self) -> Callable[[], None]:
        """Copy every key with its groups and leases; return a function that goes back to the copy."""
        kept = dict(zip(self.keys.all(), (self.raw.dump(key) for key in self.keys.all()), strict=True))

        def go_back() -> None:
            for key, content in kept.items():
                self.raw.delete(key)
                if content is not None:
                    self.raw.restore(key, 0, content)

        return go_back

    def can_restart(self) -> bool:
        return self.process is not None

    def restart(self, *, with_data: bool) -> None:
        """Restart the server; each trainer must report the lost connection exactly once."""
        assert self.process is not None
        type(self).restarts += 1
        self.process.close()
        if not with_data:
            shutil.rmtree(self.server.folder / "appendonlydir")
        self.process.enter_context(valkey.start(self.server))
        for trainer in self.trainers:
            reported = 0
            while True:
                try:
                    trainer.snapshot()
                    break
                except QueueUnavailable:
                    reported += 1
            assert reported == 1

    def close(self) -> None:
        for trainer in self.trainers:
            trainer.close()
        self.raw.delete(*self.keys.all())
        self.raw.close()

    def _drop(self, stream: str, entry: str) -> Callable[[], str]:
        [(_, fields)] = self.raw.xrange(stream, entry, entry)
        self.raw.xdel(stream, entry)
        return lambda: self.raw.xadd(stream, fields).decode()


class MemoryWorld:
    """In this process; losses are simulated by changing the broker."""

    nowhere = "0"

    def __init__(self) -> None:
        self.broker = MemoryBroker(
            lease_seconds=600, max_failures=MAX_FAILURES, max_deliveries=MAX_DELIVERIES, clock=lambda: 0.0
        )

    async def worker(self, consumer: str) -> WorkerQueue:
        return self.broker.worker(consumer)

    def trainer(self) -> MemoryTrainerQueue:
        return self.broker.trainer()

    def prompts(self) -> list[tuple[str, int, Sending]]:
        return [(str(entry), found.task_id, found.sending) for entry, found in self.broker.prompts.items()]

    def outcomes(self) -> list[tuple[str, int, Sending, int]]:
        return [
            (str(entry), task, sending, len(payload))
            for entry, (task, sending, payload) in self.broker.outcomes.items()
        ]

    def open(self) -> dict[int, OpenSending]:
        return {
            task: (found.sending.incarnation, found.sending.number, found.failures, str(found.entry))
            for task, found in self.broker.open.items()
        }

    def consumers(self) -> set[str] | None:
        return None

    def content(self) -> object:
        return copy.deepcopy([getattr(self.broker, name) for name in _KEPT])

    def age(self, entry: str, owner: str, *, milliseconds: int) -> None:
        lease = self.broker.leases.get(int(entry))
        if lease is not None and int(entry) in self.broker.prompts:
            lease.since = -milliseconds / 1000
        else:
            self.broker.leases.pop(int(entry), None)

    def damage_prompt(self, entry: str, *, cut: bool) -> None:
        found = self.broker.prompts[int(entry)]
        self.broker.prompts[int(entry)] = found._replace(payload=damaged(found.payload, cut=cut))

    def damage_outcome(self, entry: str, *, cut: bool) -> None:
        task, sending, payload = self.broker.outcomes[int(entry)]
        self.broker.outcomes[int(entry)] = (task, sending, damaged(payload, cut=cut))

    def drop_prompt(self, entry: str) -> Callable[[], str]:
        return self._drop(self.broker.prompts, entry)

    def drop_outcome(self, entry: str) -> Callable[[], str]:
        return self._drop(self.broker.outcomes, entry)

    def drop_consumer(self, consumer: str) -> None:
        for entry in [entry for entry, lease in self.broker.leases.items() if lease.consumer == consumer]:
            del self.broker.leases[entry]

    def drop(self, what: str) -> None:
        if what in ("prompts", "group"):
            self.broker.leases.clear()
            self.broker.last_delivered = 0
        if what == "fence":
            self.broker.incarnation = 0
        for name, content in (("prompts", "prompts"), ("rollouts", "outcomes"), ("outstanding", "open")):
            if what == name:
                getattr(self.broker, content).clear()

    def keep(self) -> Callable[[], None]:
        kept = self.content()
        assert isinstance(kept, list)

        def go_back() -> None:
            for name, content in zip(_KEPT, copy.deepcopy(kept), strict=True):
                setattr(self.broker, name, content)

        return go_back

    def can_restart(self) -> bool:
        return False

    def restart(self, *, with_data: bool) -> None:
        raise NotImplementedError

    def close(self) -> None: ...

    def _drop(self, content: dict[int, Any], entry: str) -> Callable[[], str]:
        found = content.pop(int(entry))

        def bring_back() -> str:
            again = next(self.broker.entries)
            content = self.broker.prompts if isinstance(found, QueuedSending) else self.broker.outcomes
            content[again] = found
            return str(again)

        return bring_back


_KEPT = ("prompts", "last_delivered", "leases", "open", "outcomes", "incarnation")


def _sending(fields: dict[bytes, bytes]) -> Sending:
    return Sending(int(fields[b"incarnation"]), int(fields[b"number"]))


def restarting(folder: Path, stack: ExitStack) -> Callable[[], RedisWorld]:
    """Return a factory of worlds on a Valkey that syncs every command and can be restarted."""
    server = valkey.prepare(folder)
    file = server.folder / "server.conf"
    file.write_text(file.read_text().replace("appendfsync everysec", "appendfsync always"))
    process = stack.enter_context(ExitStack())
    process.enter_context(valkey.start(server))
    return lambda: RedisWorld(server, process)
