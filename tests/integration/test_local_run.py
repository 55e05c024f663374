"""The supervisor over small real processes: restarts, verdicts, readiness, drain, death, lock, table."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fairlead.config import RunFolder
from fairlead.config.local import LocalSection
from fairlead.errors import ProcessFailed
from fairlead.local import table
from fairlead.local.lock import RunLock
from fairlead.local.process import Process, ProcessSpec, State
from fairlead.local.supervisor import Supervisor
from fairlead.local.verdict import Outcome

FOREVER = "import signal; signal.pause()"
# Notes when it is told to stop and when it has ended; takes `slow` seconds to drain.
DRAINS = """
    import signal, sys, time
    name, slow, notes = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    def note(what):
        with open(notes, "a") as file:
            file.write(f"{name} {what}\\n")
    def stop(*_):
        note("told")
        time.sleep(slow)
        note("ended")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    note("up")
    while True:
        signal.pause()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path / "run")
    made.root.mkdir()
    yield made
    left = list(table.running(made.processes, mark=str(made.root)).values())
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def child(name: str, program: str, *arguments: object, **fields: object) -> ProcessSpec:
    command = (sys.executable, "-c", textwrap.dedent(program), *map(str, arguments))
    return ProcessSpec(name=name, command=command, **fields)  # type: ignore[arg-type]


def supervisor(folder: RunFolder, *specs: ProcessSpec, **settings: object) -> Supervisor:
    finished = settings.pop("finished", lambda: True)
    local = LocalSection(**({"backoff_seconds": 0.05, "drain_seconds": 5.0} | settings))  # type: ignore[arg-type]
    return Supervisor(specs, local=local, folder=folder, environment=dict(os.environ), finished=finished)  # type: ignore[arg-type]


def process(of: Supervisor, name: str) -> Process:
    return next(process for process in of.processes if process.name == name)


async def until(condition: Callable[[], object], *, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def run_while(of: Supervisor, during: Callable[[], Awaitable[None]]) -> Outcome:
    """Runs the supervisor, does something meanwhile, stops it by that."""
    running = asyncio.create_task(of.run())
    try:
        await during()
        return await asyncio.wait_for(running, 20)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_dies_is_started_again_with_growing_delays(folder: RunFolder, tmp_path: Path):
    starts = tmp_path / "starts"
    fails_three_times = """
        import pathlib, sys, time
        starts = pathlib.Path(sys.argv[1])
        with starts.open("a") as file:
            file.write(f"{time.monotonic()}\\n")
        if len(starts.read_text().splitlines()) < 4:
            sys.exit("oh dear")
        import signal; signal.pause()
    """
    run = supervisor(
        folder,
        child("worker", fails_three_times, starts),
        child("main", FOREVER, is_main=True),
        backoff_seconds=0.2,
    )

    async def watch() -> None:
        await until(lambda: len(lines(starts)) == 4)
        assert process(run, "worker").restarts == 3
        run.stop(Outcome(0, "enough"))

    assert await run_while(run, watch) == Outcome(0, "enough")
    times = [float(line) for line in lines(starts)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] >= 0.2
    assert gaps[1] >= 0.4
    assert gaps[2] >= 0.8
    log = lines(folder.log("worker"))
    assert [line.split(" start ")[1].split(" of ")[0] for line in log if line.startswith("---")] == list(
        "1234"
    )
    assert log.count("oh dear") == 3


async def test_a_killed_process_comes_back_and_the_run_finishes(folder: RunFolder, tmp_path: Path):
    go = tmp_path / "go"
    waits = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    run = supervisor(folder, child("service", FOREVER), child("main", waits, go, is_main=True))

    async def kill(victim: Process) -> None:
        await until(lambda: victim.state is State.READY)
        first = victim.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: victim.restarts == 1 and victim.pid not in (None, first))

    async def kill_both() -> None:
        for name in ("service", "main"):
            await kill(process(run, name))
        go.touch()

    assert await run_while(run, kill_both) == Outcome(0, "main has finished")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (2, "reward-0: reward.path: got 'x', allowed: a model"),
        (3, "another trainer took over this run (reward.path: got 'x', allowed: a model)"),
    ],
)
async def test_some_exit_codes_stop_the_run_with_the_last_words(folder: RunFolder, code: int, message: str):
    says = f"""
        import sys
        print("loading")
        sys.stderr.write("reward: reward.path: got 'x', allowed: a model\\n")
        sys.exit({code})
    """
    run = supervisor(folder, child("reward-0", says), child("main", FOREVER, is_main=True))
    assert await run.run() == Outcome(code, message)
    assert process(run, "reward-0").starts == 1


@pytest.mark.parametrize("is_main", [True, False])
async def test_who_stalls_is_started_again_and_the_main_process_once_in_a_row(
    folder: RunFolder, tmp_path: Path, is_main: bool
):
    starts = tmp_path / "starts"
    stalls_three_times = """
        import pathlib, signal, sys
        starts = pathlib.Path(sys.argv[1])
        starts.write_text((starts.read_text() if starts.exists() else "") + "x")
        if len(starts.read_text()) < 4:
            sys.stderr.write("Stalled: waited 9 s for the queue\\n")
            sys.exit(4)
        signal.pause()
    """
    run = supervisor(folder, child("one", stalls_three_times, starts, is_main=is_main), child("two", FOREVER))

    async def watch() -> None:
        if not is_main:
            await until(lambda: starts.exists() and len(starts.read_text()) == 4)
            run.stop(Outcome(0, "enough"))

    outcome = await run_while(run, watch)
    gave_up = Outcome(4, "one gave up: Stalled: waited 9 s for the queue")
    assert outcome == (gave_up if is_main else Outcome(0, "enough"))
    assert process(run, "one").starts == (2 if is_main else 4)


async def test_who_answers_nothing_any_more_is_killed_and_started_again(folder: RunFolder):
    async def ready() -> bool:
        return True

    async def alive() -> bool:
        pid = process(run, "service").pid
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_STOPPED

    run = supervisor(
        folder,
        child("service", FOREVER, probe=ready, alive=alive),
        child("main", FOREVER, is_main=True),
        hung_seconds=1.0,
    )

    async def hang() -> None:
        await until(lambda: process(run, "service").state is State.READY)
        first = process(run, "service").pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        await until(lambda: process(run, "service").pid not in (None, first))
        run.stop(Outcome(0, "enough"))

    assert await run_while(run, hang) == Outcome(0, "enough")
    assert process(run, "service").restarts == 1


async def test_the_message_of_a_json_line_is_the_last_word(folder: RunFolder):
    line = json.dumps({"level": "error", "message": "it broke", "exception": "Traceback\nValueError: no"})
    spec = child("sft", f"import sys; print({line!r}); print(); sys.exit(1)", is_main=True, restarts=False)
    assert await supervisor(folder, spec).run() == Outcome(1, "sft: it broke: ValueError: no")


async def test_a_stage_that_a_stranger_stopped_has_not_succeeded(folder: RunFolder):
    spec = child("sft", "", is_main=True, restarts=False)
    outcome = await supervisor(folder, spec, finished=lambda: False).run()
    assert outcome == Outcome(1, "sft was stopped before it had finished")


async def test_a_stage_that_is_killed_ends_as_a_shell_would_say(folder: RunFolder):
    suicide = "import os, signal; print('working', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    outcome = await supervisor(folder, child("sft", suicide, is_main=True, restarts=False)).run()
    assert outcome == Outcome(137, "sft: killed by SIGKILL")


async def test_a_process_that_never_was_ready_is_given_up_soon(folder: RunFolder):
    async def never() -> bool:
        return False

    run = supervisor(
        folder,
        child("policy-0", "import sys; sys.exit('no such module')", probe=never),
        child("main", FOREVER, is_main=True),
    )
    outcome = await run.run()
    assert outcome.code == 1
    assert outcome.message == (
        "policy-0 died 4 times in a row, at last with exit code 1, saying: no such module; "
        f"its log: {folder.log('policy-0')}"
    )


async def test_restarts_are_counted_out(folder: RunFolder):
    run = supervisor(folder, child("a", "raise SystemExit(1)"), child("main", FOREVER), max_restarts=1)
    outcome = await run.run()
    assert outcome.message.startswith("a died 2 times in a row, at last with exit code 1;")


async def test_a_process_that_is_not_ready_in_time_is_named(folder: RunFolder):
    async def never() -> bool:
        return False

    said = folder.log("reward-0")

    async def after_words() -> bool:
        return "loading shard 3" in "".join(lines(said))

    run = supervisor(
        folder,
        child(
            "reward-0", f"print('loading shard 3', flush=True); {FOREVER}", probe=never, ready_after=("main",)
        ),
        child("main", FOREVER, is_main=True, probe=after_words),
        ready_seconds=0.3,
    )
    outcome = await run.run()
    assert outcome == Outcome(
        1, f"reward-0 was not ready within 0.3 s, saying: loading shard 3; its log: {said}"
    )


async def test_success_of_the_main_process_counts_only_when_the_work_is_done(
    folder: RunFolder, tmp_path: Path
):
    done = tmp_path / "done"
    run = supervisor(
        folder,
        child(
            "main",
            "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.write_text(p.exists() * 'x')",
            done,
            is_main=True,
        ),
        finished=lambda: done.exists() and bool(done.read_text()),
    )
    assert await run.run() == Outcome(0, "main has finished")
    assert process(run, "main").starts == 2


async def test_everything_is_stopped_in_order(folder: RunFolder, tmp_path: Path):
    notes = tmp_path / "notes"
    ranks = {"valkey": 2, "policy-0": 1, "worker": 0, "trainer": 0}
    specs = [child(name, DRAINS, name, 0.2, notes, drain_rank=rank) for name, rank in ranks.items()]
    run = supervisor(folder, *specs)

    async def stop() -> None:
        await until(lambda: len(lines(notes)) == 4)
        run.stop(Outcome(130, "stopped"))

    assert await run_while(run, stop) == Outcome(130, "stopped")
    said = lines(notes)[4:]
    assert {line.split()[0] for line in said[:4]} == {"worker", "trainer"}
    assert said[4:] == ["policy-0 told", "policy-0 ended", "valkey told", "valkey ended"]
    assert table.read(folder.processes) == {}


async def test_who_does_not_end_is_killed_with_its_children(folder: RunFolder, tmp_path: Path):
    notes = tmp_path / "notes"
    stubborn = """
        import pathlib, signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path(sys.argv[1]).write_text(f"{below.pid}\\n")
        while True: signal.pause()
    """
    run = supervisor(folder, child("stubborn", stubborn, notes), drain_seconds=0.3)
    pids: list[int] = []

    async def stop() -> None:
        await until(lambda: lines(notes))
        pid = process(run, "stubborn").pid
        assert pid is not None
        pids.extend([pid, int(lines(notes)[0])])
        run.stop(Outcome(143, "stopped"))

    await run_while(run, stop)
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


async def test_a_second_stop_does_not_wait(folder: RunFolder, tmp_path: Path):
    notes = tmp_path / "notes"
    run = supervisor(folder, child("slow", DRAINS, "slow", 60, notes), drain_seconds=60.0)

    async def stop_twice() -> None:
        await until(lambda: "slow up" in lines(notes))
        run.stop(Outcome(130, "stopped"))
        await until(lambda: "slow told" in lines(notes))
        run.stop(Outcome(1, "the first reason stays"))

    begun = time.monotonic()
    assert await run_while(run, stop_twice) == Outcome(130, "stopped")
    assert time.monotonic() - begun < 20


async def test_the_table_is_name_to_pid_of_what_lives(folder: RunFolder):
    run = supervisor(
        folder,
        child("a", FOREVER),
        child("b", FOREVER),
        child("c", "raise SystemExit(1)"),
        backoff_seconds=30,
    )

    async def look() -> None:
        await until(
            lambda: process(run, "c").state is State.BACKOFF and len(table.read(folder.processes)) == 2
        )
        pids = json.loads(folder.processes.read_text())
        assert pids == {"a": process(run, "a").pid, "b": process(run, "b").pid}
        assert all(os.getpgid(pid) == pid for pid in pids.values())
        await until(lambda: FOREVER in psutil.Process(pids["a"]).cmdline())
        run.stop(Outcome(0, "seen"))

    await run_while(run, look)
    assert json.loads(folder.processes.read_text()) == {}


def test_what_an_earlier_supervisor_left_is_ended_and_strangers_are_not(folder: RunFolder):
    mark = {table.MARK: str(folder.root.absolute())}
    left = subprocess.Popen([sys.executable, "-c", FOREVER], env=os.environ | mark, start_new_session=True)
    stranger = subprocess.Popen([sys.executable, "-c", FOREVER], start_new_session=True)
    try:
        table.write(folder.processes, {"trainer": left.pid, "reward-0": stranger.pid, "policy-0": 2**22 + 1})
        deadline = time.monotonic() + 20
        while not table.running(folder.processes, mark=mark[table.MARK]) and time.monotonic() < deadline:
            time.sleep(0.01)
        outcome = asyncio.run(supervisor(folder, child("main", "", is_main=True)).run())
        assert outcome == Outcome(0, "main has finished")
        assert not psutil.pid_exists(left.pid)
        assert stranger.poll() is None
    finally:
        for started in (left, stranger):
            started.kill()
            started.wait()


def test_children_die_with_a_supervisor_that_is_killed(folder: RunFolder, tmp_path: Path):
    program = f"""
        import asyncio, os, pathlib, sys
        from fairlead.config import RunFolder
        from fairlead.config.local import LocalSection
        from fairlead.local.process import ProcessSpec
        from fairlead.local.supervisor import Supervisor
        specs = [ProcessSpec(name=name, command=(sys.executable, "-c", {FOREVER!r})) for name in "abc"]
        folder = RunFolder(pathlib.Path(sys.argv[1]))
        run = Supervisor(specs, local=LocalSection(), folder=folder, environment=dict(os.environ))
        asyncio.run(run.run())
    """
    started = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), str(folder.root)])
    try:
        deadline = time.monotonic() + 20
        alive: list[psutil.Process] = []
        # Past the launcher, which looks for itself whether the supervisor lives.
        while len(alive) < 3 or any("launch.py" in " ".join(one.cmdline()) for one in alive):
            assert time.monotonic() < deadline
            time.sleep(0.01)
            pids = table.running(folder.processes, mark=str(folder.root)).values()
            alive = [psutil.Process(pid) for pid in pids]
        started.kill()
        started.wait()
        _, left = psutil.wait_procs(alive, timeout=10)
        assert left == []
    finally:
        started.kill()
        started.wait()


def test_a_second_supervisor_on_a_run_is_refused(folder: RunFolder):
    with RunLock(folder):
        with pytest.raises(ProcessFailed) as caught, RunLock(folder):
            pass
        assert str(caught.value) == (
            f"{folder.root}: another fairlead (pid {os.getpid()}) is at work on this run"
        )
    with RunLock(folder):
        pass


async def test_a_program_that_does_not_exist_is_told(folder: RunFolder):
    spec = ProcessSpec(name="valkey", command=("/no/such/server",), restarts=False)
    assert await supervisor(folder, spec).run() == Outcome(
        1, "valkey: /no/such/server: No such file or directory"
    )
