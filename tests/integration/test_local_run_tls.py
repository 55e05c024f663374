"""A whole run with mutual TLS, API keys and weights over gRPC: no service accepts plain text."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from fairlead.cli.main import app
from fairlead.clients import AsyncRewardClient
from fairlead.config.base import TlsSection
from fairlead.errors import Unauthenticated, Unavailable
from fairlead.local.run_files import read_record
from fairlead.rpc.credentials import Credentials
from fairlead.rpc.retry import RetryPolicy
from fairlead.v1 import weight_service_pb2 as pb
from fairlead.v1 import weight_service_pb2_grpc as pb_grpc
from tests.integration.ppo_run import check, make, started
from tests.unit.fairlead.rpc.tls_world import Authority

ONCE = RetryPolicy(max_attempts=1)


async def asked_for_weights(address: str, *, tls: TlsSection | None, api_key: str) -> grpc.StatusCode:
    """Request a shard from the weights service, or from a policy replica that relays it."""
    who = Credentials([address], api_key=api_key, tls=tls)
    async with who.channel(address, ()) as channel:
        request = pb.FetchShardRequest(shard="none.safetensors")
        try:
            async for _ in pb_grpc.WeightServiceStub(channel).FetchShard(
                request, metadata=who.metadata, timeout=10
            ):
                pass
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


@pytest.mark.slow
def test_run_over_tls_with_keys(tmp_path: Path, monkeypatch):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("run")
    file = make(tmp_path, updates=40)
    keys = str(tmp_path / "keys.json")

    def create(name: str, *scopes: str) -> str:
        flags = [part for scope in scopes for part in ("--scope", scope)]
        made = CliRunner().invoke(app, ["keys", "create", name, *flags, "--file", keys])
        return made.stdout.strip()

    api_key, scorer = create("worker", "score", "generate", "weights"), create("scorer", "score")
    monkeypatch.setenv("FAIRLEAD_API_KEY", api_key)
    with file.open("a") as stream:
        stream.write(
            f'access_log = "plain"\n[weights]\ntransport = "grpc"\n[keys]\nfile = "{keys}"\n'
            f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\nca = "{authority.ca}"\nmutual = true\n'
        )
    full = TlsSection(certificate=certificate, key=key, ca=str(authority.ca))

    async def version(address: str, tls: TlsSection | None, api_key: str | None) -> str:
        async with AsyncRewardClient(
            address, tls=tls, api_key=api_key, retry=ONCE, timeout_seconds=10
        ) as client:
            return (await client.info()).model_version

    with started(file, "--set", "policy.replicas=2") as run:
        run.until(lambda: run.step() >= 1)
        supervised = read_record(run.folder.supervisor)
        assert supervised is not None
        addresses = {one.name: one.grpc for one in supervised.processes}
        for name in ("weights-0", "policy-0", "policy-1"):
            asked = addresses[name]
            found = [
                asyncio.run(asked_for_weights(asked, tls=full, api_key=shown))
                for shown in ("", scorer, api_key)
            ]
            expected = ["UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT"]
            assert [code.name for code in found] == expected, name
            plain = asyncio.run(asked_for_weights(asked, tls=None, api_key=""))
            assert plain is grpc.StatusCode.UNAVAILABLE
        address = addresses["reward-0"]
        assert asyncio.run(version(address, full, None))
        with pytest.raises(Unauthenticated):
            asyncio.run(version(address, full, ""))
        with pytest.raises(Unavailable):
            asyncio.run(version(address, None, ""))
        with pytest.raises(Unavailable):
            asyncio.run(version(address, TlsSection(ca=str(authority.ca)), None))
        status = CliRunner().invoke(app, ["status", str(run.folder.root), "--json"])
        healthy = {one["name"]: one["healthy"] for one in json.loads(status.stdout)["services"]}
        assert all(healthy[name] for name in ("policy-0", "policy-1", "reward-0", "reference-0"))
        code, output = run.finish()
        assert code == 0, output + run.log_tails()
        check(run.folder)
        # No log and no file of the run contains the key.
        secret = api_key.rpartition("_")[2]
        written = output + run.log_tails() + run.folder.config.read_text()
        assert secret not in written
        assert '"key": "worker"' in run.folder.log("reward-0").read_text()
        assert '"key": "worker"' in run.folder.log("weights-0").read_text()
        assert all("fetched and verified" in run.folder.log(f"policy-{n}").read_text() for n in (0, 1))
