"""The command of the headline: every seed, then judges, tables and the picture.

An interrupted command continues where it stopped. The time left is estimated from the steps done.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.exit_codes import failed
from examples.headline import picture, results, side_by_side, sizes, table
from examples.headline.seed import Plan, Seed
from fairlead import log
from fairlead.config import RunFolder, parse_overrides
from fairlead.config.saving import replace_text
from fairlead.errors import ConfigError, FairleadError
from fairlead.local.cores import usable_cores
from fairlead.local.run_files import RunLock
from fairlead.rounds.training import StageStopped
from trainer import durable

SEEDS = (0, 1, 2, 3, 4)
OUT = Path("runs/headline")
_USUAL_SECONDS = {
    "pages": 1,
    "pretrain-0.1M": 12,
    "pretrain-1M": 25,
    "pretrain-10M": 110,
    "tune": 60,
    "sft-1M": 15,
    "sft-10M": 50,
    "answers": 60,
}
"""Rough time of each step, for the first estimate."""
_USUAL_OF_OTHERS = 10

_PRIOR_SECONDS = 30


class Clock:
    """Estimates how long the rest takes, from the time that steps of the same name took."""

    def __init__(self, names: Sequence[str], *, jobs: int = 1) -> None:
        """`names` are those of all steps of all seeds, of which `jobs` run at a time."""
        self._left = list(names)
        self._jobs = jobs
        self._total = len(names)
        self._started = time.monotonic()
        self._measured: dict[str, list[float]] = {}

    def done(self, name: str, seconds: float | None) -> str:
        """Return a line about the progress after a step, which took some seconds or was done before."""
        self._left.remove(name)
        if seconds is not None:
            self._measured.setdefault(name, []).append(seconds)
        spent = time.monotonic() - self._started
        count = self._total - len(self._left)
        return f"    {count} of {self._total} steps, {_span(spent)} so far, about {_span(self.left())} left"

    def left(self) -> float:
        """Return the estimated seconds of the steps that are left."""
        spent = sum(sum(times) for times in self._measured.values())
        usual = sum(_usual(name) * len(times) for name, times in self._measured.items())
        # Short steps say little about the pace of this machine.
        pace = (spent + _PRIOR_SECONDS) / (usual + _PRIOR_SECONDS)
        found = 0.0
        for name in self._left:
            times = self._measured.get(name)
            found += sum(times) / len(times) if times else _usual(name) * pace
        return found / self._jobs


def run(
    plan: Plan, seeds: Sequence[int], out: Path, *, num_larger: int | None = None, jobs: int = 1
) -> dict[str, Any]:
    """Run every seed, judge, and write headline.json, headline.md and headline.svg; return the figures.

    Args:
        plan: what is trained for a seed.
        seeds: which ones.
        out: folder of everything that is written.
        num_larger: how many seeds, the first ones, train larger models of their own; the others use those in
            turn. None: all do.
        jobs: how many seeds run at a time.

    Raises:
        FairleadError: a setting is invalid, or a step failed; finished steps are kept.
        OSError: the folder cannot be written.
    """
    known = planned(plan, seeds, out, num_larger=num_larger)
    for one in known:
        one.check()
    out.mkdir(parents=True, exist_ok=True)
    with RunLock(RunFolder(out)):
        clock = Clock([name for one in known for name, _, _ in one.steps()], jobs=min(jobs, len(known)))

        def on_step(name: str, seconds: float | None) -> None:
            print(clock.done(name, seconds), flush=True)

        def show(line: str) -> None:
            print(line, flush=True)

        if jobs > 1 and len(known) > 1:
            side_by_side.run(known, jobs, show, on_step)
        else:
            for one in known:
                show(f"seed {one.seed} of {', '.join(map(str, seeds))}")
                one.run(show, on_step)
        for one in known:
            one.write_prompts()
        print("judging", flush=True)
        figures = _figures(known)
        durable.write_json(out / "headline.json", figures)
        replace_text(out / "headline.md", table.markdown(figures), mode=0o644)
        picture.draw(figures, out / "headline.svg")
    return figures


def planned(plan: Plan, seeds: Sequence[int], out: Path, *, num_larger: int | None) -> list[Seed]:
    """Return the seeds, some of which may use the larger models of others; see `run`."""
    every = [Seed(plan, seed, (out / f"seed-{seed}").absolute()) for seed in seeds]
    own = every[:num_larger]
    rest = every[len(own) :]
    return [*own, *(replace(one, larger_of=owner) for one, owner in zip(rest, itertools.cycle(own)))]


def _figures(known: Sequence[Seed]) -> dict[str, Any]:
    # Every seed has the next one's reward model as a judge.
    others = [*known[1:], known[0]] if len(known) > 1 else [None]
    found = [results.of_seed(one, other) for one, other in zip(known, others, strict=True)]
    return {
        "larger_models_of": {str(one.seed): (one.larger_of or one).seed for one in known},
        "sizes": [size.name for size in known[0].plan.sizes],
        "judges": list(dict.fromkeys(row["judge"] for row in found[0]["tuned_against"])),
        "seeds": found,
        "means": results.together(found),
        "cores": os.cpu_count(),
    }


def _usual(name: str) -> float:
    return _USUAL_SECONDS.get(name, _USUAL_OF_OTHERS)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(map(int, text.split(",")))
    except ValueError:
        found = ()
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: different seeds from 0, such as 0,1,2")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, run the headline and return the exit code."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m examples.headline", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=SEEDS, help="seeds, such as 0,1,2")
    parser.add_argument(
        "--larger",
        type=int,
        default=None,
        metavar="N",
        help="train larger models for the first N seeds only; the others use those in turn",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=usable_cores(),
        metavar="N",
        help="seeds at a time (default: the number of cores)",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder of everything that is written")
    parser.add_argument("--pages", type=int, default=plan.num_pages, help="pages to pretrain on")
    parser.add_argument("--rounds", type=int, default=plan.num_rounds, help="rounds of tuning")
    parser.add_argument("--answers", type=int, default=plan.num_answers, help="answers to a question")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="of the quickstart"
    )
    options = parser.parse_args(argv)
    try:
        for flag in ("larger", "jobs", "pages", "rounds", "answers"):
            value = getattr(options, flag)
            if value is not None and value < 1:
                raise ConfigError(f"--{flag}", got=value, allowed="1 or more")
        changes = dict(parse_overrides(options.set))
        if own := sorted(sizes.OWN & changes.keys()):
            raise ConfigError(
                "--set", got=own[0], allowed=f"other settings than {', '.join(sorted(sizes.OWN))}"
            )
        plan = Plan(
            num_pages=options.pages,
            num_rounds=options.rounds,
            num_answers=options.answers,
            changes=changes,
        )
        log.setup(style="human", level="WARNING")
        figures = run(plan, options.seeds, options.out, num_larger=options.larger, jobs=options.jobs)
        print(f"\n{table.summary(figures)}\n{options.out / 'headline.md'}\n{options.out / 'headline.svg'}")
    except StageStopped as error:
        return failed(error, code=error.code)
    except (FairleadError, OSError) as error:
        return failed(error)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues\n")
        return 130
    return 0
