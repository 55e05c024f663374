"""TLS and mTLS of servers and clients: trusted and untrusted callers, and renewed certificates."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.clients import AsyncRewardClient, RewardClient
from fairlead.config.base import TlsSection
from fairlead.config.infrastructure import ObserveSection
from fairlead.config.serving import ModelServiceSection
from fairlead.errors import ConfigError, Unauthenticated, Unavailable
from fairlead.local.probes import ALIVE_PATH, READY_PATH, GrpcHealth, HttpHealth
from fairlead.metrics import page as metrics_page
from fairlead.rpc.tls import Certificates
from services.runtime.server import ModelServer
from tests.unit.fairlead.rpc.rpc_world import FAST, Replica
from tests.unit.fairlead.rpc.tls_world import Authority

NAME = "fairlead.v1.RewardService"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def serving(
    tls: TlsSection,
    *,
    registry: CollectorRegistry | None = None,
    behave: Callable[[int], Awaitable[None]] | None = None,
):
    from fairlead.v1 import reward_service_pb2_grpc as pb_grpc

    section = ModelServiceSection(bind="127.0.0.1:0")
    registry = registry or CollectorRegistry()
    async with ModelServer("reward", section, ObserveSection(), tls=tls, registry=registry) as server:
        replica = Replica("one", behave)
        await server.start(lambda s: pb_grpc.add_RewardServiceServicer_to_server(replica, s), [NAME])
        server.set_ready(True)
        yield server


async def version(address: str, tls: TlsSection | None) -> str:
    async with AsyncRewardClient(address, tls=tls, retry=FAST, timeout_seconds=30) as client:
        return (await client.info()).model_version


@pytest.mark.parametrize("mutual", [False, True])
async def test_client_that_trusts_the_authority_connects(authority: Authority, mutual: bool):
    async with serving(authority.server(mutual=mutual)) as server:
        assert await version(server.address, authority.client(name="worker.local")) == "one"
        probe = GrpcHealth(server.address, authority.client(name="prober.local"))
        assert await probe()
        if not mutual:
            assert await version(server.address, authority.client()) == "one"

        def blocking() -> str:
            with RewardClient(server.address, tls=authority.client(name="notebook.local")) as client:
                return client.info().model_version

        assert await asyncio.to_thread(blocking) == "one"


async def test_client_that_does_not_trust_the_authority_gets_the_reason(authority: Authority, tmp_path: Path):
    other = Authority(tmp_path, "theirs")
    async with serving(authority.server()) as server:
        with pytest.raises(Unauthenticated, match="certificate") as caught:
            await version(server.address, other.client())
        assert "tls.ca" in str(caught.value)
        assert not await GrpcHealth(server.address, other.client())()
        # In plain text nothing is served, not even health.
        with pytest.raises(Unavailable):
            await version(server.address, None)
        assert not await GrpcHealth(server.address)()


async def test_expired_certificate_of_a_server_is_refused(authority: Authority):
    async with serving(authority.server(expired=True)) as server:
        with pytest.raises(Unauthenticated, match="expired"):
            await version(server.address, authority.client())


async def test_name_of_a_server_must_match_its_address(authority: Authority):
    async with serving(authority.server("reward.example")) as server:
        with pytest.raises(Unauthenticated, match=r"its name is not that of the address .*tls\.server_name"):
            await version(server.address, authority.client())
        assert await version(server.address, authority.client(server_name="reward.example")) == "one"


@pytest.mark.parametrize("shown", ["none", "of another authority", "expired"])
async def test_mutual_tls_requires_a_valid_client_certificate(
    authority: Authority, tmp_path: Path, shown: str
):
    if shown == "none":
        tls = authority.client()
    elif shown == "expired":
        certificate, key = authority.issue("late", "late.local", expired=True)
        tls = TlsSection(certificate=certificate, key=key, ca=str(authority.ca))
    else:
        certificate, key = Authority(tmp_path, "theirs").issue("stranger", "stranger.local")
        tls = TlsSection(certificate=certificate, key=key, ca=str(authority.ca))
    async with serving(authority.server(mutual=True)) as server:
        with pytest.raises((Unavailable, Unauthenticated)):
            await version(server.address, tls)
        assert await version(server.address, authority.client(name="worker.local")) == "one"


async def test_old_tls_versions_are_refused(authority: Authority):
    async with serving(authority.server()) as server:
        host, _, port = server.address.rpartition(":")
        context = ssl.create_default_context(cafile=str(authority.ca))
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        assert writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
        writer.close()
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(authority.ca)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(host, int(port), ssl=old)


async def test_server_loads_a_renewed_certificate_without_a_restart(authority: Authority, tmp_path: Path):
    """The authority and the certificates are replaced at the same time."""
    section = authority.server()
    async with serving(section) as server:
        assert await version(server.address, authority.client()) == "one"
        new = Authority(tmp_path, "new")
        with pytest.raises(Unauthenticated):
            await version(server.address, new.client())
        new.issue("server")
        assert await version(server.address, new.client()) == "one"
        with pytest.raises(Unauthenticated):
            await version(server.address, authority.client())


async def test_client_loads_a_renewed_certificate_without_a_restart(authority: Authority, tmp_path: Path):
    new = Authority(tmp_path, "new")
    mutual = authority.server(mutual=True)
    client_tls = authority.client(name="worker.local")
    async with serving(mutual) as server:
        async with AsyncRewardClient(server.address, tls=client_tls, retry=FAST) as client:
            assert (await client.info()).model_version == "one"
            # Replaced servers: another authority and new certificates at the same address.
            authority.ca.write_bytes(new.ca.read_bytes())
            new.issue("server")
            new.issue("worker.local", "worker.local")
            client._replicas._checked_at = 0.0
            before = client._replicas._replicas
            assert (await client.info()).model_version == "one"
            assert client._replicas._replicas != before


@pytest.mark.parametrize("ends", ["call", "client"])
async def test_replaced_connection_is_closed_after_its_calls_or_with_its_client(
    authority: Authority, ends: str
):
    entered, resume = asyncio.Event(), asyncio.Event()

    async def wait(_: int) -> None:
        entered.set()
        await resume.wait()

    async with serving(authority.server(), behave=wait) as server:
        client = AsyncRewardClient(server.address, tls=authority.client(), timeout_seconds=30)
        async with client:
            call = asyncio.ensure_future(client.score([("a", "b")]))
            await entered.wait()
            (replaced,) = client._replicas._replicas
            authority.ca.write_bytes(authority.ca.read_bytes() + b"\n")
            client._replicas._checked_at = 0.0
            assert (await client.info()).model_version == "one"
            assert client._replicas._replicas != [replaced]
            assert replaced.channel.get_state() is grpc.ChannelConnectivity.READY
            if ends == "call":
                resume.set()
                assert (await call).model_version == "one"
                async with asyncio.timeout(30):
                    while client._replicas._retiring:  # noqa: ASYNC110 - there is no event to wait for
                        await asyncio.sleep(0.001)
                assert replaced.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
        assert replaced.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
        if ends == "client":
            with pytest.raises(asyncio.CancelledError):
                await call


class File:
    """A file that is damaged, then repaired."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self.content = self._path.read_bytes()

    def copy(self, to: str) -> None:
        Path(to).write_bytes(self.content)

    def write(self, content: bytes) -> None:
        self._path.write_bytes(content)


async def test_files_that_do_not_match_keep_the_previous_certificates(
    authority: Authority, tmp_path: Path, caplog
):
    section = authority.server()
    kept = str(tmp_path / "kept.pem")
    File(section.ca).copy(kept)
    registry = CollectorRegistry()
    caplog.set_level(logging.ERROR)
    async with serving(section, registry=registry) as server:
        other = Authority(tmp_path, "theirs").server(name="other")
        for path, damage in (
            (section.key, File(other.key).content),
            (section.certificate, b"no certificate"),
            (section.ca, b"no authority"),
            (section.key, b""),
        ):
            file = File(path)
            before = registry.get_sample_value("fairlead_tls_reload_failures_total")
            file.write(damage)
            assert await version(server.address, TlsSection(ca=kept)) == "one"
            assert registry.get_sample_value("fairlead_tls_reload_failures_total") == before + 1
            file.write(file.content)
        assert await version(server.address, TlsSection(ca=kept)) == "one"
    # Others say things too: a gRPC poller of an earlier test may complain of that test's closed loop.
    assert len([record for record in caplog.records if record.name == "fairlead.rpc.tls"]) == 4
    assert all("PRIVATE KEY" not in record.getMessage() for record in caplog.records)


def test_missing_tls_settings_are_named(authority: Authority, tmp_path: Path):
    section = authority.server()
    with pytest.raises(ValueError, match="must be set together"):
        TlsSection(certificate=section.certificate)
    with pytest.raises(ValueError, match="`mutual` requires"):
        TlsSection(ca=section.ca, mutual=True)
    with pytest.raises(ConfigError, match=r"tls\.certificate: got 'none'"):
        Certificates(TlsSection(ca=section.ca), serves=True)
    with pytest.raises(ConfigError, match=r"tls\.ca: got .*absent\.pem .*No such file"):
        Certificates(TlsSection(ca=str(tmp_path / "absent.pem")))
    _, other_key = authority.issue("other")
    with pytest.raises(ConfigError, match=r"tls\.certificate: got .*KEY_VALUES_MISMATCH"):
        Certificates(TlsSection(certificate=section.certificate, key=other_key))


def test_key_with_a_passphrase_is_refused_without_a_prompt(authority: Authority, tmp_path: Path):
    from cryptography.hazmat.primitives import serialization

    section = authority.server()
    key = serialization.load_pem_private_key(Path(section.key).read_bytes(), password=None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match=r"tls\.certificate"):
        Certificates(TlsSection(certificate=section.certificate, key=str(locked)))


def page(port: int, context: ssl.SSLContext | None) -> bytes:
    scheme = "http" if context is None else "https"
    with urllib.request.urlopen(
        f"{scheme}://127.0.0.1:{port}/metrics", timeout=30, context=context
    ) as answer:
        content: bytes = answer.read()
    return content


async def test_metrics_endpoint_uses_tls_if_configured(authority: Authority, tmp_path: Path):
    section = authority.server(mutual=True)
    observe = ObserveSection(metrics_tls=True)
    registry = CollectorRegistry()
    metrics.TlsMetrics(registry)
    port, stop = metrics_page.serve(observe, tls=section, ready=lambda: True, registry=registry)
    # A caller that never says a word holds up nobody.
    mute = socket.create_connection(("127.0.0.1", port))
    try:
        client = authority.client(name="prometheus.local")
        assert b"fairlead_tls" in await asyncio.to_thread(page, port, Certificates(client).client_context())
        for path in (READY_PATH, ALIVE_PATH):
            assert await HttpHealth("127.0.0.1", port, path, client)()
        assert not await HttpHealth("127.0.0.1", port, READY_PATH, None)()
        # Probes have no certificate; they learn no more than that the process is ready.
        assert await HttpHealth("127.0.0.1", port, READY_PATH, authority.client())()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            await asyncio.to_thread(page, port, Certificates(authority.client()).client_context())
        with pytest.raises((urllib.error.URLError, OSError)):
            await asyncio.to_thread(page, port, None)
        new = Authority(tmp_path, "new")
        new.issue("server")
        authority.ca.write_bytes(new.ca.read_bytes())
        assert b"fairlead_tls" in await asyncio.to_thread(
            page, port, Certificates(new.client(name="prometheus.local")).client_context()
        )
    finally:
        mute.close()
        stop()


def test_metrics_endpoint_needs_a_certificate_for_tls():
    with pytest.raises(ConfigError, match=r"observe\.metrics_tls"):
        metrics_page.serve(ObserveSection(metrics_tls=True), tls=TlsSection(), ready=lambda: True)
