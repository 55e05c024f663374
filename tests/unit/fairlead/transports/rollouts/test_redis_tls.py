"""Redis over TLS: the queue and rate limits, through a TLS terminator in front of a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.infrastructure import KeysSection, QueueSection
from fairlead.errors import ConfigError, Overloaded, QueueMisconfigured, QueueUnavailable
from fairlead.local import valkey
from fairlead.local.valkey import ValkeyServer
from fairlead.rpc.api_keys import ApiKey
from fairlead.transports.rollouts.redis_trainer import RedisTrainerQueue
from fairlead.transports.rollouts.redis_worker import RedisWorkerQueue
from services.runtime.access.allowance import Allowance
from tests.unit.fairlead.rpc.tls_world import Authority


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ValkeyServer]:
    with valkey.running(tmp_path_factory.mktemp("valkey")) as started:
        yield started


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@contextlib.asynccontextmanager
async def tls_terminator(
    server: ValkeyServer, authority: Authority, *, mutual: bool, hosts: tuple[str, ...] = ()
) -> AsyncIterator[str]:
    """Run a TLS terminator; yield its URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("redis", *hosts))
    context.load_verify_locations(authority.ca)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED

    running: set[asyncio.Task[object]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while content := await reader.read(65_536):
                writer.write(content)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        finally:
            for each in (writer, inner_writer):
                each.transport.abort()
            # The loop closes their sockets in its next iteration.
            await asyncio.sleep(0)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield f"rediss://:{urlsplit(server.url).password}@127.0.0.1:{port}/0"
    finally:
        listener.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def worker_of(section: QueueSection) -> None:
    queue = await RedisWorkerQueue.connect(section, run=secrets.token_hex(4), consumer="one")
    assert not await queue.claim(count=1, block_seconds=0)
    await queue.close()


async def trainer_of(section: QueueSection) -> None:
    def work() -> None:
        queue = RedisTrainerQueue.connect(section, run=secrets.token_hex(4))
        queue.take_fence(1)
        queue.close()

    await asyncio.to_thread(work)


@pytest.mark.parametrize("mutual", [False, True])
async def test_queue_over_tls(server: ValkeyServer, authority: Authority, mutual: bool):
    certificate, key = authority.issue("worker", "worker.local")
    shown = {"redis_tls_certificate": certificate, "redis_tls_key": key} if mutual else {}
    async with tls_terminator(server, authority, mutual=mutual) as url:
        section = QueueSection(redis_url=url, redis_tls_ca=str(authority.ca), **shown)
        await trainer_of(section)
        await worker_of(section)
        if mutual:
            bare = QueueSection(redis_url=url, redis_tls_ca=str(authority.ca))
            for attempt in (worker_of, trainer_of):
                with pytest.raises(QueueUnavailable):
                    await attempt(bare)


async def test_untrusted_server_is_refused_with_setting_to_change(
    server: ValkeyServer, authority: Authority, tmp_path: Path
):
    other = Authority(tmp_path, "theirs")
    async with tls_terminator(server, authority, mutual=False) as url:
        for attempt in (worker_of, trainer_of):
            for section in (
                QueueSection(redis_url=url, redis_tls_ca=str(other.ca)),
                QueueSection(redis_url=url),
            ):
                with pytest.raises(QueueMisconfigured, match=r"not trusted.*queue\.redis_tls_ca"):
                    await attempt(section)


async def test_server_name_must_match_its_address(server: ValkeyServer, authority: Authority):
    async with tls_terminator(server, authority, mutual=False, hosts=("redis.example",)) as url:
        section = QueueSection(redis_url=url, redis_tls_ca=str(authority.ca))
        for attempt in (worker_of, trainer_of):
            with pytest.raises(QueueMisconfigured, match="not trusted"):
                await attempt(section)


def test_missing_or_unused_files_are_refused(authority: Authority, tmp_path: Path):
    absent = QueueSection(redis_url="rediss://127.0.0.1:1", redis_tls_ca=str(tmp_path / "absent.pem"))
    with pytest.raises(ConfigError, match=r"queue\.redis_tls_ca: got .*absent\.pem"):
        RedisTrainerQueue.connect(absent, run="tls")
    useless = QueueSection(redis_url="redis://127.0.0.1:1", redis_tls_ca=str(authority.ca))
    with pytest.raises(ConfigError, match="rediss://"):
        RedisTrainerQueue.connect(useless, run="tls")
    keys = KeysSection(redis_url="redis://127.0.0.1:1", redis_tls_ca=str(authority.ca))
    with pytest.raises(ConfigError, match=r"keys\.redis_tls_ca"):
        Allowance(keys, access_metrics=metrics.AccessMetrics(CollectorRegistry()))


async def test_rate_limits_over_tls(server: ValkeyServer, authority: Authority):
    who = ApiKey(id="tls", sha256="0" * 64, scopes=("score",), requests_per_second=0.01)
    certificate, key = authority.issue("gateway", "gateway.local")
    access_metrics = metrics.AccessMetrics(CollectorRegistry())
    async with tls_terminator(server, authority, mutual=True) as url:
        section = KeysSection(
            redis_url=url,
            redis_tls_ca=str(authority.ca),
            redis_tls_certificate=certificate,
            redis_tls_key=key,
        )
        for allowed in (True, False):
            # A new object each time: only Redis remembers the first call.
            allowance = Allowance(section, access_metrics=access_metrics)
            try:
                if allowed:
                    await allowance.admit(who, requests=1, tokens=0)
                else:
                    with pytest.raises(Overloaded):
                        await allowance.admit(who, requests=1, tokens=0)
            finally:
                await allowance.close()
    assert access_metrics.redis_failures._value.get() == 0
