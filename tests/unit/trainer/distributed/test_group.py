"""Ranks find one another, exchange bytes and orders, and end together when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fairlead.errors import exit_code
from fairlead.local.addresses import Ports
from tests.ranks import Ranks
from trainer.distributed.group import Group

WORLD = "tests.unit.trainer.distributed.group_world"
SETTINGS = {"lost_seconds": 60.0, "stall_seconds": 60.0}
"""Limits that a busy machine does not exceed by itself."""
SHORT_SECONDS = 5.0
"""The limit that a test is about."""


def test_a_single_rank_has_no_process_group():
    program = (
        "from trainer.distributed.group import join; from trainer.distributed.place import place; "
        "from fairlead.config.infrastructure import RanksSection as R; import torch.distributed as d\n"
        "with join(place(R(), {'JOB_COMPLETION_INDEX': '0'}), R()) as group:\n"
        "    assert group.size == 1 and group.is_first and not d.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
    group = Group.single()
    group.send("learn", b"x")
    group.progress("a step")
    group.idle()
    group.barrier()
    assert group.broadcast(b"x") == b"x"
    assert group.gather(b"x") == group.all_gather(b"x") == [b"x"]


def started(target: str, *arguments: object, settings: dict[str, float] = SETTINGS) -> Ranks:
    """Return two ranks that have reached the place where one of them has a fault."""
    ranks = Ranks(2, f"{WORLD}:{target}", *arguments, settings=settings)
    for process in ranks.processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
    return ranks


@pytest.mark.parametrize(
    ("target", "rank", "number"),
    [
        ("wait", 0, signal.SIGSTOP),
        pytest.param("work", 1, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("wait", 0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("wait", 1, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("wait", 1, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param("work", 0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("work", 0, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param("work", 1, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_a_killed_or_suspended_rank_ends_the_others(target: str, rank: int, number: signal.Signals):
    # Nothing but its heartbeat reports a rank that is suspended, or for which no other rank waits.
    by_beats = number == signal.SIGSTOP or (target, rank) == ("wait", 1)
    limits = SETTINGS | ({"lost_seconds": SHORT_SECONDS} if by_beats else {})
    ranks = started(target, *(["none", 0] if target == "work" else []), settings=limits)
    began = time.monotonic()
    os.kill(ranks.processes[rank].pid, number)
    other = ranks.processes[1 - rank]
    code = other.wait(timeout=60)
    seconds = time.monotonic() - began
    assert other.stderr is not None
    errors = other.stderr.read()
    ranks.kill()
    assert code == 1, errors
    assert seconds < 60
    last = errors.splitlines()[-1]
    assert last.startswith("RankLost: ")
    assert f"rank {rank}" in last, last
    if by_beats:
        assert "ranks.lost_seconds = 5" in last


@pytest.mark.parametrize(
    ("fault", "rank", "code", "message"),
    [
        pytest.param("hang", 1, 1, "because of rank 1 of 2", marks=pytest.mark.slow),
        pytest.param("error", 0, 2, "ended: NotFinite: ppo: the loss is nan", marks=pytest.mark.slow),
        pytest.param("error", 1, 2, "ended: NotFinite: ppo: the loss is nan", marks=pytest.mark.slow),
        pytest.param("bug", 1, 1, "ended: ZeroDivisionError: division by zero", marks=pytest.mark.slow),
        pytest.param("hang", 0, 1, "because of rank 0 of 2", marks=pytest.mark.slow),
    ],
)
def test_a_failing_rank_ends_the_others_with_its_exit_code(fault: str, rank: int, code: int, message: str):
    limits = SETTINGS | ({"stall_seconds": SHORT_SECONDS} if fault == "hang" else {})
    found = started("work", fault, rank, settings=limits).wait()
    other_code, _, errors = found[1 - rank]
    assert other_code == code, errors
    last = errors.splitlines()[-1]
    assert f"rank {rank} of 2" in last
    assert message in last, last
    own_code, _, own_errors = found[rank]
    assert own_code == code, own_errors
    if fault == "hang":
        assert "at: micro-batch 3 (distributed/group_world.py:" in last
        assert "ranks.stall_seconds = 5" in last


@pytest.mark.slow
def test_a_rank_that_was_started_again_ends_the_others_and_then_waits_for_them():
    ranks = started("wait", settings={"lost_seconds": 60.0, "join_seconds": 3.0})
    again = ranks.start(1)
    try:
        for process in ranks.processes:
            assert process.stderr is not None
            assert process.wait(timeout=60) == 1
            assert "rank 1" in process.stderr.read()
        assert again.wait(timeout=60) == exit_code(Exception())
        assert again.stderr is not None
        assert "waited 3 s (ranks.join_seconds) for rank 0 to join at 127.0.0.1" in again.stderr.read()
    finally:
        ranks.processes.append(again)
        ranks.kill()


@pytest.mark.slow
def test_torchrun_and_a_job_of_pods_with_one_rank_start_the_ranks_too():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    work = ["-m", "tests.ranks", f"{WORLD}:exchange", "{}", "[]"]
    done = subprocess.run([*torchrun, *work], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"broadcast": [true, true]') == 2
    address = f"127.0.0.1:{Ports().free('ranks')}"
    work[3] = json.dumps({"nodes": 2, "address": address})
    pods = [
        subprocess.Popen(
            [sys.executable, *work],
            env=os.environ | {"JOB_COMPLETION_INDEX": index},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in ("1", "0")
    ]
    for pod in pods:
        output, _ = pod.communicate(timeout=100)
        assert '"broadcast": [true, true]' in output
