"""A whole run on one machine over mutual TLS and with API keys: no service is spoken to in plain text."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairlead.cli.main import app
from fairlead.clients import AsyncRewardClient
from fairlead.config.tls import TlsSection
from fairlead.errors import Unauthenticated, Unavailable
from fairlead.local.record import read
from fairlead.retry import RetryPolicy
from tests.integration.ppo_run import check, make, started
from tests.unit.tls_world import Authority

ONCE = RetryPolicy(max_attempts=1)


@pytest.mark.slow
def test_a_run_over_tls_with_keys(tmp_path: Path, monkeypatch):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("run")
    file = make(tmp_path, updates=3)
    keys = str(tmp_path / "keys.json")
    scopes = ["--scope", "score", "--scope", "generate"]
    made = CliRunner().invoke(app, ["keys", "create", "worker", *scopes, "--file", keys])
    monkeypatch.setenv("FAIRLEAD_API_KEY", made.stdout.strip())
    with file.open("a") as stream:
        stream.write(
            f'access_log = "plain"\n[keys]\nfile = "{keys}"\n'
            f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\nca = "{authority.ca}"\nmutual = true\n'
        )
    full = TlsSection(certificate=certificate, key=key, ca=str(authority.ca))

    async def version(address: str, tls: TlsSection | None, api_key: str | None) -> str:
        async with AsyncRewardClient(
            address, tls=tls, api_key=api_key, retry=ONCE, timeout_seconds=10
        ) as client:
            return (await client.info()).model_version

    with started(file) as run:
        run.until(lambda: run.step() >= 1)
        supervised = read(run.folder.supervisor)
        assert supervised is not None
        [address] = [one.grpc for one in supervised.processes if one.name == "reward-0"]
        assert asyncio.run(version(address, full, None))
        with pytest.raises(Unauthenticated):
            asyncio.run(version(address, full, ""))
        with pytest.raises(Unavailable):
            asyncio.run(version(address, None, ""))
        with pytest.raises(Unavailable):
            asyncio.run(version(address, TlsSection(ca=str(authority.ca)), None))
        status = CliRunner().invoke(app, ["status", str(run.folder.root), "--json"])
        healthy = {one["name"]: one["healthy"] for one in json.loads(status.stdout)["services"]}
        assert all(healthy[name] for name in ("policy-0", "reward-0", "reference-0"))
        code, said = run.finish()
        assert code == 0, said + run.words()
        check(run.folder)
        # The key is in no log and no file of the run.
        secret = made.stdout.strip().rpartition("_")[2]
        written = said + run.words() + run.folder.config.read_text()
        assert secret not in written
        assert '"key": "worker"' in run.folder.log("reward-0").read_text()
