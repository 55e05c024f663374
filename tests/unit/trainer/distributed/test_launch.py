"""The launcher hands on exit codes, lines and signals of its ranks, and gives each its place and its GPU."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fairlead.config import RunConfig
from fairlead.config.infrastructure import RanksSection
from fairlead.config.training import PpoSection
from fairlead.errors import ConfigError
from trainer.distributed.group import join
from trainer.distributed.launch import Launcher, bound_socket, environments
from trainer.distributed.place import Node, Place, place

ONE_NODE = Node(0, 1, 2)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def launched(program: str, *, ranks: int = 2) -> int:
    """Run a program as every rank; it knows its number as `rank`."""
    program = f"import os, sys, time, signal\nrank = int(os.environ['RANK'])\n{program}"
    return Launcher(
        [sys.executable, "-c", program],
        {rank: os.environ | {"RANK": str(rank)} for rank in range(ranks)},
    ).run()


@pytest.mark.parametrize(
    ("program", "code", "last"),
    [
        ("print('done')", 0, "done"),
        # The others hang: they are killed.
        (
            "if rank == 1: print('ConfigError: x: got 1', flush=True); sys.exit(2)\ntime.sleep(99)",
            2,
            "ConfigError: x",
        ),
        ("if rank == 0: print('Fenced: newer', flush=True); sys.exit(3)\ntime.sleep(99)", 3, "Fenced: newer"),
        (
            "if rank == 1: print('a bug', flush=True); sys.exit(1)\ntime.sleep(99)",
            1,
            "rank 1 of the trainer: exit code 1, last line: a bug",
        ),
        (
            "if rank == 1: os.kill(os.getpid(), 9)\ntime.sleep(99)",
            137,
            "rank 1 of the trainer: killed by SIGKILL",
        ),
        # Another rank fails first, because of the one that states its reason.
        (
            "time.sleep(0 if rank else 0.7); print(f'rank {rank}', flush=True); sys.exit(1 if rank else 5)",
            5,
            "rank 0",
        ),
    ],
)
def test_the_exit_code_and_the_reason_of_the_cause_are_handed_on(program, code, last, capfd):
    assert launched(program) == code
    assert last in capfd.readouterr().err.splitlines()[-1]


def test_lines_of_the_other_ranks_are_marked(capfd):
    assert launched("print(f'line {rank}'); print('{\"rank\": %d}' % rank)", ranks=3) == 0
    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines) == [
        *("[rank 1] line 1", "[rank 2] line 2", "line 0"),
        *('{"rank": 0}', '{"rank": 1}', '{"rank": 2}'),
    ]


def test_bytes_and_orders_arrive_at_the_port_that_the_launcher_has_bound(capfd):
    listener = bound_socket()
    started = environments(RunConfig(), "ppo", ONE_NODE, listener=listener)
    command = [sys.executable, "-m", "tests.ranks", "tests.unit.trainer.distributed.group_world:exchange"]
    assert Launcher([*command, "{}", "[]"], started, listener=listener).run() == 0
    assert listener.fileno() == -1
    found = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert sorted(result["gather"] for result in found) == [[], [0, 1000]]
    assert all(result["broadcast"] == [True, True] for result in found)
    assert all(result["all_gather"] == [True, True] for result in found)


def test_a_descriptor_of_another_socket_is_refused():
    with bound_socket() as one, bound_socket() as other:
        port = one.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"FAIRLEAD_RANKS_LISTENER.*bound to 127\.0\.0\.1:{port}"):
            with join(
                Place(0, 2, 0, "127.0.0.1", port, serves_store=True, listener=other.fileno()), RanksSection()
            ):
                pass
        other.detach()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_to_every_rank(number: signal.Signals, code: int):
    rank = (
        "import signal, sys, time\n"
        "def stop(*_): print('stopped', flush=True); sys.exit(7)\n"
        f"signal.signal({int(number)}, stop); print('ready', flush=True); time.sleep(99)"
    )
    program = (
        "import os, sys; from trainer.distributed.launch import Launcher\n"
        f"command = [sys.executable, '-c', {rank!r}]\n"
        "sys.exit(Launcher(command, {0: dict(os.environ), 1: dict(os.environ)}).run())"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert [process.stderr.readline().split()[-1] for _ in range(2)] == ["ready", "ready"]
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.count("stopped") == 2


def test_every_rank_gets_its_place_its_gpu_and_its_share_of_the_threads():
    base = {"CUDA_VISIBLE_DEVICES": "4,GPU-5", "OMP_NUM_THREADS": "5", "HOME": "/root"}
    with bound_socket() as listener:
        found = environments(RunConfig(), "ppo", ONE_NODE, base, listener=listener)
        places = [place(RanksSection(per_node=2), environment) for environment in found.values()]
        assert [(one.rank, one.size, one.local_rank, one.serves_store, one.listener) for one in places] == [
            (0, 2, 0, True, listener.fileno()),
            (1, 2, 1, False, None),
        ]
        assert places[0].port == listener.getsockname()[1]
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(listener.getsockname())
    assert places[0].address == places[1].address
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found.values()] == ["4", "GPU-5"]
    assert {environment["OMP_NUM_THREADS"] for environment in found.values()} == {"2"}
    pod = environments(RunConfig(), "ppo", Node(3, 4, 2, "trainer-0.trainer", 29500), base)
    assert list(pod) == [6, 7]
    assert place(RanksSection(), pod[7]) == Place(7, 8, 1, "trainer-0.trainer", 29500)


def test_more_ranks_than_gpus_are_refused_unless_they_train_on_the_cpu():
    base = {"CUDA_VISIBLE_DEVICES": "0"}
    with pytest.raises(ConfigError, match=r"ranks.per_node: got '2, with 1 GPUs \(CUDA_VISIBLE_DEVICES=0\)'"):
        environments(RunConfig(), "ppo", ONE_NODE, base)
    found = environments(RunConfig(ppo=PpoSection(device="cpu")), "ppo", ONE_NODE, base)
    assert {environment["CUDA_VISIBLE_DEVICES"] for environment in found.values()} == {"0"}
    hidden = environments(RunConfig(), "ppo", ONE_NODE, {"CUDA_VISIBLE_DEVICES": "-1,0"})
    assert hidden[1]["CUDA_VISIBLE_DEVICES"] == "-1,0"


def test_a_mistake_in_the_configuration_ends_the_launcher_with_2(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[ranks]\nnodes = 2\n")
    command = [sys.executable, "-m", "trainer.distributed.launch", "trainer.ppo", "--config", str(file)]
    environment = os.environ | {"JOB_COMPLETION_INDEX": "0"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("ConfigError: ranks.address: got ''")
