"""Compare asynchronous with synchronous PPO on the quickstart's task: `python -m benchmarks.asynchronous
RUN`.

RUN is the folder of a finished quickstart, whose SFT policy, reward model and data are copied. Each variant
trains in a separate folder through the real services. Prints a table in Markdown; takes minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import quickstart
from examples.parcel_help.corpus import questions
from fairlead.config import load

SAMPLES = 4
"""Answers per prompt for measuring the gold reward."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One training run."""

    max_staleness: int
    """Largest staleness of a rollout, in updates."""
    seed: int
    """Seed."""
    gold: float
    """Mean gold reward of the tuned policy's answers."""
    proxy: float
    """Mean score of the last batch."""
    kl: float
    """Divergence of the last batch, in nats per answer."""
    idle_fraction: float
    """Share of time in which the trainer waited for rollouts."""
    seconds: float
    """From the first dispatch to the last update."""
    staleness_mean: float
    """Mean age of trained rollouts, in updates."""
    staleness_max: int
    """Oldest trained rollout, in updates."""
    dropped: int
    """Discarded outcomes."""


def train(source: Path, folder: Path, *, max_staleness: int, seed: int, updates: int) -> Variant:
    """Run one variant in `folder`, with the models and data of `source`."""
    name = f"staleness-{max_staleness}-seed-{seed}"
    root = folder / name
    for part in ("sft", "reward_model", "data"):
        shutil.copytree(source / part, root / part)
    settings = {
        "name": name,
        "runs": str(folder),
        "seed": str(seed),
        "ppo.max_staleness": str(max_staleness),
        "ppo.updates": str(updates),
        "data.prompts": str(root / "data" / "prompts.jsonl"),
        "observe.tensorboard": "false",
    }
    command = [sys.executable, "-m", "fairlead.cli", "ppo", "configs/quickstart.toml"]
    command += itertools.chain.from_iterable(("--set", f"{key}={value}") for key, value in settings.items())
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    config = load(root / "config.toml")
    result = json.loads(config.folder.result("ppo").read_text())
    rows = quickstart.updates(config)
    prompts = [question.text for question in questions()]
    seconds = sum(row["seconds"] for row in rows)
    return Variant(
        max_staleness=max_staleness,
        seed=seed,
        gold=asyncio.run(quickstart.gold_of(config, config.folder.policy_model, prompts, samples=SAMPLES)),
        proxy=result["proxy_last"],
        kl=result["kl"],
        idle_fraction=sum(row.get("seconds_wait", 0.0) for row in rows) / seconds,
        seconds=seconds,
        staleness_mean=statistics.fmean(row["staleness_mean"] for row in rows),
        staleness_max=int(max(row["staleness_max"] for row in rows)),
        dropped=sum(end not in ("trained", "dead_letter") for end in quickstart.ends(config)),
    )


def table(variants: Iterable[Variant]) -> str:
    """Return a Markdown table with a line per run."""
    lines = [
        "| max_staleness | seed | gold | proxy | KL | idle | seconds | staleness mean | max | dropped |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {v.max_staleness} | {v.seed} | {v.gold:.2f} | {v.proxy:.2f} | {v.kl:.2f} "
        f"| {v.idle_fraction:.0%} | {v.seconds:.0f} | {v.staleness_mean:.2f} | {v.staleness_max} "
        f"| {v.dropped} |"
        for v in variants
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run every variant with seeds in the outer loop, so that drift of the machine affects all equally."""
    parser = argparse.ArgumentParser(prog="benchmarks.asynchronous", description=__doc__)
    parser.add_argument("source", type=Path, help="folder of a finished quickstart, such as runs/quickstart")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--updates", type=int, default=24)
    arguments = parser.parse_args(argv)
    found: list[Variant] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed, max_staleness in itertools.product(arguments.seeds, arguments.staleness):
            found.append(
                train(
                    arguments.source.resolve(),
                    Path(folder),
                    max_staleness=max_staleness,
                    seed=seed,
                    updates=arguments.updates,
                )
            )
            print(table(found[-1:]).splitlines()[-1], flush=True)
    print(table(sorted(found, key=lambda variant: (variant.max_staleness, variant.seed))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
