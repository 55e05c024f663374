"""`fairlead ppo` with real processes from start to end, with adapters in the place of whole policies."""

from __future__ import annotations

import stat
from pathlib import Path

from fairlead.config import RunFolder, load
from fairlead.local.run_files import running_pids
from tests.integration.ppo_run import check, make, started
from tests.integration.test_local_run_lora import FLAGS, check_adapters


def check_secrets(folder: RunFolder, output: str) -> None:
    """The password of the embedded queue is only in its own file, which only its owner can read."""
    own = folder.redis / "server.conf"
    password = next(
        line.split()[1] for line in own.read_text().splitlines() if line.startswith("requirepass ")
    )
    files = [path for path in folder.root.rglob("*") if path.is_file() and path != own]
    assert folder.root / "supervisor.json" in files
    assert [path for path in files if password.encode() in path.read_bytes()] == []
    assert password not in output
    assert {stat.S_IMODE(path.stat().st_mode) for path in (own, folder.config)} == {0o600}


def test_run_from_start_to_end_writes_all_its_files(tmp_path: Path):
    file = make(tmp_path, updates=3)
    with started(file, *FLAGS) as run:
        names = {"valkey", "trainer", "policy-0", "reward-0", "reference-0", "rollout-worker-0"}
        # The environment by which a process is known can be read a moment after its pid.
        run.until(lambda: set(running_pids(run.folder.processes, mark=str(run.folder.root))) == names)
        code, output = run.finish()
        assert code == 0, output + run.log_tails()
        check(run.folder)
        for name in (*names, "supervisor"):
            assert run.folder.log(name).exists()
        lines = [line.split(maxsplit=2)[2] for line in output.splitlines()]
        assert {
            line.partition(" is ready after ")[0] for line in lines if " is ready after " in line
        } == names
        assert any(line.startswith("ppo 3/3 · done · reward ") for line in lines)
        assert load(run.folder.config).ppo.updates == 3
        check_secrets(run.folder, output)
        check_adapters(run.folder, tmp_path / "policy")
    with started(file, *FLAGS) as run:
        output = run.process.communicate(timeout=30)[0]
        assert output.startswith(
            "ppo has already finished; --force runs it again: runs/tiny (updates 3, episodes 24, "
        )
        assert "tasks lost 0, tasks duplicated 0, dead letters 0" in output
