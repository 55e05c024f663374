"""docs/security.md: run its five-minute start from the page."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.config import load
from tests.contract.test_documents import ROOT
from tests.gateway_world import gateway
from tests.tiny import tiny_reward_model
from tests.unit.services.reward.reward_world import reward_service

PAGE = (ROOT / "docs" / "security.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the page's code blocks in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def shell(script: str, folder: Path, **environment: str) -> str:
    """Run a script with this environment's programs first on the PATH; return what it prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-euc", script],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
async def test_five_minute_start(tmp_path: Path, monkeypatch):
    setup, request = blocks("bash")[:2]
    (configuration,), (python,) = blocks("toml"), blocks("python")
    printed = shell(setup, tmp_path)
    key = re.findall(r"^fl_search_[0-9a-f]{64}$", printed, re.M)[0]
    (tmp_path / "run.toml").write_text(configuration)
    monkeypatch.chdir(tmp_path)
    config = load(tmp_path / "run.toml")
    folder = tiny_reward_model(tmp_path / "reward")
    sections = {f"tls.{name}": value for name, value in config.tls.model_dump().items()}
    sections["keys.file"] = config.keys.file
    monkeypatch.setenv("FAIRLEAD_API_KEY", key)
    async with reward_service(folder, keys=config.keys, tls=config.tls) as world:
        python = python.replace("localhost:5002", world.address.replace("127.0.0.1", "localhost"))
        script = tmp_path / "ask.py"
        script.write_text(python.replace("fl_search_…", key))
        scores = await asyncio.to_thread(shell, f"python {script}", tmp_path)
        assert re.fullmatch(r"\(-?[0-9.e-]+,\)\n", scores)
        client = ssl.create_default_context(cafile="client.pem")
        if shutil.which("curl") is None:
            pytest.skip("the rest needs curl")
        async with gateway(reward=world.address, sections=sections, client=client) as http:
            port = http.address.rpartition(":")[2]
            answer = await asyncio.to_thread(
                shell, request.replace("localhost:8000", f"localhost:{port}"), tmp_path, KEY=key
            )
    assert '"reward"' in answer
