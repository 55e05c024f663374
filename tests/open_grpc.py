"""The gRPC channels and servers that are open in this process; a fixture fails a test that leaves any open.

All of them share one completion queue, so what outlives its event loop disturbs the tests that follow. A
server that still runs when its loop is closed is worse: gRPC writes the next call into memory that was freed
with the tasks of the loop, and the process crashes then or later.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import grpc
from grpc import aio

_CREATED: weakref.WeakSet[Any] = weakref.WeakSet()


def watch() -> None:
    """Remember every channel and server created from now on."""
    for name in ("insecure_channel", "secure_channel", "server"):
        setattr(aio, name, _remembered(getattr(aio, name)))


@functools.cache
def _keep_started() -> None:
    """Keep gRPC's core running between tests, as services do.

    Otherwise the core and its threads stop whenever nothing is open, and start again in the next test: some
    thousand times in a run, while closed connections are still being cleaned up.
    """
    aio.init_grpc_aio()


def _remembered(create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def creating(*arguments: object, **options: object) -> object:
        _keep_started()
        created = create(*arguments, **options)
        _CREATED.add(created)
        return created

    return creating


def still_open() -> set[Any]:
    """Return the channels that are not closed and the servers that are not stopped."""
    return {one for one in _CREATED if _is_open(one)}


def _is_open(one: Any) -> bool:
    if isinstance(one, aio.Channel):
        return one.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    return bool(one._server.is_running())
