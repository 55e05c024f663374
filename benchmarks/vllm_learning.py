"""Does the loop learn the same when vLLM generates the answers? `.venv-vllm/bin/python -m benchmarks vllm`.

PPO of the quickstart with the embedded engine, with vLLM, and with vLLM and a trainer of two ranks, from one
SFT policy and reward model. Needs the environment of `make vllm-env`. Every finished run is a file in
benchmarks/out/vllm_learning, so the same command continues an interrupted benchmark.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks import quickstart
from benchmarks.parcel_task import store
from benchmarks.parcel_task.over_seeds import shown
from benchmarks.parcel_task.store import Store, measure_all
from benchmarks.parcel_task.tables import show, table
from benchmarks.result import OUT, QUICKSTART, Result, Settings
from examples.parcel_help.corpus import questions
from fairlead.errors import ConfigError, ProcessFailed

SEEDS = 3
MINUTES = 60.0
FOLDER = OUT / "vllm_learning"
SOURCE = OUT / "quickstart-two-heads"
"""Default folder of the quickstart."""
MODEL = {"model.scratch.num_heads": 2}
"""vLLM's build for CPUs needs attention heads of 32 at least, so two in place of four."""
_MEMORY = {"policy.vllm.gpu_memory_utilization": 0.2, "policy.vllm.kv_cache_memory_bytes": 256 << 20}
"""By default vLLM starts on CPUs only where most of the memory is free."""
SAMPLES = 4
"""Answers per question for measuring the gold reward."""
_QUICK: Mapping[str, object] = {"ppo.updates": 2, "ppo.batch_size": 16, "ppo.mini_batch_size": 8}


@dataclass(frozen=True, slots=True)
class Arm:
    """What generates the answers, and how many ranks train."""

    engine: str
    """Engine of the policy service."""
    ranks: int
    """Ranks of the trainer."""

    def __str__(self) -> str:
        engine = {"transformers": "embedded", "vllm": "vLLM"}[self.engine]
        return f"{engine}, {self.ranks} {'rank' if self.ranks == 1 else 'ranks'}"


ARMS = (Arm("transformers", 1), Arm("vllm", 1), Arm("vllm", 2))
EMBEDDED = ARMS[0]


@dataclass(frozen=True, slots=True)
class Learned:
    """What a run gave."""

    gold: float
    """Mean gold reward of the tuned policy's answers."""
    proxy: float
    """Mean score of the last batch."""
    kl: float
    """KL of the last batch to the reference, in nats per answer."""
    mismatch: float
    """Largest difference of recorded and trained log-probs over all updates, in nats per token."""
    trained: int
    """Tasks that were trained on."""
    other: int
    """Tasks with another end: dead letters and discarded ones."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return the outcome that was kept with these fields."""
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class LearningRun:
    """A run of an arm with a seed."""

    source: Path
    arm: Arm
    seed: int
    quick: bool
    deadline: float

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.arm.engine}-ranks{self.arm.ranks}-seed{self.seed}"

    @property
    def kind(self) -> Arm:
        """What fails for every seed if it fails for one."""
        return self.arm

    def key(self) -> str:
        """Return the digest of what its outcome depends on, but not of our code."""
        settings = quickstart.config(quickstart.settings(self.source, Path("runs"), self.name, self._extra()))
        described = settings.model_dump(mode="json", exclude={"runs"})
        return store.key({"source": str(self.source), "settings": described, "samples": SAMPLES})

    def measure(self) -> Learned:
        """Run PPO through the real services, then measure its policy with the embedded engine."""
        with tempfile.TemporaryDirectory() as folder:
            overrides = quickstart.settings(self.source, Path(folder), self.name, self._extra())
            quickstart.verb(
                ["ppo", str(quickstart.CONFIG), *quickstart.flags(overrides)], deadline=self.deadline
            )
            config = quickstart.config(overrides)
            rows, ends = quickstart.updates(config), quickstart.ends(config)
            result = json.loads(config.folder.result("ppo").read_text())
            embedded = quickstart.config({**overrides, "policy.engine": "transformers"})
            prompts = [question.text for question in questions()]
            samples = 1 if self.quick else SAMPLES
            policy = config.folder.policy_model
            return Learned(
                gold=asyncio.run(quickstart.gold_of(embedded, policy, prompts, samples=samples)),
                proxy=result["proxy_last"],
                kl=rows[-1]["kl"],
                mismatch=max(row.get("mismatch_max", math.nan) for row in rows),
                trained=ends.count("trained"),
                other=len(ends) - ends.count("trained"),
            )

    def _extra(self) -> dict[str, object]:
        extra = dict(_QUICK) if self.quick else {}
        if self.arm.engine == "vllm":
            extra |= _MEMORY
        return extra | {
            "seed": self.seed,
            "policy.engine": self.arm.engine,
            "ranks.per_node": self.arm.ranks,
            "observe.tensorboard": "false",
        }


def run(settings: Settings) -> dict[str, Result]:
    """Measure all arms, seed by seed, until the time is up; what has not finished is listed.

    Raises:
        ConfigError: if vLLM is not installed.
        ProcessFailed: if no run with the embedded engine has finished.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "vllm",
            got="not installed here",
            allowed="the environment of `make vllm-env`: .venv-vllm/bin/python -m benchmarks vllm",
        )
    source = quickstart.ensure(SOURCE if settings.source == QUICKSTART else settings.source, MODEL)
    deadline = time.time() + 60 * (settings.minutes or MINUTES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if settings.quick else FOLDER
        runs = [
            LearningRun(source, arm, seed, settings.quick, deadline)
            for seed in range(settings.rounds(SEEDS))
            for arm in ARMS
        ]
        finished = measure_all(
            runs, Store(folder / "runs", Learned.of), LearningRun.measure, deadline=deadline
        )
        found = by_arm(finished)
        if EMBEDDED not in found:
            raise ProcessFailed("no run with the embedded engine has finished; see above")
        show(report(found), folder / "vllm_learning.md")
    golds = {arm: statistics.fmean(one.gold for one in seeds.values()) for arm, seeds in found.items()}
    return {
        f"vllm_ranks{arm.ranks}_gold": Result(gold, "gold", golds[EMBEDDED], "embedded engine")
        for arm, gold in golds.items()
        if arm != EMBEDDED
    }


Found = Mapping[Arm, Mapping[int, Learned]]
"""What runs gave, by arm and seed."""


def by_arm(finished: Mapping[LearningRun, Learned]) -> Found:
    """Return the arms of which a seed has finished, in their order."""
    found = {arm: {run.seed: one for run, one in finished.items() if run.arm == arm} for arm in ARMS}
    return {arm: seeds for arm, seeds in found.items() if seeds}


def report(found: Found) -> str:
    """Return the table: a row per run, then means over seeds with their 95% intervals."""
    rows: list[Sequence[str]] = [
        (
            *(str(arm), str(seed), f"{one.gold:.2f}", f"{one.proxy:.2f}", f"{one.kl:.2f}"),
            *(f"{one.mismatch:.1e}", f"{one.trained:,}", str(one.other)),
        )
        for arm, seeds in found.items()
        for seed, one in seeds.items()
    ]
    for arm, seeds in found.items():
        own = list(seeds.values())
        if len(own) > 1:
            means = (shown([getattr(one, name) for one in own]) for name in ("gold", "proxy", "kl"))
            largest = max(one.mismatch for one in own)
            counts = (f"{sum(one.trained for one in own):,}", str(sum(one.other for one in own)))
            rows.append((str(arm), "all", *means, f"{largest:.1e}", *counts))
    header = (
        "engine and trainer",
        "seed",
        "gold",
        "score",
        "KL",
        "largest mismatch",
        "trained tasks",
        "others",
    )
    return table(header, rows)
