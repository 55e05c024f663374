"""Calls to the replicas of one service: where they are, which one is next, when to try again.

Between the clients and grpc.aio; knows no message, only stubs that it is handed. Every call has a deadline;
every call is idempotent, so whatever may mend itself is tried again.

A replica is used while its channel is READY. An address may be `host:port`, or `dns:///name:port`, whose
replicas gRPC finds and balances itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Generic, TypeVar

import grpc
from grpc import aio

from fairlead.errors import ReplicaLost
from fairlead.rpc.credentials import Credentials, Metadata
from fairlead.rpc.hedging import Hedging
from fairlead.rpc.replica import Replica, checked_addresses
from fairlead.rpc.retry import Attempts, RetryBudget, RetryPolicy
from fairlead.rpc.status import is_lost, pushback_seconds

_Stub = TypeVar("_Stub")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Outcome = TypeVar("_Outcome")
_Call = TypeVar("_Call", bound=aio.Call)

_CONNECT_SECONDS = 5.0
_LOOK_SECONDS = 1.0
"""How often certificates are looked at for changes."""
_CONNECTING = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)


class Replicas(Generic[_Stub]):
    """The replicas of one service, called with retries. Belongs to the event loop of its first call."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        make_stub: Callable[[aio.Channel], _Stub],
        *,
        service: str,
        timeout_seconds: float,
        retry: RetryPolicy,
        credentials: Callable[[Sequence[str]], Credentials] = Credentials,
        health: str = "",
    ) -> None:
        """
        Args:
            addresses: of every replica, or one name that stands for all.
            make_stub: builds the generated stub on a channel.
            service: what is served, for messages.
            timeout_seconds: deadline of a call that sets none, all its tries together.
            retry: limits of retrying.
            credentials: makes, for these addresses, what the client shows and whom it trusts.
            health: what must be SERVING for a replica to be used; all of it, if not given.

        Raises:
            ConfigError: if there is no address, or one without a port, or credentials that cannot be used.
        """
        self._addresses = checked_addresses(addresses)
        self._make_stub = make_stub
        self._credentials = credentials(self._addresses)
        self._generation = 0
        self._looked_at = 0.0
        self._closing: set[asyncio.Task[None]] = set()
        self._service = service
        self._timeout_seconds = timeout_seconds
        self._retry = retry
        self._health = health
        self._budget = RetryBudget(retry)
        self._replicas: list[Replica[_Stub]] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()
        self._turn = 0
        self._hedging = Hedging(retry.hedge_factor)

    async def close(self) -> None:
        """Ends what is running and closes the connections."""
        replicas, self._replicas = self._replicas, []
        watchers, self._watchers = self._watchers, []
        for task in (*watchers, *self._closing):
            task.cancel()
        await asyncio.gather(*watchers, *self._closing, return_exceptions=True)
        await asyncio.gather(*(replica.channel.close() for replica in replicas))

    async def call(
        self,
        method: Callable[[_Stub], aio.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
        *,
        timeout_seconds: float | None = None,
        metadata: Metadata = (),
        fatal_to_replica: bool = False,
        exclusive: bool = False,
    ) -> _Response:
        """Calls a unary method on one replica after another until it answers.

        Args:
            method: of the stub.
            request: the message.
            timeout_seconds: deadline of this call in place of the client's.
            metadata: of this call.
            fatal_to_replica: the request itself may be what kills a replica: it is not sent to the next.
            exclusive: the replica runs nothing else meanwhile; the call is not hedged, and implies
                `fatal_to_replica`.

        Raises:
            ReplicaLost: if it is `fatal_to_replica` or `exclusive` and a replica died under it.
            FairleadError: what the last status says, once another try is useless or not allowed.
        """
        attempts = self._attempts(timeout_seconds)
        shown = self._credentials.with_(metadata)

        async def ask(replica: Replica[_Stub]) -> _Response:
            began = time.monotonic()
            replica.in_flight += 1
            try:
                response = await method(replica.stub)(request, timeout=attempts.timeout(), metadata=shown)
            finally:
                replica.in_flight -= 1
            self._hedging.learn(time.monotonic() - began)
            return response

        while True:
            replica = await self._next(attempts)
            reached = replica.state is grpc.ChannelConnectivity.READY
            try:
                another = (lambda: None) if exclusive else partial(self._hedge, replica, ask)
                response = await self._hedging.first_of(ask(replica), another)
            except aio.AioRpcError as error:
                if (fatal_to_replica or exclusive) and reached and is_lost(error):
                    raise ReplicaLost(str(attempts.error(replica.address, error))) from error
                await self._failed(replica, error, attempts)
            else:
                self._budget.success()
                return response

    def _hedge(
        self, late: Replica[_Stub], ask: Callable[[Replica[_Stub]], Awaitable[_Response]]
    ) -> Awaitable[_Response] | None:
        """The same call to the idlest other replica, if there is one and the budget allows it."""
        ready = [r for r in self._replicas if r.state is grpc.ChannelConnectivity.READY]
        others = [r for r in ready if r is not late and r.hold_until <= time.monotonic()]
        return ask(self._in_turn(others)) if others and self._budget.take() else None

    def stream(
        self,
        method: Callable[[_Stub], aio.UnaryStreamMultiCallable[_Request, _Response]],
        request: _Request,
        *,
        timeout_seconds: float | None = None,
        metadata: Metadata = (),
    ) -> AsyncGenerator[_Response, None]:
        """Calls a streaming method; it is tried again only until its first message.

        Raises:
            FairleadError: as for `call`, and if the stream breaks.
        """

        def begin(stub: _Stub, timeout: float) -> aio.UnaryStreamCall[_Request, _Response]:
            return method(stub)(request, timeout=timeout, metadata=self._credentials.with_(metadata))

        return self._over_streams(begin, _messages, self._attempts(timeout_seconds), goes_on=False)

    def exchange(
        self,
        method: Callable[[_Stub], aio.StreamStreamMultiCallable[_Request, _Response]],
        talk: Callable[[aio.StreamStreamCall[_Request, _Response]], AsyncGenerator[_Outcome, None]],
        *,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[_Outcome, None]:
        """Calls a method that streams both ways, anew for as long as that brings outcomes.

        Args:
            method: of the stub.
            talk: writes and reads; on the next stream it goes on where the last one broke.
            timeout_seconds: deadline of everything together.

        Raises:
            FairleadError: as for `call`.
        """

        def begin(stub: _Stub, timeout: float) -> aio.StreamStreamCall[_Request, _Response]:
            return method(stub)(timeout=timeout, metadata=self._credentials.metadata)

        return self._over_streams(begin, talk, self._attempts(timeout_seconds), goes_on=True)

    async def _over_streams(
        self,
        begin: Callable[[_Stub, float], _Call],
        talk: Callable[[_Call], AsyncGenerator[_Outcome, None]],
        attempts: Attempts,
        *,
        goes_on: bool,
    ) -> AsyncGenerator[_Outcome, None]:
        """What streams bring, one after another; `goes_on` also after one that broke when it had begun."""
        begun = False
        while True:
            replica = await self._next(attempts)
            call = begin(replica.stub, attempts.timeout())
            try:
                replica.in_flight += 1
                async with aclosing(talk(call)) as outcomes:
                    async for outcome in outcomes:
                        begun = True
                        attempts.progressed()
                        yield outcome
            except aio.AioRpcError as error:
                if begun and not goes_on:
                    raise attempts.error(replica.address, error) from error
                await self._failed(replica, error, attempts)
            else:
                self._budget.success()
                return
            finally:
                call.cancel()
                replica.in_flight -= 1

    async def _next(self, attempts: Attempts) -> Replica[_Stub]:
        """The replica for the next try: connected, willing, with the fewest calls, in turn."""
        self._connect_if_needed()
        connects_until = time.monotonic() + min(_CONNECT_SECONDS, attempts.remaining())
        while True:
            now = time.monotonic()
            ready = [r for r in self._replicas if r.state is grpc.ChannelConnectivity.READY]
            asked = [r for r in ready if r.address not in attempts.avoid] or ready
            free = [r for r in asked if r.hold_until <= now]
            if free:
                return self._in_turn(free)
            connecting = any(r.state in _CONNECTING for r in self._replicas) and now < connects_until
            if ready:
                # Jitter, or all that were refused together would come back together.
                wait = min(r.hold_until for r in asked) - now + self._retry.backoff_seconds(1)
                if not connecting:
                    attempts.check_wait(wait)
            elif connecting:
                wait = connects_until - now
            else:
                # The try fails at once, or when connecting times out, and says why.
                return self._in_turn(self._replicas)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait, attempts.remaining())), self._changed:
                    await self._changed.wait()

    def _connect_if_needed(self) -> None:
        """Connects at the first call, and anew when certificates have changed: a channel keeps its own."""
        now = time.monotonic()
        if self._replicas and now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        generation = self._credentials.generation
        if self._replicas and generation == self._generation:
            return
        self._generation = generation
        for replica, watcher in zip(self._replicas, self._watchers, strict=True):
            watcher.cancel()
            # Once what runs on it has ended.
            self._closing.add(closing := asyncio.ensure_future(replica.channel.close(self._timeout_seconds)))
            closing.add_done_callback(self._closing.discard)
        self._replicas = [
            Replica(address, self._credentials, self._make_stub, health=self._health)
            for address in self._addresses
        ]
        self._watchers = [asyncio.ensure_future(replica.watch(self._changed)) for replica in self._replicas]

    async def _failed(self, replica: Replica[_Stub], error: aio.AioRpcError, attempts: Attempts) -> None:
        """Returns when it is time for another try; raises if there is none."""
        attempts.failed(replica.address, error)
        pushback = pushback_seconds(error)
        if pushback is None:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                attempts.avoid.add(replica.address)
            await attempts.pause()
        elif replica.balanced:
            await attempts.pause(at_least_seconds=pushback)
        else:
            # Another replica is asked at once, this one not before it said.
            replica.hold_until = max(replica.hold_until, time.monotonic() + pushback)

    def _attempts(self, timeout_seconds: float | None) -> Attempts:
        timeout = timeout_seconds or self._timeout_seconds
        return Attempts(self._service, self._retry, self._budget, timeout)

    def _in_turn(self, replicas: list[Replica[_Stub]]) -> Replica[_Stub]:
        self._turn += 1
        start = self._turn % len(replicas)
        return min(replicas[start:] + replicas[:start], key=lambda replica: replica.in_flight)


async def _messages(call: aio.UnaryStreamCall[_Request, _Response]) -> AsyncGenerator[_Response, None]:
    async for response in call:
        yield response
