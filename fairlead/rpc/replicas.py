"""Calls to the replicas of one service: which replica is next, and when a call is retried or hedged.

Sits between the clients and grpc.aio. Knows the stubs that a client creates, but not their messages. Every
call has a deadline and is idempotent, so every transient error is retried.

A replica is used while its channel is READY: connected, and the server's health reports SERVING (gRFC A17).
An address may be `host:port`, or `dns:///name:port`, whose replicas gRPC finds and balances.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Generic, Protocol, TypeVar

import grpc
from grpc import aio

from fairlead import tracing
from fairlead.errors import ConfigError, InvalidInput, ReplicaLost
from fairlead.rpc import forks
from fairlead.rpc.call_counts import CALLS
from fairlead.rpc.credentials import Credentials, Metadata
from fairlead.rpc.hedging import Hedging
from fairlead.rpc.replica import Replica
from fairlead.rpc.retry import Attempts, RetryBudget, RetryPolicy
from fairlead.rpc.status import TRACEPARENT, has_started, is_lost, pushback_seconds

_Stub = TypeVar("_Stub")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Outcome = TypeVar("_Outcome")
_Call = TypeVar("_Call", bound=aio.Call)

_CONNECT_SECONDS = 5.0
_CERTIFICATE_SECONDS = 1.0
"""How often certificates are checked for changes."""
_CONNECTING = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)


_Request_contra = TypeVar("_Request_contra", contravariant=True)
_Response_co = TypeVar("_Response_co", covariant=True)


class UnaryMethod(Protocol[_Request_contra, _Response_co]):
    """A unary method of a stub, or what is called like one."""

    def __call__(
        self, request: _Request_contra, /, *, timeout: float, metadata: Metadata | None
    ) -> Awaitable[_Response_co]:
        """Call it.

        Raises:
            AioRpcError: if it fails.
        """
        ...


class Replicas(Generic[_Stub]):
    """The replicas of one service, called with retries. Used within the event loop of its first call."""

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
            addresses: the address of every replica, or one name for all of them.
            make_stub: creates the generated stub on a channel.
            service: name of the service, for messages.
            timeout_seconds: default deadline of a call, all its attempts together.
            retry: limits of retries.
            credentials: creates the TLS settings and API key for these addresses.
            health: service that must be SERVING for a replica to be used; the whole server if empty.

        Raises:
            ConfigError: for no address, an address without a port, or unusable credentials.
        """
        self._addresses = _checked(addresses)
        self._make_stub = make_stub
        self._credentials = credentials(self._addresses)
        self._generation = 0
        self._checked_at = 0.0
        self._retiring: dict[asyncio.Task[None], Replica[_Stub]] = {}
        """Connections that are closed when the calls on them have ended."""
        self._service = service
        self._timeout_seconds = timeout_seconds
        self._retry = retry
        self._health = health
        self._budget = RetryBudget(retry)
        self._replicas: list[Replica[_Stub]] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that the connections belong to, once there are any."""
        self._closed = False
        self._changed = asyncio.Condition()
        self._turn = 0
        self._hedging = Hedging(retry.hedge_factor)

    async def close(self) -> None:
        """Cancel the calls in progress and close the connections; no call can be made afterwards."""
        if forks.is_broken():
            return  # the connections belong to the parent process
        if self._loop is not asyncio.get_running_loop():
            if self._loop is None or self._loop.is_closed():
                self._closed = True
                # Their calls ended with that event loop; gRPC closes a channel that nothing refers to.
                self._replicas, self._watchers = [], []
                self._retiring.clear()
            return
        self._closed = True
        replicas, self._replicas = [*self._replicas, *self._retiring.values()], []
        tasks, self._watchers = [*self._watchers, *self._retiring], []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(replica.channel.close() for replica in replicas))
        async with self._changed:
            self._changed.notify_all()

    async def call(
        self,
        method: Callable[[_Stub], UnaryMethod[_Request, _Response]],
        request: _Request,
        *,
        timeout_seconds: float | None = None,
        metadata: Metadata = (),
        fatal_to_replica: bool = False,
        exclusive: bool = False,
        traced: bool = True,
    ) -> _Response:
        """Call a unary method, retried on another replica until it succeeds, and return its response.

        Args:
            method: selects the method of the stub.
            request: the message.
            timeout_seconds: deadline of this call; None for the default.
            metadata: additional metadata of this call.
            fatal_to_replica: the request may kill a replica, so it is not retried after a replica died.
            exclusive: the replica computes nothing else meanwhile; the call is not hedged. It waits in the
                replica until the requests before it have ended; if the replica dies meanwhile, it is retried.
            traced: send the present span in the metadata; false if the message has it.

        Raises:
            ReplicaLost: if a replica died during a call that is `fatal_to_replica`, or after an `exclusive`
                one had begun to run.
            FairleadError: the last error, when it is not transient or no retry is left.
        """
        attempts = self._attempts(timeout_seconds)
        call_metadata = self._credentials.call_metadata((*metadata, *_trace()) if traced else metadata)

        async def send(replica: Replica[_Stub]) -> _Response:
            began = time.monotonic()
            called = method(replica.stub)
            path = replica.path_of(called)
            code = grpc.StatusCode.CANCELLED
            try:
                with replica.calling():
                    response = await called(request, timeout=attempts.timeout(), metadata=call_metadata)
                code = grpc.StatusCode.OK
            except aio.AioRpcError as error:
                code = error.code()
                raise
            finally:
                CALLS.count_attempt(path, code.name)
            self._hedging.record(time.monotonic() - began)
            return response

        while True:
            replica = await self._next(attempts)
            reached = replica.state is grpc.ChannelConnectivity.READY
            try:
                another = (lambda: None) if exclusive else partial(self._hedge, replica, send)
                response = await self._hedging.first_of(send(replica), another, on_won=self._count_won)
            except aio.AioRpcError as error:
                suspect = has_started(error) if exclusive else fatal_to_replica
                if suspect and reached and is_lost(error):
                    raise ReplicaLost(str(attempts.error(replica.address, error))) from error
                await self._failed(replica, error, attempts)
            else:
                self._budget.success()
                return response

    def _count_won(self) -> None:
        CALLS.count_hedge(self._service, "won")

    def _hedge(
        self, late: Replica[_Stub], send: Callable[[Replica[_Stub]], Awaitable[_Response]]
    ) -> Awaitable[_Response] | None:
        """Send the call to the least busy other replica as well, if there is one and the budget allows it."""
        ready = [r for r in self._replicas if r.state is grpc.ChannelConnectivity.READY]
        others = [r for r in ready if r is not late and r.hold_until <= time.monotonic()]
        if not others or not self._budget.take():
            return None
        CALLS.count_hedge(self._service, "sent")
        return send(self._least_busy(others))

    def stream(
        self,
        method: Callable[[_Stub], aio.UnaryStreamMultiCallable[_Request, _Response]],
        request: _Request,
        *,
        timeout_seconds: float | None = None,
        metadata: Metadata = (),
    ) -> AsyncGenerator[_Response, None]:
        """Call a method that streams responses; it is retried only before its first response.

        Raises:
            FairleadError: as `call`, and if the stream breaks after its first response.
        """
        sent = self._credentials.call_metadata((*metadata, *_trace()))

        def begin(stub: _Stub, timeout: float) -> aio.UnaryStreamCall[_Request, _Response]:
            return method(stub)(request, timeout=timeout, metadata=sent)

        return self._over_streams(
            begin, _messages, self._attempts(timeout_seconds), resumes=False, path=_path(method)
        )

    def exchange(
        self,
        method: Callable[[_Stub], aio.StreamStreamMultiCallable[_Request, _Response]],
        communicate: Callable[[aio.StreamStreamCall[_Request, _Response]], AsyncGenerator[_Outcome, None]],
        *,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[_Outcome, None]:
        """Call a method that streams both ways; a broken stream is opened again while outcomes still arrive.

        Args:
            method: selects the method of the stub.
            communicate: writes and reads; on the next stream it continues where the last one broke.
            timeout_seconds: deadline of all streams together.

        Raises:
            FairleadError: as `call`.
        """
        sent = self._credentials.call_metadata(_trace())

        def begin(stub: _Stub, timeout: float) -> aio.StreamStreamCall[_Request, _Response]:
            return method(stub)(timeout=timeout, metadata=sent)

        return self._over_streams(
            begin, communicate, self._attempts(timeout_seconds), resumes=True, path=_path(method)
        )

    async def _over_streams(
        self,
        begin: Callable[[_Stub, float], _Call],
        communicate: Callable[[_Call], AsyncGenerator[_Outcome, None]],
        attempts: Attempts,
        *,
        resumes: bool,
        path: Callable[[Replica[_Stub]], str],
    ) -> AsyncGenerator[_Outcome, None]:
        """Yield the outcomes of one stream after another; `resumes` retries even a stream that had begun."""
        begun = False
        while True:
            replica = await self._next(attempts)
            call = begin(replica.stub, attempts.timeout())
            code = grpc.StatusCode.CANCELLED
            try:
                with replica.calling():
                    async with aclosing(communicate(call)) as outcomes:
                        async for outcome in outcomes:
                            begun = True
                            attempts.progressed()
                            yield outcome
            except aio.AioRpcError as error:
                code = error.code()
                if begun and not resumes:
                    raise attempts.error(replica.address, error) from error
                await self._failed(replica, error, attempts)
            else:
                code = grpc.StatusCode.OK
                self._budget.success()
                return
            finally:
                call.cancel()
                CALLS.count_attempt(path(replica), code.name)

    async def _next(self, attempts: Attempts) -> Replica[_Stub]:
        """Return the replica for the next attempt: connected, accepting calls, with the fewest calls in
        progress.
        """
        self._connect_if_needed()
        connects_until = time.monotonic() + min(_CONNECT_SECONDS, attempts.remaining())
        while True:
            self._check_open()
            now = time.monotonic()
            ready = [r for r in self._replicas if r.state is grpc.ChannelConnectivity.READY]
            candidates = [r for r in ready if r.address not in attempts.avoid] or ready
            free = [r for r in candidates if r.hold_until <= now]
            if free:
                return self._least_busy(free)
            connecting = any(r.state in _CONNECTING for r in self._replicas) and now < connects_until
            if ready:
                # Jitter: otherwise all calls that were refused together would return together.
                wait = min(r.hold_until for r in candidates) - now + self._retry.backoff_seconds(1)
                if not connecting:
                    attempts.check_wait(wait)
            elif connecting:
                wait = connects_until - now
            else:
                # The attempt fails at once, or when connecting times out, with the reason.
                return self._least_busy(self._replicas)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait, attempts.remaining())), self._changed:
                    await self._changed.wait()

    def _connect_if_needed(self) -> None:
        """Connect at the first call, and again when certificates have changed: a channel keeps its own.

        Raises:
            RuntimeError: in a process that was forked after its parent had used gRPC, in another event loop
                than that of the first call, or after `close`.
        """
        forks.check()
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise RuntimeError(
                "this client was used in another event loop, which its connections belong to: create a "
                "client in each event loop, or use the blocking client"
            )
        self._loop = loop
        now = time.monotonic()
        if self._replicas and now - self._checked_at < _CERTIFICATE_SECONDS:
            return
        self._checked_at = now
        generation = self._credentials.generation
        if self._replicas and generation == self._generation:
            return
        self._generation = generation
        forks.connected()
        for replica, watcher in zip(self._replicas, self._watchers, strict=True):
            watcher.cancel()
            retiring = asyncio.ensure_future(replica.retire(self._timeout_seconds))
            self._retiring[retiring] = replica
            retiring.add_done_callback(self._retiring.pop)
        self._replicas = [
            Replica(address, self._credentials, self._make_stub, health=self._health)
            for address in self._addresses
        ]
        CALLS.add_service(self._service, self._replicas[0].paths.values())
        self._watchers = [asyncio.ensure_future(replica.watch(self._changed)) for replica in self._replicas]

    def _check_open(self) -> None:
        """Check that the client is not closed: a retry would connect again, and nothing would close that.

        Raises:
            RuntimeError: if it is.
        """
        if self._closed:
            raise RuntimeError("this client is closed")

    async def _failed(self, replica: Replica[_Stub], error: aio.AioRpcError, attempts: Attempts) -> None:
        """Return when the next attempt may begin; raise if no attempt is left."""
        attempts.failed(replica.address, error)
        CALLS.count_retry(self._service, error.code().name)
        pushback = pushback_seconds(error)
        if pushback is None:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                attempts.avoid.add(replica.address)
            await attempts.pause()
        elif replica.balanced:
            await attempts.pause(at_least_seconds=pushback)
        else:
            # Another replica is called at once, this one not before the delay that it asked for.
            replica.hold_until = max(replica.hold_until, time.monotonic() + pushback)

    def _attempts(self, timeout_seconds: float | None) -> Attempts:
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        if not timeout > 0:
            raise InvalidInput("timeout_seconds", got=timeout, allowed="more than 0, or None for the default")
        return Attempts(self._service, self._retry, self._budget, timeout)

    def _least_busy(self, replicas: list[Replica[_Stub]]) -> Replica[_Stub]:
        self._turn += 1
        start = self._turn % len(replicas)
        return min(replicas[start:] + replicas[:start], key=lambda replica: replica.in_flight)


def _path(method: Callable[[_Stub], object]) -> Callable[[Replica[_Stub]], str]:
    """Return what returns the path of a method at a replica, for metrics."""
    return lambda replica: replica.path_of(method(replica.stub))


def _trace() -> Metadata:
    """Return the metadata that names the present span, if this process traces."""
    header = tracing.traceparent()
    return () if header is None else ((TRACEPARENT, header),)


async def _messages(call: aio.UnaryStreamCall[_Request, _Response]) -> AsyncGenerator[_Response, None]:
    async for response in call:
        yield response


_HOST = re.compile(r"[^\[\]:/\s]+|\[[0-9a-fA-F:.%\w]+\]")
"""A host name, an IPv4 address, or an IPv6 address in brackets."""


def _checked(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """Return the addresses of a service.

    Raises:
        ConfigError: for no address, or one that is not a host or name with a port.
    """
    found = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    if not found:
        raise ConfigError("addresses", got="none", allowed="at least one host:port")
    for address in found:
        host, _, port = address.removeprefix("dns:///").rpartition(":")
        # gRPC would take a larger port modulo 65,536, and a scheme for a part of the name.
        has_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535
        if not has_port or not _HOST.fullmatch(host):
            raise ConfigError("addresses", got=address, allowed="host:port or dns:///name:port")
    return found
