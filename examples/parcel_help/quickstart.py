"""The whole quickstart, stage by stage: corpus → SFT → answers → rankings → reward model → PPO → report; with
every further round, again rankings of the tuned policy's answers → refreshed reward model → PPO.

`python -m examples.parcel_help`. Names the stages and their order; what they do stands in `rounds`, the
project's own stages and services, and `report`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from examples.parcel_help import break_it, corpus, report, rounds
from examples.parcel_help.files import Files, write_rows
from examples.parcel_help.fresh_labels import labelling
from examples.parcel_help.stages import Stages
from fairlead import log
from fairlead.config import RunConfig, load, parse_overrides
from fairlead.errors import ConfigError, FairleadError, ProcessFailed
from fairlead.local.run import run_stage

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.toml"
NUM_DEMONSTRATIONS = 6_400
NUM_ROUNDS = 2
"""Turns of the loop that are played if nobody asks for more."""


class Stopped(FairleadError):
    """A stage was stopped by a signal."""

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


def play(config: RunConfig, *, fresh: bool, console: Console, num_rounds: int = NUM_ROUNDS) -> None:
    """Runs every stage that has not finished yet; with more rounds than before it goes on from there.

    Raises:
        FairleadError: a stage failed; what is finished stays.
    """
    folder = config.folder
    stages = Stages(folder.root, key=_key(config), fresh=fresh, total=4 + 4 * num_rounds)
    files = Files(folder.root / "data")
    config = _with_data(config, demonstrations=files.demonstrations, prompts=files.prompts)
    stages.run("corpus", "writing demonstrations and prompts", lambda: _write_corpus(config, files))
    stages.run("sft", "fine-tuning on the demonstrations", lambda: _run(config, "sft", console))
    stages.run(
        "sample",
        f"asking the policy, {rounds.NUM_TASKS} tasks × {rounds.NUM_ANSWERS} answers",
        lambda: rounds.sample(config, files, tasks=rounds.NUM_TASKS),
    )
    for number in range(num_rounds):
        last = number + 1 == num_rounds
        _play_round(rounds.round_config(config, number), files, number, stages, console)
        _ask_the_tuned(rounds.round_config(config, number), files, number, stages, last=last)
    stages.run(
        "report" if num_rounds == 1 else f"report-{num_rounds}",
        "writing the report",
        lambda: report.write(config, files, num_rounds=num_rounds, seconds=stages.seconds),
    )
    print(f"\n{report.summary(folder.report_json)}\n\n{folder.report_html}")


def play_broken(config: RunConfig, *, fresh: bool, console: Console) -> None:
    """The run that games its reward, in a folder of its own.

    Raises:
        FairleadError: a stage failed; what is finished stays.
    """
    config = break_it.broken(config)
    folder = config.folder
    stages = Stages(folder.root, key=_key(config), fresh=fresh, total=7)
    files = Files(folder.root / "data")
    config = _with_data(config, demonstrations=files.demonstrations, prompts=files.prompts)
    config = rounds.round_config(config, 0)
    tasks, ppo = break_it.NUM_TASKS, config.ppo
    for name, title, body in (
        ("corpus", "writing demonstrations and prompts", lambda: _write_corpus(config, files)),
        ("sft", "fine-tuning on the demonstrations", lambda: _run(config, "sft", console)),
        ("sample", f"asking the policy, {tasks} tasks", lambda: rounds.sample(config, files, tasks=tasks)),
        ("rank", "labelers rank the policy's answers", lambda: rounds.rank(config, files, 0)),
        ("reward_model", "training the reward model", lambda: _run(config, "reward_model", console)),
        ("ppo", f"PPO, {ppo.updates} updates without KL penalty", lambda: _ppo(config, console)),
        ("report", "writing the report", lambda: break_it.write(config)),
    ):
        stages.run(name, title, body)
    print(f"\n{break_it.summary(config)}\n\n{folder.root / 'break_it.html'}")


def _play_round(config: RunConfig, files: Files, number: int, stages: Stages, console: Console) -> None:
    """One turn of the loop: the policy's own answers are ranked, the reward model learns, PPO follows it."""
    suffix = f"-{number}" if number else ""
    stages.run(
        f"rank{suffix}",
        "labelers rank the policy's answers",
        lambda: rounds.rank(config, files, number),
    )
    stages.run(
        f"reward_model{suffix}",
        f"training the reward model on {'all rankings so far' if number else 'the rankings'}",
        lambda: _run(config, "reward_model", console),
    )
    stages.run(
        f"ppo{suffix}",
        f"PPO, {config.ppo.updates} updates × {config.ppo.batch_size} answers, through Redis and gRPC",
        lambda: _ppo(config, console),
    )


def _ask_the_tuned(config: RunConfig, files: Files, number: int, stages: Stages, *, last: bool) -> None:
    """The evaluation of a round; before another one the tuned policy answers that round's tasks as well."""
    suffix = f"-{number}" if number else ""
    stages.run(
        f"evaluate{suffix}" if last else f"evaluate_and_sample{suffix}",
        "asking the tuned policy and the reward model",
        lambda: rounds.evaluate(config, files, number, next_tasks=0 if last else rounds.NUM_TASKS),
    )


def _ppo(config: RunConfig, console: Console) -> None:
    """PPO, while labelers look on."""
    rankings = Path(config.data.fresh_rankings)
    with labelling(config.folder.rollout_samples, rankings, seed=config.seed):
        _run(config, "ppo", console)


def _run(config: RunConfig, stage: str, console: Console) -> None:
    outcome = run_stage(config, stage, console=console)
    if outcome.code >= 128:
        raise Stopped(outcome.message, outcome.code)
    if outcome.code:
        raise ProcessFailed(outcome.message)


def _write_corpus(config: RunConfig, files: Files) -> None:
    pairs = corpus.demonstrations(NUM_DEMONSTRATIONS, seed=config.seed)
    write_rows(files.demonstrations, ({"prompt": prompt, "completion": answer} for prompt, answer in pairs))
    write_rows(files.prompts, ({"prompt": question.text} for question in corpus.questions()))


def _key(config: RunConfig) -> str:
    """Stands for every setting that the outcome depends on."""
    names = ("seed", "model", "data", "sft", "reward_model", "ppo", "sampling", "evaluation")
    text = config.model_dump_json(include=set(names))
    return hashlib.sha256(text.encode()).hexdigest()


def _with_data(config: RunConfig, **paths: Path) -> RunConfig:
    values = {name: str(path.absolute()) for name, path in paths.items()}
    return config.model_copy(update={"data": config.data.model_copy(update=values)})


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the flags and plays; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.parcel_help", description="The quickstart.")
    parser.add_argument("--seed", type=int, default=None, help="every draw is derived from it")
    parser.add_argument("--config", type=Path, default=CONFIG, help="the run's TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, help="turns of the loop")
    parser.add_argument("--break-it", action="store_true", help="see a reward being hacked, and the guards")
    options = parser.parse_args(argv)
    try:
        flags = parse_overrides(options.set)
        if options.seed is not None:
            flags["seed"] = options.seed
        config = load(options.config, overrides=flags)
        log.setup(style="human", level="WARNING" if sys.stderr.isatty() else config.observe.log_level)
        if options.rounds < 1:
            raise ConfigError("--rounds", got=options.rounds, allowed="1 or more")
        console = Console(stderr=True)
        if options.break_it:
            play_broken(config, fresh=options.fresh, console=console)
        else:
            play(config, fresh=options.fresh, console=console, num_rounds=options.rounds)
    except FairleadError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.code if isinstance(error, Stopped) else 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on\n")
        return 130
    return 0
