"""A group of ranks: results, and what a service learns of each way in which a rank fails."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from fairlead.config.serving import ReferenceSection
from fairlead.errors import (
    ConfigError,
    FairleadError,
    InternalError,
    ModelLoadError,
    RankLost,
    ReplicaLost,
    Unavailable,
)
from services.tensor_parallel import frames, group
from services.tensor_parallel.group import RankGroup

MODULE = "tests.unit.services.tensor_parallel.ranks_without_model"


@pytest.fixture
def open_groups() -> Iterator[list[RankGroup]]:
    found: list[RankGroup] = []
    yield found
    for one in found:
        one.close()


def opened(open_groups: list[RankGroup], path: str, **section: object) -> RankGroup:
    settings = {"tensor_parallel": 2, "device": "cpu"} | section
    open_groups.append(RankGroup(MODULE, path, ReferenceSection(**settings), name="reference"))  # type: ignore[arg-type]
    return open_groups[-1]


def total(ranks: RankGroup, *values: int) -> int:
    answer = ranks.run(frames.packed({"x": np.array(values, np.int64)}))
    return int(frames.unpacked(answer)["sum"][0])


def children() -> list[psutil.Process]:
    """Return the ranks that run, in the order in which they were started."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # or a zombie
            if MODULE in one.cmdline():
                found.append(one)
    return sorted(found, key=lambda one: one.create_time())


def test_batches_of_any_size_from_many_threads(open_groups):
    ranks = opened(open_groups, "none", threads=7)
    assert ranks.facts == {"size": 2, "threads": 3}
    assert len(children()) == 2
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda value: total(ranks, value, 1), range(50))) == list(range(1, 51))
    many = range(200_000)  # more than fits into a pipe
    assert total(ranks, *many) == sum(many)
    ranks.close()
    assert not children()
    with pytest.raises(Unavailable, match="the reference service is stopping"):
        total(ranks, 1)


def test_error_of_all_ranks_fails_only_its_batch(open_groups):
    ranks = opened(open_groups, "error")
    with pytest.raises(InternalError, match="the batch failed on every rank: ValueError: a negative sum"):
        total(ranks, -1)
    assert total(ranks, 3) == 3


@pytest.mark.parametrize(
    ("path", "section", "message"),
    [
        ("killed:1", {}, "rank 1 of 2 of the reference model has ended: killed by SIGKILL"),
        ("error:1", {}, "rank 1 of 2 of the reference model failed: ValueError: a negative sum"),
        ("error:0", {}, "rank 0 of 2 of the reference model failed: ValueError: a negative sum"),
        (
            "hang:0",
            {"timeout_seconds": 1.0},
            r"a batch has not ended for \d s \(reference.timeout_seconds = 1\) because of rank 0 of 2 of the "
            r"reference model, at: tensor_parallel/ranks_without_model.py:\d+ in run",
        ),
    ],
)
def test_lost_rank_fails_the_batch_and_the_group(
    open_groups, monkeypatch: pytest.MonkeyPatch, path: str, section, message: str
):
    monkeypatch.setattr(group, "_OTHERS_SECONDS", 0.5)
    ranks = opened(open_groups, path, **section)
    assert total(ranks, 2) == 2
    with pytest.raises(ReplicaLost, match="the reference service has lost a process of its model"):
        total(ranks, -1)
    with pytest.raises(RankLost, match=message):
        ranks.failure.result(timeout=10)
    # A later batch is not the cause.
    with pytest.raises(Unavailable, match="the reference service has lost a process") as later:
        total(ranks, 2)
    assert not isinstance(later.value, ReplicaLost)
    assert wait_for_end()


def test_suspended_rank_is_lost_also_without_a_batch(open_groups, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(group, "LOST_SECONDS", 3.0)
    ranks = opened(open_groups, "none")
    children()[1].send_signal(signal.SIGSTOP)
    with pytest.raises(RankLost, match="rank 1 of 2 of the reference model has sent no heartbeat for \\d+ s"):
        ranks.failure.result(timeout=60)
    assert wait_for_end()


def test_close_ends_a_suspended_rank_to_which_a_batch_is_being_written(
    open_groups, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(group, "_END_SECONDS", 0.5)
    ranks = opened(open_groups, "none")
    rank = children()[1]
    rank.suspend()
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(total, ranks, *range(200_000))  # more than fits into a pipe
        while not has_unread(rank):
            time.sleep(0.01)
        ranks.close()
        with pytest.raises(Unavailable, match="the reference service is stopping"):
            batch.result()
    assert not children()


def has_unread(process: psutil.Process) -> bool:
    """Return whether a pipe of a process holds more than a heartbeat."""
    unread = array.array("i", [0])
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        if descriptor.readlink().name.startswith("pipe:"):
            with descriptor.open("rb") as pipe:
                fcntl.ioctl(pipe, termios.FIONREAD, unread)
            if unread[0] > 4_096:
                return True
    return False


def test_ranks_that_cannot_be_started_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(
        RankLost, match="rank 0 of 2 of the reference model cannot be started: .*No such file"
    ):
        opened([], "none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("refused", ModelLoadError, "^no model 'refused'$"),
        ("refused:1", ModelLoadError, "^no model 'refused:1'$"),
        ("bug:1", RankLost, "rank 1 of 2 .* failed: ZeroDivisionError: division by zero"),
        ("exit:1", RankLost, "rank 1 of 2 .* has ended: exit code 7"),
        ("other:1", InternalError, "rank 1 loaded another model than rank 0"),
    ],
)
def test_group_that_does_not_start_says_why_and_leaves_no_rank(
    path: str, error: type[FairleadError], message: str
):
    with pytest.raises(error, match=message):
        opened([], path)
    assert wait_for_end()


def test_every_rank_needs_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    message = r"reference.tensor_parallel: got '2, with 1 GPUs \(CUDA_VISIBLE_DEVICES=3\)'"
    with pytest.raises(ConfigError, match=message):
        opened([], "none", device="auto")
    assert not os.environ.get("LOCAL_RANK")


def wait_for_end() -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not children():
            return True
        time.sleep(0.05)
    return False
