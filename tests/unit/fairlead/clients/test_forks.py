"""Clients in forked processes: they work, or raise at once; nothing hangs or aborts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from tests.unit.fairlead.rpc.rpc_world import Replica, serving

# In its own process: a fork of the test's process would have its servers.
_SCRIPT = """
import asyncio, json, multiprocessing, sys
from fairlead import RewardClient
from fairlead.clients import AsyncRewardClient

address, kind = sys.argv[1:]
ITEMS = [("w1", "w2")]
fork = multiprocessing.get_context("fork")
used, unused = RewardClient(address, timeout_seconds=10), RewardClient(address, timeout_seconds=10)

async def scored():
    async with AsyncRewardClient(address, timeout_seconds=10) as client:
        return await client.score(ITEMS)

def attempt(what):
    try:
        return list(what().scores)
    except RuntimeError as error:
        return str(error)

def child(queue):
    attempts = [lambda: RewardClient(address, timeout_seconds=10).score(ITEMS), lambda: unused.score(ITEMS)]
    attempts.append(lambda: asyncio.run(scored()))
    if kind != "never":
        attempts.append(lambda: used.score(ITEMS))
    found = [attempt(one) for one in attempts]
    if kind == "open":
        used.close()
    queue.put(found)

if kind != "never":
    used.score(ITEMS)
if kind == "closed":
    used.close()
queue = fork.Queue()
process = fork.Process(target=child, args=(queue,))
process.start()
found = queue.get(timeout=40)
process.join(40)
after = [] if kind == "closed" else attempt(lambda: used.score(ITEMS))
print(json.dumps({"child": found, "code": process.exitcode, "after": after}))
"""


@pytest.mark.parametrize("kind", ["never", "open", "closed"])
async def test_client_in_a_forked_process_works_or_raises_at_once(kind: str) -> None:
    async with serving(Replica("one")) as address:
        run = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _SCRIPT, address, kind],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["code"] == 0
    assert found["after"] == ([] if kind == "closed" else [1.0]), "the parent continues"
    if kind == "never":
        assert found["child"] == [[1.0]] * 3
        return
    *others, same = found["child"]
    assert len(others) == 3
    for message in others:
        assert "was forked after its parent had used gRPC" in message
        assert "spawn" in message
    assert same == (others[0] if kind == "open" else "this client is closed")
