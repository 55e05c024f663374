"""`python -m services.gateway` as a process: its configuration errors, and how it drains on SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys

import pytest

from fairlead.v1 import reward_service_pb2_grpc as pb_grpc
from services.gateway import backend
from tests.gateway_world import ask, gateway, policy_server
from tests.service_process import SharedServices, Starter
from tests.unit.fairlead.rpc.rpc_world import Replica, serving
from tests.waiting import until


async def test_sigterm_ends_readiness_and_finishes_requests_in_flight(start: Starter):
    release = asyncio.Event()

    async def wait(_: int) -> None:
        await release.wait()

    reward = Replica("judge-1", wait)
    add = pb_grpc.add_RewardServiceServicer_to_server
    async with serving(reward, add=add) as address:
        process = start("gateway", None, **{"reward.addresses": f'["{address}"]'})
        await asyncio.to_thread(process.wait_for, "/readyz")
        body = {"query": ["w1"]}
        held = asyncio.create_task(asyncio.to_thread(ask, process.address, "POST", "/get_reward", body))
        await until(lambda: reward.calls == 1)
        process.popen.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            while (await asyncio.to_thread(process.get, "/readyz"))[0] != 503:  # noqa: ASYNC110 - a process
                await asyncio.sleep(0.01)
        assert (await asyncio.to_thread(process.get, "/healthz"))[0] == 200
        assert process.popen.poll() is None, "a request is still in flight"
        release.set()
        assert (await held).json["rewards"] == [1.0]
        assert await asyncio.to_thread(process.popen.wait, 20) == 0
        log = process.log.read_text()
        assert "gateway is draining" in log
        assert "gateway stopped" in log


async def test_reward_service_that_hangs_turns_readiness_off_beside_a_live_policy(
    shared: SharedServices, tmp_path, monkeypatch
):
    monkeypatch.setattr(backend, "_INFO_TIMEOUT_SECONDS", 0.5)
    reward = (await asyncio.to_thread(shared.ready, "reward"))["reward"]
    async with (
        policy_server(tmp_path / "policy") as policy,
        gateway(reward=reward.address, policy=policy.address) as http,
    ):

        async def until_ready(path: str, status: int) -> None:
            async with asyncio.timeout(30):
                while (await http.get(path)).status != status:  # noqa: ASYNC110 - asked over HTTP
                    await asyncio.sleep(0.02)

        await until_ready("/readyz", 200)
        reward.popen.send_signal(signal.SIGSTOP)
        try:
            await until_ready("/readyz", 503)
            assert (await http.get("/v2/health/ready")).status == 503
            assert (await http.get("/healthz")).status == 200
            chat = {"messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}
            assert (await http.post("/v1/chat/completions", chat)).status == 200
        finally:
            reward.popen.send_signal(signal.SIGCONT)
        await until_ready("/readyz", 200)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "gateway: reward.addresses: got ('127.0.0.1:0',), allowed: the address of the reward service"),
        pytest.param(
            ("gateway.bind=nowhere",),
            "gateway: gateway.bind: got 'nowhere', allowed: host:port",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("gateway.bind=TAKEN",),
            "(Address already in use)', allowed: an address of this machine with a free port",
            marks=pytest.mark.slow,
        ),
        (
            ('reward.addresses=["127.0.0.1:5002"]', "gateway.chat_log=/proc/no/log"),
            "gateway: gateway.chat_log: got '/proc/no/log (",
        ),
    ],
)
def test_configuration_error_exits_with_2_and_a_message(flags: tuple[str, ...], message: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = [part for flag in flags for part in ("--set", flag.replace("TAKEN", place))]
        done = subprocess.run(
            [sys.executable, "-m", "services.gateway", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_gateway_starts_without_torch():
    code = "import sys, services.gateway.__main__; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
