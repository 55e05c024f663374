"""docs/security.md: run its five-minute start from the page."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.contract.test_documents import ROOT
from tests.integration.test_rollout_worker_process import free_port
from tests.tiny import tiny_reward_model

PAGE = (ROOT / "docs" / "security.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the page's code blocks in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def environment(**more: str) -> dict[str, str]:
    """Return an environment with this one's programs first on the PATH."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **more}


def shell(script: str, folder: Path, **more: str) -> str:
    """Run a script; return what it prints."""
    done = subprocess.run(
        ["/bin/bash", "-euc", script],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_five_minute_start(tmp_path: Path):
    setup, services, request = blocks("bash")[:3]
    (configuration,), (python,) = blocks("toml"), blocks("python")
    ports = {"5002": str(free_port()), "8000": str(free_port())}

    def placed(text: str) -> str:
        return re.sub(":(5002|8000)", lambda found: f":{ports[found[1]]}", text)

    printed = shell(setup, tmp_path)
    key = re.findall(r"^fl_search_[0-9a-f]{64}$", printed, re.M)[0]
    tiny_reward_model(tmp_path / "reward")
    model = '[reward]\npath = "reward"\n'
    (tmp_path / "run.toml").write_text(placed(configuration).replace("[reward]\n", model))
    script = tmp_path / "ask.py"
    script.write_text(placed(python).replace("fl_search_…", key))
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(
            ["/bin/bash", "-euc", services + "wait"],
            cwd=tmp_path,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not all(listens(int(port)) for port in ports.values()):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        assert re.fullmatch(r"\(-?[0-9.e-]+,\)\n", shell(f"python {script}", tmp_path))
        assert '"reward"' in shell(placed(request), tmp_path, KEY=key)
        assert '"reward"' not in shell(placed(request), tmp_path, KEY="fl_search_0")
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(60)
