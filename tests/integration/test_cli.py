"""The command line with real processes: exact errors, exit codes, start-up time."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner, Result

from fairlead import __version__
from fairlead.cli.main import app
from fairlead.config import RunFolder, load
from fairlead.local.run_files import RunLock, read_pids, read_progress
from tests.tiny import tiny_causal_lm

# A busy machine may take a minute to start a process that imports torch.
pytestmark = pytest.mark.timeout(300)


def fairlead(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fairlead.cli", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def in_process(*arguments: object, cwd: Path) -> Result:
    """Run a command that starts no process, in this one, which has imported everything."""
    with contextlib.chdir(cwd):
        return CliRunner().invoke(app, [*map(str, arguments)], prog_name="fairlead")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """Write the file of a run with sixteen demonstrations and a model that trains in a second."""
    lines = [{"prompt": f"say {n % 4}", "completion": f"number {n % 4} ."} for n in range(16)]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path / "run.toml"
    path.write_text(
        textwrap.dedent(
            """
            name = "tiny"
            [data]
            demonstrations = "demos.jsonl"
            heldout_fraction = 0.25
            [model.scratch]
            hidden_size = 16
            num_layers = 1
            tokenizer = "words"
            [sft]
            batch_size = 4
            epochs = 1
            [observe]
            tensorboard = false
            """
        )
    )
    return path


def test_version_and_help(tmp_path: Path):
    shown = fairlead("--version", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, f"fairlead {__version__}\n")
    helped = in_process("--help", cwd=tmp_path).stdout
    for verb in ("quickstart", "sft", "reward-model", "ppo", "serve", "score", "status", "report", "plan"):
        assert verb in helped
    assert "Examples:\n" in re.sub(r" +\n", "\n", in_process("sft", "--help", cwd=tmp_path).stdout)


def test_command_line_imports_no_heavy_modules(tmp_path: Path):
    program = (
        "import sys, fairlead.cli.main, fairlead.local.run; "
        "print([name for name in ('torch', 'transformers', 'services', 'trainer') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("ppo", "absent.toml"), "config: got 'absent.toml', allowed: a TOML file that exists"),
        (
            ("ppo", "--set", "ppo.updats=3"),
            "ppo.updats: got 'an unknown key', allowed: did you mean `ppo.updates`?",
        ),
        (("sft", "--set", "sft.epochs"), "--set: got 'sft.epochs', allowed: section.field=value"),
        (
            ("reward-model", "--set", "reward_model.epochs=0"),
            "reward_model.epochs: got 0, allowed: Input should be greater than or equal to 1",
        ),
        (
            ("serve", "reward", "--config", "no.toml"),
            "config: got 'no.toml', allowed: a TOML file that exists",
        ),
        (("status", "runs/none"), "run: got 'runs/none', allowed: the folder of a run"),
    ],
)
def test_mistake_prints_one_line_and_exits_with_2(tmp_path: Path, arguments: tuple[str, ...], error: str):
    shown = in_process(*arguments, cwd=tmp_path)
    assert (shown.exit_code, shown.stderr) == (2, f"error: {error}\n")
    assert not (tmp_path / "runs").exists()


def test_port_in_use_is_reported_before_anything_starts(tmp_path: Path, unused_port: int):
    shown = fairlead("ppo", "--set", f'policy.addresses=["127.0.0.1:{unused_port}"]', cwd=tmp_path)
    assert shown.returncode == 2
    assert shown.stderr == (
        f"error: policy.addresses: got 'port {unused_port} for policy-0, which is in use on 127.0.0.1', "
        "allowed: a free port, or 0 to choose one\n"
    )
    assert not RunFolder(tmp_path / "runs" / "run").processes.exists()


@pytest.fixture
def unused_port() -> object:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        yield taken.getsockname()[1]


def test_stage_runs_to_its_end_and_writes_its_files(run_file: Path):
    shown = fairlead("sft", run_file, "--set", "sft.epochs=2", cwd=run_file.parent, FAIRLEAD_SFT__EPOCHS="7")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("sft has finished: runs/tiny (seconds ")
    folder = RunFolder(run_file.parent / "runs" / "tiny")
    # The flag overrides the environment in the child, too.
    assert load(folder.config).sft.epochs == 2
    now = read_progress(folder.progress)
    assert now is not None
    assert (now.stage, now.phase, now.step) == ("sft", "done", now.total)
    assert json.loads(folder.metrics("sft").read_text().splitlines()[-1])["epoch"] == 2
    assert folder.log("sft").read_text().startswith("--- ")
    assert f"sft {now.total}/{now.total} · done · loss " in shown.stderr
    assert read_pids(folder.processes) == {}
    status = in_process("status", folder.root, cwd=run_file.parent).stdout
    assert "tiny · finished · sft · step " in status
    assert "sft has finished: " in status
    same = ("--set", "sft.epochs=2")
    again = in_process("sft", run_file, *same, cwd=run_file.parent)
    assert again.stdout.startswith("sft has already finished; --force runs it again: runs/tiny (seconds ")
    data = run_file.parent / "demos.jsonl"
    data.write_text(data.read_text() + data.read_text().splitlines()[0] + "\n")
    other = in_process("sft", run_file, "--set", "sft.epochs=3", cwd=run_file.parent)
    assert other.exit_code == 0
    assert other.stdout.startswith(
        "sft has already finished, with other inputs; --force runs it again with these"
    )
    assert "sft.epochs: 2 before, 3 now; data.demonstrations: demos.jsonl now has" in other.stderr


@pytest.mark.slow  # exit codes of stages, and what the supervisor makes of them, have tests of their own
def test_failed_stage_passes_on_its_message_and_exit_code(run_file: Path):
    shown = fairlead("sft", run_file, "--set", "data.demonstrations=absent.jsonl", cwd=run_file.parent)
    assert shown.returncode == 2
    last = shown.stderr.splitlines()[-1]
    assert last.startswith("error: sft: data.demonstrations: got ")
    assert "absent.jsonl" in last
    assert "Traceback" not in shown.stderr


def test_nohup_survives_hangup_and_ctrl_c_stops_a_stage_and_all_its_processes(run_file: Path):
    stage = [
        sys.executable,
        "-m",
        "fairlead.cli",
        "sft",
        str(run_file),
        "--set",
        "sft.epochs=1000",
        "--set",
        "checkpoint.every_steps=20",
    ]
    # As `nohup`: the process starts with SIGHUP ignored.
    command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *stage]
    started = subprocess.Popen(command, cwd=run_file.parent, stderr=subprocess.PIPE, text=True)
    try:
        folder = RunFolder(run_file.parent / "runs" / "tiny")
        deadline = time.monotonic() + 200
        while (now := read_progress(folder.progress)) is None or now.step < 1:
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.05)
        (pid,) = read_pids(folder.processes).values()
        child = psutil.Process(pid)
        started.send_signal(signal.SIGHUP)
        step = now.step
        while (now := read_progress(folder.progress)) is None or now.step < step + 5:
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.05)
        # With a checkpoint, a start that is not refused would warn of the changed setting.
        while not list(folder.stage_checkpoints("sft").glob("*/manifest.json")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        refused = in_process("sft", run_file, "--set", "sft.epochs=7", cwd=run_file.parent)
        assert refused.exit_code == 1
        assert refused.stderr == (
            f"error: runs/tiny: another fairlead process (pid {started.pid}) is working on this run\n"
        )
        status = json.loads(in_process("status", folder.root, "--json", cwd=run_file.parent).stdout)
        assert (status["state"], status["stage"]) == ("running", "sft")
        assert [(service["name"], service["pid"]) for service in status["services"]] == [("sft", pid)]
        started.send_signal(signal.SIGINT)
        _, output = started.communicate(timeout=30)
        assert started.returncode == 130
        assert output.splitlines()[-1] == "stopped by SIGINT; the same command continues the run"
        assert not child.is_running()
        assert read_pids(folder.processes) == {}
        ended = json.loads(in_process("status", folder.root, "--json", cwd=run_file.parent).stdout)
        assert ended["state"] == "stopped"
        assert ended["reason"] == "stopped by SIGINT; the same command continues the run"
        with RunLock(folder):
            pass
    finally:
        started.kill()
        started.wait()
        if started.stderr:
            started.stderr.close()


# Makes the terminal at its standard input the one that controls it, as a login shell has it.
ON_ITS_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.mark.slow  # SIGINT ends a stage in the same way
@pytest.mark.timeout(400)
def test_stage_whose_terminal_closes_stops_in_order(run_file: Path):
    pairs = [{"prompt": f"w{n}", "chosen": f"w{n} w{n + 1}", "rejected": "w2"} for n in range(16)]
    (run_file.parent / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tiny_causal_lm(run_file.parent / "base")
    settings = ("data.preferences=pairs.jsonl", "reward_model.path=base", "reward_model.epochs=1000")
    flags = [part for setting in settings for part in ("--set", setting)]
    stage = [sys.executable, "-m", "fairlead.cli", "reward-model", str(run_file), *flags]
    terminal, inside = pty.openpty()
    started = subprocess.Popen(
        [sys.executable, "-c", ON_ITS_TERMINAL, *stage],
        cwd=run_file.parent,
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    folder = RunFolder(run_file.parent / "runs" / "tiny")
    try:
        shown = b""
        deadline = time.monotonic() + 120
        while (now := read_progress(folder.progress)) is None or now.step < 2:
            assert time.monotonic() < deadline, shown
            if select.select([terminal], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):  # it has ended
                    shown += os.read(terminal, 65_536)
            assert started.poll() is None, shown
        (pid,) = read_pids(folder.processes).values()
        child = psutil.Process(pid)
        os.close(terminal)
        terminal = -1
        assert started.wait(180) == 128 + signal.SIGHUP
        assert not child.is_running()
        ended = json.loads(in_process("status", folder.root, "--json", cwd=run_file.parent).stdout)
        assert ended["reason"] == "stopped by SIGHUP; the same command continues the run"
        assert list(folder.stage_checkpoints("reward_model").glob("*/manifest.json"))
    finally:
        started.kill()
        started.wait()
        if terminal >= 0:
            os.close(terminal)


def test_serve_is_replaced_by_the_service(run_file: Path):
    shown = fairlead(
        *("serve", "reward", "--config", run_file, "--set", "reward.bind=nowhere"), cwd=run_file.parent
    )
    assert shown.returncode == 2
    assert shown.stderr.splitlines()[-1].startswith("reward: ")
    assert "nowhere" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_quickstart_without_a_checkout_is_refused(tmp_path: Path):
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "fairlead").symlink_to(Path(__file__).parents[2] / "fairlead")
    program = (
        "import pathlib; pathlib.Path.resolve = pathlib.Path.absolute; "
        "from fairlead.cli.main import app; app(['quickstart'])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: the quickstart needs a source checkout;")
