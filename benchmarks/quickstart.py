"""What long benchmarks stand on: a quickstart, played if it is not there, and PPO on its models, measured."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from examples.parcel_help import gold
from examples.serving import ask, serving
from fairlead.config import RunConfig, load, parse_overrides
from fairlead.errors import ConfigError, ProcessFailed
from fairlead.types import SamplingParams

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.toml"
_POLL_SECONDS = 0.05


def ensure(source: Path) -> Path:
    """The folder of a quickstart with its models; one round of it is played where there is nothing yet.

    Raises:
        ConfigError: the folder holds something else, or a quickstart that has not finished.
        ProcessFailed: playing it failed.
    """
    if not source.exists():
        print(f"playing the quickstart into {source} first: some minutes", file=sys.stderr, flush=True)
        places = ("--set", f"runs={source.parent.absolute()}", "--set", f"name={source.name}")
        command = [sys.executable, "-m", "examples.parcel_help", "--rounds", "1", *places]
        code = subprocess.run(command, check=False, stdout=sys.stderr).returncode
        if code:
            raise ProcessFailed(f"the quickstart ended with exit code {code}; the same command goes on")
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
    """Mean gold reward of a policy's answers, `samples` to each prompt; its service runs for as long."""
    sampling = SamplingParams(max_new_tokens=config.sampling.max_new_tokens, seed=1)
    async with serving(config, {"policy": policy}) as addresses:
        found = await ask(addresses["policy"], prompts, samples=samples, sampling=sampling)
    answers = itertools.chain.from_iterable(found)
    return statistics.fmean(gold.reward(each.prompt, each.text, ended=each.ended) for each in answers)


def settings(source: Path, folder: Path, name: str, extra: Mapping[str, object]) -> dict[str, str]:
    """Overrides of configs/quickstart.toml: PPO in `folder/name` on the models and prompts of `source`."""
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
    """The quickstart's configuration with some settings changed."""
    return load(CONFIG, overrides=parse_overrides([f"{key}={value}" for key, value in overrides.items()]))


@dataclass(slots=True)
class Usage:
    """CPU seconds of a process and of all below it, over time."""

    times: list[float] = field(default_factory=list)
    """When it was looked at, Unix seconds."""
    spent: list[dict[str, float]] = field(default_factory=list)
    """CPU seconds until then of each process, ended ones included, by the module that it runs."""
    _last: dict[tuple[int, float], tuple[str, float]] = field(default_factory=dict)

    def look(self, root: psutil.Process) -> None:
        """Adds a moment."""
        for process in (root, *root.children(recursive=True)):
            try:
                spent = process.cpu_times()
                # Its name anew: a child is called like its parent until it has become its own program.
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
        """CPU seconds of all, to the end."""
        return sum(self.spent[-1].values())

    def between(self, first: float, last: float) -> dict[str, float]:
        """CPU seconds of each process between two moments; looks stand for moments near them."""
        before, after = self._near(first), self._near(last)
        return {name: cpu - before.get(name, 0.0) for name, cpu in after.items()}

    def _near(self, moment: float) -> dict[str, float]:
        index = min(range(len(self.times)), key=lambda index: abs(self.times[index] - moment))
        return self.spent[index]


@dataclass(frozen=True, slots=True)
class Measured:
    """A run of PPO from the end of its first update to that of its last: what starts up is not counted."""

    updates: int
    """Updates in that time."""
    seconds: float
    """Clock time of an update."""
    cpu_seconds: float
    """CPU time of an update, of every process."""
    whole_seconds: float
    """Clock time of everything, start-up included."""
    whole_cpu_seconds: float
    """CPU time of everything, start-up included."""
    by_command: Mapping[str, float]
    """CPU time of an update, by process."""
    first_reward: float
    """Mean score of the first batch, before anything is learnt."""
    last_reward: float
    """Mean score of the last batch."""
    last_kl: float
    """Its divergence from the reference, in nats an answer."""


def ppo(overrides: Mapping[str, str]) -> Measured:
    """Runs `fairlead ppo` with all its services and measures it.

    Raises:
        ProcessFailed: it failed.
    """
    flags = itertools.chain.from_iterable(("--set", f"{key}={value}") for key, value in overrides.items())
    command = [sys.executable, "-m", "fairlead.cli", "ppo", str(CONFIG), *flags]
    begun = time.time()
    usage, said, code = watched(command)
    if code:
        raise ProcessFailed(f"fairlead ppo ended with exit code {code}: {said[-2000:]}")
    rows = config(overrides).folder.metrics("ppo").read_text().splitlines()
    return measured(rows, usage, begun=begun)


def measured(lines: Iterable[str], usage: Usage, *, begun: float) -> Measured:
    """From a JSON line with `time`, `reward` and `kl` for every update, and the CPU time in between.

    Lines that are no such objects are passed over: other things that a process says.
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


def watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[Usage, str, int]:
    """Runs a command to its end; its CPU time, what it wrote (both streams), and its exit code."""
    usage = Usage()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    root = psutil.Process(process.pid)
    while True:
        try:
            said, _ = process.communicate(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            usage.look(root)
        else:
            return usage, said, process.returncode


def _name(process: psutil.Process) -> str:
    """The module of `python -m module`, else the program."""
    command = process.cmdline()
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    return Path(command[0]).name if command else process.name()
