"""The supervisor with small real processes: which exits lead to a restart, and which end the run."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fairlead.config import RunFolder
from fairlead.local.committed import CommittedUpdates
from fairlead.local.process import ChildProcess, ProcessSpec, State
from fairlead.local.restart_policy import RunOutcome
from tests.integration.supervised import FOREVER, child, lines, process, run_folder, run_while, supervisor
from tests.waiting import until


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with run_folder(tmp_path / "run") as made:
        yield made


async def test_dead_process_is_restarted_with_growing_delays(folder: RunFolder, tmp_path: Path):
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
        run.stop(RunOutcome(0, "enough"))

    assert await run_while(run, watch) == RunOutcome(0, "enough")
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


async def test_killed_process_is_restarted_and_the_run_finishes(folder: RunFolder, tmp_path: Path):
    go = tmp_path / "go"
    waits = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    run = supervisor(folder, child("service", FOREVER), child("main", waits, go, is_main=True))

    async def kill(victim: ChildProcess) -> None:
        await until(lambda: victim.state is State.READY)
        first = victim.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: victim.restarts == 1 and victim.pid not in (None, first))

    async def kill_both() -> None:
        for name in ("service", "main"):
            await kill(process(run, name))
        go.touch()

    assert await run_while(run, kill_both) == RunOutcome(0, "main has finished")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (2, "reward-0: reward.path: got 'x', allowed: a model"),
        (3, "another trainer took over this run (reward.path: got 'x', allowed: a model)"),
    ],
)
async def test_final_exit_codes_stop_the_run_with_the_last_line(folder: RunFolder, code: int, message: str):
    says = f"""
        import sys
        print("loading")
        sys.stderr.write("reward: reward.path: got 'x', allowed: a model\\n")
        sys.exit({code})
    """
    run = supervisor(folder, child("reward-0", says), child("main", FOREVER, is_main=True))
    assert await run.run() == RunOutcome(code, message)
    assert process(run, "reward-0").starts == 1


@pytest.mark.parametrize("is_main", [True, False])
async def test_stalled_process_is_restarted_and_the_main_process_once(
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
            run.stop(RunOutcome(0, "enough"))

    outcome = await run_while(run, watch)
    gave_up = RunOutcome(4, "one gave up: Stalled: waited 9 s for the queue")
    assert outcome == (gave_up if is_main else RunOutcome(0, "enough"))
    assert process(run, "one").starts == (2 if is_main else 4)


async def test_hung_process_is_killed_and_restarted(folder: RunFolder):
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
        run.stop(RunOutcome(0, "enough"))

    assert await run_while(run, hang) == RunOutcome(0, "enough")
    assert process(run, "service").restarts == 1


async def test_last_log_line_is_the_message_of_a_json_line(folder: RunFolder):
    line = json.dumps({"level": "error", "message": "it broke", "exception": "Traceback\nValueError: no"})
    spec = child("sft", f"import sys; print({line!r}); print(); sys.exit(1)", is_main=True, restarts=False)
    assert await supervisor(folder, spec).run() == RunOutcome(1, "sft: it broke: ValueError: no")


async def test_stage_stopped_from_outside_has_not_succeeded(folder: RunFolder):
    spec = child("sft", "", is_main=True, restarts=False)
    outcome = await supervisor(folder, spec, finished=lambda: False).run()
    assert outcome == RunOutcome(1, "sft was stopped before it finished")


async def test_killed_stage_exits_with_the_code_of_a_shell(folder: RunFolder):
    suicide = "import os, signal; print('working', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    outcome = await supervisor(folder, child("sft", suicide, is_main=True, restarts=False)).run()
    assert outcome == RunOutcome(137, "sft: killed by SIGKILL")


async def test_process_that_was_never_ready_gets_few_restarts(folder: RunFolder):
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
        "policy-0 died 4 times without progress (exit code 1, last line: no such module); "
        f"its log: {folder.log('policy-0')}"
    )


async def test_restarts_are_limited(folder: RunFolder):
    run = supervisor(folder, child("a", "raise SystemExit(1)"), child("main", FOREVER), max_restarts=1)
    outcome = await run.run()
    assert outcome.message.startswith("a died 2 times without progress (exit code 1);")


async def test_process_that_is_not_ready_in_time_is_named(folder: RunFolder):
    async def never() -> bool:
        return False

    log = folder.log("reward-0")

    async def after_words() -> bool:
        return "loading shard 3" in "".join(lines(log))

    run = supervisor(
        folder,
        child(
            "reward-0", f"print('loading shard 3', flush=True); {FOREVER}", probe=never, ready_after=("main",)
        ),
        child("main", FOREVER, is_main=True, probe=after_words),
        ready_seconds=0.3,
    )
    outcome = await run.run()
    assert outcome == RunOutcome(
        1, f"reward-0 was not ready within 0.3 s, last line: loading shard 3; its log: {log}"
    )


async def test_exit_code_0_of_the_main_process_counts_only_if_finished(folder: RunFolder, tmp_path: Path):
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
    assert await run.run() == RunOutcome(0, "main has finished")
    assert process(run, "main").starts == 2


async def test_missing_program_is_reported(folder: RunFolder):
    spec = ProcessSpec(name="valkey", command=("/no/such/server",), restarts=False)
    assert await supervisor(folder, spec).run() == RunOutcome(
        1, "valkey: /no/such/server: No such file or directory"
    )


@pytest.mark.parametrize(
    ("committed", "starts"),
    [
        # After the first stall update 1 is committed, after the second and the crash nothing.
        ((0, 0, 1, 1, 1), 4),
        ((0, 1, 2, 3, 4, 5), 6),
        ((5, 3, 3), 2),  # a run that begins again
    ],
)
async def test_stalls_are_counted_while_no_update_is_committed(
    folder: RunFolder, tmp_path: Path, committed: tuple[int, ...], starts: int
):
    file = tmp_path / "starts"
    stalls_and_crashes = """
        import pathlib, sys
        starts = pathlib.Path(sys.argv[1])
        starts.write_text((starts.read_text() if starts.exists() else "") + "x")
        number = len(starts.read_text())
        print("Stalled: waited")
        sys.exit({3: 1, 6: 0}.get(number, 4))
    """
    values = iter(committed)
    spec = child("main", stalls_and_crashes, file, is_main=True, committed=lambda: next(values))
    outcome = await supervisor(folder, spec).run()
    assert len(file.read_text()) == starts
    assert outcome.code == (0 if starts == 6 else 4)


def test_the_updates_in_checkpoints_are_progress(tmp_path: Path):
    committed = CommittedUpdates(tmp_path / "checkpoints")
    assert committed() == 0
    for name in ("1-7", "2-3", ".2-9.new", "incarnation-3.json"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert committed() == 3
