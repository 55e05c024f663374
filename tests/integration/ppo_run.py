"""A PPO run of tiny models started by its command, and an independent count of its tasks."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import redis

from benchmarks import tiny_run
from fairlead.audit import Report, audit
from fairlead.audit.checkpoints import read_claims
from fairlead.audit.snapshot import TrainingSettings
from fairlead.config import RunFolder, load
from fairlead.local import valkey
from fairlead.local.run_files import MARK, read_pids
from fairlead.transports.rollouts.redis_snapshot import take_snapshot
from tests.tiny import tiny_causal_lm, tiny_reward_model

BATCH = 8
"""Tasks of an update, each with one answer or with several."""


DYNAMIC_SAMPLING: Mapping[str, object] = {
    "ppo.estimator": "rloo",
    "ppo.dynamic_sampling": True,
    "ppo.score_clip": 0.01,
    "ppo.missing_eos_penalty": 0.0,
}
"""Most scores are beyond this clip, so every third group of four answers has equal rewards."""

ONLINE_DPO: Mapping[str, object] = {
    "ppo.estimator": "pairs",
    "ppo.loss": "online_dpo",
    "ppo.kl_control": "linear",
    "ppo.kl_coefficient_end": 0.02,
}
"""For groups; β falls from update to update."""


def make(folder: Path, *, updates: int, max_staleness: int = 0, num_samples: int = 1) -> Path:
    """Write models, prompts and `run.toml` into a folder; return the file."""
    tiny_causal_lm(folder / "policy", seed=1)
    tiny_reward_model(folder / "reward", seed=2)
    return tiny_run.write(
        folder,
        name="tiny",
        prompts=(f"w{n} w{n * 7 % 56} w{n * 3 % 56}" for n in range(40)),
        settings={
            "ppo.updates": updates,
            "ppo.max_staleness": max_staleness,
            "ppo.num_samples": num_samples,
            "ppo.batch_size": BATCH * num_samples,
            "queue.lease_seconds": 1.0,
            "local.backoff_seconds": 0.2,
        },
    )


class Started:
    """A running `fairlead ppo run.toml`."""

    def __init__(self, process: subprocess.Popen[str], folder: RunFolder) -> None:
        self.process = process
        self.folder = folder

    def pids(self) -> dict[str, int]:
        """Return the PIDs of the processes that are running, by name."""
        return read_pids(self.folder.processes)

    def step(self) -> int:
        """Return the number of completed updates."""
        return tiny_run.step(self.folder)

    def until(self, condition: Callable[[], object], *, seconds: float = 90.0) -> None:
        """Wait for a condition; fail if the run ends or it takes too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, (
                f"the run has ended: {self.process.stderr and self.process.stderr.read()}"
            )
            assert time.monotonic() < deadline, (
                f"condition not met within {seconds} s, at update {self.step()}: {self.log_tails()}"
            )
            time.sleep(0.02)

    def log_tails(self) -> str:
        """Return the end of every log."""
        logs = sorted(self.folder.logs.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text()[-600:]}" for log in logs)

    def finish(self, *, seconds: float = 120.0) -> tuple[int, str]:
        """Return the exit code and standard error."""
        _, output = self.process.communicate(timeout=seconds)
        return self.process.returncode, output


@contextlib.contextmanager
def started(file: Path, *arguments: str, inside: Sequence[str] = ()) -> Iterator[Started]:
    """Start the run and kill it in any case at the end. `inside` is a command that runs commands."""
    command = [*inside, *tiny_run.command(file, *arguments)]
    process = subprocess.Popen(
        command,
        cwd=file.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    try:
        yield Started(process, RunFolder(file.parent / "runs" / "tiny"))
    finally:
        process.kill()
        process.communicate()


def left_over(folder: RunFolder) -> list[str]:
    """Return the command lines of processes that name the folder of the run."""
    root = str(folder.root)
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if (
                any(root in part for part in process.info["cmdline"] or ())
                or process.environ().get(MARK) == root
            ):
                found.append(" ".join(process.info["cmdline"] or ()))
    return found


def account(folder: RunFolder) -> Counter[int]:
    """Count how often every task counted in the lineage of the final weights, from `ledger.jsonl`.

    A line counts if no later incarnation began before its update; later updates were abandoned.
    """
    resumed_updates = {}
    for path in folder.checkpoints.glob("incarnation-*.resumed-from.json"):
        incarnation = int(path.name.removeprefix("incarnation-").partition(".")[0])
        resumed_from = json.loads(path.read_text())["resumed_from"]
        if resumed_from is not None:  # else a newer trainer replaced it before it resumed
            resumed_updates[incarnation] = resumed_from
    times: Counter[int] = Counter()
    for text in folder.ledger.read_text().splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            later = (
                resumed
                for incarnation, resumed in resumed_updates.items()
                if incarnation > line["incarnation"]
            )
            if line["event"] in ("trained", "dead_letter", "no_signal") and all(
                line["update"] < resumed for resumed in later
            ):
                times[line["task"]] += 1
    return times


def audited(folder: RunFolder, redis_url: str = "") -> Report:
    """Return the audit of a run, also while it works; no rule may be broken."""
    config = load(folder.config)
    section = config.queue.model_copy(update={"redis_url": redis_url or valkey.last_url(folder.redis)})
    ppo = config.ppo
    settings = TrainingSettings(ppo.batch_size, ppo.max_staleness, ppo.num_samples, ppo.extra_tasks)
    report, _ = audit(folder, settings=settings, read_queue=lambda: take_snapshot(section, run=config.name))
    assert report.is_clean, report.findings
    return report


def check_audit(folder: RunFolder, redis_url: str) -> None:
    """Check that the audit of a complete run has no findings and agrees with `account`."""
    config, report = load(folder.config), audited(folder, redis_url)
    assert (report.ended, report.open, report.queue_error) == (True, 0, "")
    assert report.trained + report.dead + report.no_signal == report.tasks == len(account(folder))
    assert report.max_staleness_seen <= config.ppo.max_staleness


def check(folder: RunFolder) -> None:
    """Check that every task counted once, the queue is empty, and the result agrees."""
    ppo = load(folder.config).ppo
    updates = ppo.updates
    result = json.loads(folder.result("ppo").read_text())
    without_signal = result.get("tasks_no_signal", 0)
    assert bool(without_signal) == ppo.dynamic_sampling
    expected = Counter(dict.fromkeys(range(updates * BATCH + without_signal), 1))
    assert account(folder) == expected
    assert result["updates"] == updates
    assert result["tasks_dispatched"] - without_signal == result["tasks_trained"] == updates * BATCH
    assert result["episodes"] == updates * ppo.batch_size
    assert (result["tasks_lost"], result["tasks_duplicated"], result["dead_letters"]) == (0, 0, 0)
    steps = [json.loads(line)["step"] for line in folder.metrics("ppo").read_text().splitlines()]
    # A trainer that is killed between a checkpoint and the line of its update resumes after it.
    resumed = {one.resumed_from for one in read_claims(folder.checkpoints, []).lineage}
    assert steps == [step for step in range(1, updates + 1) if step in steps or step not in resumed]
    assert any(folder.policy_model.glob("*model*.safetensors"))  # a full model or an adapter
    assert read_pids(folder.processes) == {}
    assert left_over(folder) == []
    with valkey.running(folder.redis) as server, redis.Redis.from_url(server.url) as client:
        check_audit(folder, server.url)
        assert client.xlen("fairlead:{tiny}:rollouts") == 0
        assert client.exists("fairlead:{tiny}:outstanding") == 0
        (group,) = client.xinfo_groups("fairlead:{tiny}:prompts")
        assert (group["pending"], group["lag"]) == (0, 0)
