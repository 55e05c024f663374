"""The base of long benchmarks: a quickstart, run if it does not exist, and measured PPO runs on its
models.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from examples.parcel_help import gold
from fairlead.config import RunConfig, load, parse_overrides
from fairlead.errors import ConfigError, ProcessFailed
from fairlead.local.serving import ask, serving
from fairlead.types import SamplingParams

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.toml"
_POLL_SECONDS = 0.05
_DRAIN_SECONDS = 15.0


def ensure(source: Path, changes: Mapping[str, object] | None = None) -> Path:
    """Return the folder of a quickstart with its models; run one round of it if the folder is empty.

    Args:
        source: the folder.
        changes: settings of the quickstart, if it is run.

    Raises:
        ConfigError: if the folder has other content, or an unfinished quickstart.
        ProcessFailed: if the quickstart fails.
    """
    if not source.exists():
        print(f"playing the quickstart into {source} first: some minutes", file=sys.stderr, flush=True)
        overrides = {"runs": str(source.parent.absolute()), "name": source.name}
        overrides |= {key: str(value) for key, value in (changes or {}).items()}
        command = [sys.executable, "-m", "examples.parcel_help", "--rounds", "1", *flags(overrides)]
        code = subprocess.run(command, check=False, stdout=sys.stderr).returncode
        if code:
            raise ProcessFailed(f"the quickstart ended with exit code {code}; run the same command to resume")
    needed = ("config.toml", "sft/config.json", "reward_model/config.json", "data/prompts.jsonl")
    missing = [name for name in needed if not (source / name).exists()]
    if missing:
        raise ConfigError(
            "--run",
            got=f"{source}, without {', '.join(missing)}",
            allowed="the folder of a finished `fairlead quickstart`, or one that does not exist yet",
        )
    return source.absolute()


async def gold_of(config: RunConfig, policy: Path, prompts: Sequence[str], *, samples: int) -> float:
    """Return the mean gold reward of a policy's answers, `samples` per prompt, from its service."""
    sampling = SamplingParams(max_new_tokens=config.sampling.max_new_tokens, seed=1)
    async with serving(config, {"policy": policy}) as addresses:
        found = await ask(addresses["policy"], prompts, samples=samples, sampling=sampling)
    answers = itertools.chain.from_iterable(found)
    return statistics.fmean(gold.reward(str(each.prompt), each.text, ended=each.ended) for each in answers)


def settings(source: Path, folder: Path, name: str, extra: Mapping[str, object]) -> dict[str, str]:
    """Return overrides of configs/quickstart.toml for PPO in `folder/name` with the models and prompts of
    `source`.
    """
    return {
        "name": name,
        "runs": str(folder.absolute()),
        "policy.path": str(source / "sft"),
        "reference.path": str(source / "sft"),
        "reward.path": str(source / "reward_model"),
        "data.prompts": str(source / "data" / "prompts.jsonl"),
        **{key: str(value) for key, value in extra.items()},
    }


def config(overrides: Mapping[str, str]) -> RunConfig:
    """Return the quickstart's configuration with some settings changed."""
    return load(CONFIG, overrides=parse_overrides([f"{key}={value}" for key, value in overrides.items()]))


@dataclass(slots=True)
class Usage:
    """CPU seconds of a process and its descendants over time."""

    times: list[float] = field(default_factory=list)
    """Unix time of the sample, seconds."""
    spent: list[dict[str, float]] = field(default_factory=list)
    """CPU seconds of each process until then, including ended ones, by the module that it runs."""
    _last: dict[tuple[int, float], tuple[str, float]] = field(default_factory=dict)

    def look(self, root: psutil.Process) -> None:
        """Add a sample."""
        for process in (root, *root.children(recursive=True)):
            try:
                spent = process.cpu_times()
                # Read the name again: a child has its parent's name until it executes its own program.
                key = (process.pid, process.create_time())
                self._last[key] = (_name(process), spent.user + spent.system)
            except psutil.Error:
                continue
        self.times.append(time.time())
        now: dict[str, float] = {}
        for name, cpu in self._last.values():
            now[name] = now.get(name, 0.0) + cpu
        self.spent.append(now)

    @property
    def total(self) -> float:
        """Return the CPU seconds of all processes to the end."""
        return sum(self.spent[-1].values())

    def between(self, first: float, last: float) -> dict[str, float]:
        """Return the CPU seconds of each process between two times, from the nearest samples."""
        before, after = self._near(first), self._near(last)
        return {name: cpu - before.get(name, 0.0) for name, cpu in after.items()}

    def _near(self, moment: float) -> dict[str, float]:
        index = min(range(len(self.times)), key=lambda index: abs(self.times[index] - moment))
        return self.spent[index]


@dataclass(frozen=True, slots=True)
class Measured:
    """A run of PPO from the end of its first update to the end of its last, without start-up."""

    updates: int
    """Updates in that time."""
    seconds: float
    """Wall-clock time per update."""
    cpu_seconds: float
    """CPU time per update, of all processes."""
    whole_seconds: float
    """Wall-clock time of the whole run, including start-up."""
    whole_cpu_seconds: float
    """CPU time of the whole run, including start-up."""
    by_command: Mapping[str, float]
    """CPU time per update, by process."""
    first_reward: float
    """Mean score of the first batch, before training."""
    last_reward: float
    """Mean score of the last batch."""
    last_kl: float
    """KL of the last batch to the reference, in nats per answer."""


def ppo(overrides: Mapping[str, str], *, deadline: float = math.inf) -> Measured:
    """Run `fairlead ppo` with all its services and measure it.

    Args:
        overrides: of configs/quickstart.toml.
        deadline: see `watched`.

    Raises:
        OutOfTime: if it has not ended at the deadline.
        ProcessFailed: if it fails.
    """
    begun = time.time()
    usage = verb(["ppo", str(CONFIG), *flags(overrides)], deadline=deadline)
    rows = config(overrides).folder.metrics("ppo").read_text().splitlines()
    return measured(rows, usage, begun=begun)


def updates(run: RunConfig) -> list[dict[str, Any]]:
    """Return the metrics of each update of a finished run of PPO."""
    return [json.loads(line) for line in run.folder.metrics("ppo").read_text().splitlines()]


def ends(run: RunConfig) -> list[str]:
    """Return how each task of a finished run ended, as its ledger names it."""
    return [json.loads(line)["event"] for line in run.folder.ledger.read_text().splitlines()]


def verb(arguments: Sequence[str], *, deadline: float = math.inf) -> Usage:
    """Run `fairlead` with these arguments and return the CPU time of all its processes.

    Raises:
        OutOfTime: if it has not ended at the deadline.
        ProcessFailed: if it fails.
    """
    usage, said, code = watched([sys.executable, "-m", "fairlead.cli", *arguments], deadline=deadline)
    if code:
        raise ProcessFailed(f"fairlead {arguments[0]} ended with exit code {code}: {said[-2000:]}")
    return usage


def flags(overrides: Mapping[str, str]) -> Iterator[str]:
    """Yield the flags of a verb for overrides."""
    return itertools.chain.from_iterable(("--set", f"{key}={value}") for key, value in overrides.items())


def measured(lines: Iterable[str], usage: Usage, *, begun: float) -> Measured:
    """Compute the measurement from one JSON line per update (`time`, `reward`, `kl`) and the CPU time
    between.

    Other lines are skipped, since a process also prints other output.
    """
    rows = [json.loads(line) for line in lines if line.startswith('{"')]
    ends = [row["time"] for row in rows]
    count = len(ends) - 1
    spent = {name: cpu / count for name, cpu in usage.between(ends[0], ends[-1]).items()}
    return Measured(
        updates=count,
        seconds=(ends[-1] - ends[0]) / count,
        cpu_seconds=sum(spent.values()),
        whole_seconds=usage.times[-1] - begun,
        whole_cpu_seconds=usage.total,
        by_command=spent,
        first_reward=rows[0]["reward"],
        last_reward=rows[-1]["reward"],
        last_kl=rows[-1]["kl"],
    )


class OutOfTime(Exception):
    """A command was still running at its deadline, and was killed."""


def watched(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, deadline: float = math.inf
) -> tuple[Usage, str, int]:
    """Run a command in a process group of its own; return its CPU time, its output and its exit code.

    Args:
        command: program and arguments.
        environment: its variables; None for those of this process.
        deadline: Unix time at which the whole group is killed.

    Returns:
        The output has both streams.

    Raises:
        OutOfTime: if it is still running at the deadline.
    """
    usage = Usage()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    root = psutil.Process(process.pid)
    try:
        while True:
            try:
                said, _ = process.communicate(timeout=_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                usage.look(root)
            else:
                return usage, said, process.returncode
            if time.time() > deadline:
                raise OutOfTime(f"{_name(root)} was still running when its time was up")
    finally:
        if process.returncode is None:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and its group: a supervisor stops its services, which have groups of their own."""
    for number, seconds in ((signal.SIGTERM, _DRAIN_SECONDS), (signal.SIGKILL, None)):
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=seconds)
            return


def _name(process: psutil.Process) -> str:
    """Return the module of `python -m module`, otherwise the program."""
    command = process.cmdline()
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    return Path(command[0]).name if command else process.name()
