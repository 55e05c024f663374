"""Sends prompts whose users agreed to the feedback service, in the background.

A request only puts an exchange into a bounded queue; a thread sends them in batches. What does not fit is
dropped and counted. Answers are not sent: the answers that people rank are sampled later, from one policy.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.errors import ConfigError, FairleadError, InvalidInput, Transient
from fairlead.feedback_client import FeedbackClient
from fairlead.types import Message

logger = logging.getLogger(__name__)

_BATCH_EXCHANGES = 32
_BATCH_CHARACTERS = 1 << 20
_MAX_TURNS = 200
_MAX_CHARACTERS = 200_000
"""Of all turns; longer prompts are no work for people, and the feedback service refuses longer turns."""
_QUEUE_CHARACTERS = 64 << 20
_ATTEMPT_SECONDS = 5.0
"""After a batch could not be sent for that long, it waits and is sent again."""
_PAUSE_SECONDS = 1.0
_DRAIN_SECONDS = 3.0
"""How long a gateway that stops waits for what is in the queue."""

Consent = Literal["asked", "notice"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that the policy has answered."""

    turns: tuple[Message, ...]
    """The conversation."""
    user: str
    """The end user; empty if the request named none."""
    key: str
    """Id of the API key; empty without keys."""
    request_id: str
    """Id of the request."""
    weight_versions: tuple[str, ...]
    """Weights that answered."""
    metadata: Mapping[str, str]
    """Of the request."""

    @property
    def size(self) -> int:
        """Characters of the conversation."""
        return sum(len(turn.content) for turn in self.turns)


class Collector:
    """The queue, and the thread that sends what is in it."""

    def __init__(
        self,
        client: Callable[[], FeedbackClient],
        *,
        consent: Consent,
        notice: str,
        max_waiting: int,
        collect_metrics: metrics.CollectMetrics,
    ) -> None:
        """
        Args:
            client: connects to the feedback service; called in the thread.
            consent: by what users agree: requests ask for it, or a notice says so.
            notice: version of the notice.
            max_waiting: length of the queue.
            collect_metrics: receive the counts.
        """
        self._client = client
        self._consent = consent
        self._notice = notice
        self._max_waiting = max_waiting
        self._metrics = collect_metrics
        self._waiting: deque[Exchange] = deque()
        self._characters = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._reported = False

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def wants(self, store: bool | None) -> bool:
        """Return whether the prompt of a request may be kept, given its `store`."""
        return store is True if self._consent == "asked" else store is not False

    def add(self, exchange: Exchange) -> None:
        """Put an exchange into the queue, or count that it is dropped. Returns at once."""
        if exchange.size > _MAX_CHARACTERS or len(exchange.turns) > _MAX_TURNS:
            self._metrics.dropped.labels("too_large").inc()
            return
        with self._changed:
            full = len(self._waiting) >= self._max_waiting
            if full or self._stopping or self._characters + exchange.size > _QUEUE_CHARACTERS:
                self._metrics.dropped.labels("stopped" if self._stopping else "queue_full").inc()
                return
            self._waiting.append(exchange)
            self._characters += exchange.size
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def close(self) -> None:
        """Send what is in the queue if that is quick, and count the rest as dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._ended.wait(_DRAIN_SECONDS)
        with self._changed:
            if self._waiting:
                self._metrics.dropped.labels("stopped").inc(len(self._waiting))
                self._waiting.clear()
                self._metrics.waiting.set(0)

    def _run(self) -> None:
        try:
            with self._client() as client:
                while (batch := self._next()) and self._deliver(client, batch):
                    pass
        finally:
            self._ended.set()

    def _next(self) -> list[Exchange]:
        """Wait for exchanges and return a batch, which stays in the queue; empty at the end."""
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            batch: list[Exchange] = []
            characters = 0
            for exchange in self._waiting:
                characters += exchange.size
                if batch and (len(batch) == _BATCH_EXCHANGES or characters > _BATCH_CHARACTERS):
                    break
                batch.append(exchange)
            return batch

    def _deliver(self, client: FeedbackClient, batch: Sequence[Exchange]) -> bool:
        """Send a batch until the service has taken or refused it; return False if the gateway stops."""
        body = [self._body(exchange) for exchange in batch]
        key = secrets.token_hex(16)
        while True:
            try:
                client.hand_in_exchanges(body, key=key)
            except Transient as error:
                self._report(error)
                with self._changed:
                    if self._changed.wait_for(lambda: self._stopping, _PAUSE_SECONDS):
                        return False
            except FairleadError as error:
                if isinstance(error, InvalidInput) and len(batch) > 1:
                    # One that is refused must not take the others with it.
                    return all(self._deliver(client, [exchange]) for exchange in batch)
                self._report(error)
                self._metrics.dropped.labels("refused").inc(self._take(len(batch)))
                return True
            else:
                self._reported = False
                self._metrics.sent.inc(self._take(len(batch)))
                return True

    def _take(self, number: int) -> int:
        """Remove exchanges from the start of the queue; return how many were still there."""
        with self._changed:
            number = min(number, len(self._waiting))
            for _ in range(number):
                self._characters -= self._waiting.popleft().size
            self._metrics.waiting.set(len(self._waiting))
            return number

    def _report(self, error: FairleadError) -> None:
        if not self._reported:
            logger.warning("cannot hand in exchanges, gateway.collect: %s", error)
        self._reported = True

    def _body(self, exchange: Exchange) -> dict[str, Any]:
        return {
            "id": secrets.token_hex(16),
            "messages": [{"role": turn.role, "content": turn.content} for turn in exchange.turns],
            "consent": self._consent,
            "notice": self._notice,
            "user": exchange.user,
            "key": exchange.key,
            "request_id": exchange.request_id,
            "weight_versions": list(exchange.weight_versions),
            "metadata": dict(exchange.metadata),
        }


def collector_of(config: RunConfig, collect_metrics: metrics.CollectMetrics) -> Collector | None:
    """Return the collector that the configuration asks for; None if it asks for none.

    Raises:
        ConfigError: there is no address of a feedback service, or a key would be sent in plain text.
    """
    section = config.gateway
    if section.collect == "off":
        return None
    addresses = config.feedback.addresses
    if not addresses or addresses[0].endswith(":0"):
        raise ConfigError(
            "feedback.addresses",
            got=addresses,
            allowed=f"the address of the feedback service, for gateway.collect = {section.collect!r}",
        )
    tls = config.tls if config.tls.on and config.feedback.tls != "off" else None

    def client() -> FeedbackClient:
        return FeedbackClient(
            addresses[0],
            tls=tls,
            allow_insecure=config.keys.allow_insecure,
            timeout_seconds=_ATTEMPT_SECONDS,
        )

    client().close()  # A mistake of the configuration ends the start.
    return Collector(
        client,
        consent=section.collect,
        notice=section.collect_notice,
        max_waiting=section.collect_queue,
        collect_metrics=collect_metrics,
    )
