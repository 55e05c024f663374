"""The stages of the quickstart: corpus → SFT → answers → rankings → reward model → PPO → report.

Every further round ranks the tuned policy's answers, refreshes the reward model and continues PPO. This
module defines the stages and their order; `rounds`, `report` and the project's own stages do the work.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from examples import serving
from examples.parcel_help import break_it, corpus, methods, report, rounds
from examples.parcel_help.files import Files, write_rows
from examples.parcel_help.fresh_labels import labelling
from examples.parcel_help.stages import Stages
from fairlead import log
from fairlead.config import RunConfig, load, parse_overrides
from fairlead.config.training import OF_PAIRS, PpoSection
from fairlead.errors import ConfigError, FairleadError, ProcessFailed
from fairlead.local import run as local_run
from fairlead.local.standby import Standby

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.toml"
NUM_DEMONSTRATIONS = 6_400
NUM_ROUNDS = 2
"""Default number of rounds."""


class StageStopped(FairleadError):
    """A signal stopped a stage."""

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class _Runner:
    """Runs stages of the package, and starts processes on standby for the next one.

    Fine-tuning and reward models train with one thread, so a core is free for the imports of what follows.
    PPO leaves none.
    """

    console: Console
    standby: Standby

    def sft(self, config: RunConfig) -> None:
        """Fine-tune; answers are generated next."""
        serving.prepare(config, 1, self.standby)
        self._stage(config, "sft")

    def sample(self, config: RunConfig, files: Files, *, tasks: int) -> None:
        """Generate answers; a reward model is trained next."""
        local_run.prepare(rounds.round_config(config, 0), "reward_model", self.standby)
        rounds.sample(config, files, tasks=tasks, standby=self.standby)

    def reward_model(self, config: RunConfig) -> None:
        """Train the reward model; PPO follows."""
        local_run.prepare(config, "ppo", self.standby)
        self._stage(config, "reward_model")

    def ppo(self, config: RunConfig) -> None:
        """Run PPO while simulated labelers label its answers."""
        rankings = Path(config.data.fresh_rankings)
        with labelling(config.folder.rollout_samples, rankings, seed=config.seed):
            self._stage(config, "ppo")

    def _stage(self, config: RunConfig, stage: str) -> None:
        outcome = local_run.run_stage(config, stage, console=self.console, standby=self.standby)
        if outcome.code >= 128:
            raise StageStopped(outcome.message, outcome.code)
        if outcome.code:
            raise ProcessFailed(outcome.message)


def run_quickstart(config: RunConfig, *, fresh: bool, console: Console, num_rounds: int = NUM_ROUNDS) -> None:
    """Run every stage that has not finished yet. More rounds than before continue an earlier quickstart.

    Raises:
        FairleadError: a stage failed; finished stages are kept.
    """
    folder = config.folder
    stages = Stages(folder.root, key=_key(config), fresh=fresh, total=4 + 4 * num_rounds)
    files = Files(folder.root / "data")
    config = _with_data(config, demonstrations=files.demonstrations, prompts=files.prompts)
    stages.run("corpus", "writing demonstrations and prompts", lambda: _write_corpus(config, files))
    with Standby() as standby:
        runner = _Runner(console, standby)
        stages.run("sft", "fine-tuning on the demonstrations", lambda: runner.sft(config))
        stages.run(
            "sample",
            f"generating answers, {rounds.NUM_TASKS} tasks × {rounds.NUM_ANSWERS} answers",
            lambda: runner.sample(config, files, tasks=rounds.NUM_TASKS),
        )
        for number in range(num_rounds):
            last = number + 1 == num_rounds
            _run_round(rounds.round_config(config, number), files, number, stages, runner)
            _evaluate_round(rounds.round_config(config, number), files, number, stages, last=last)
    stages.run(
        "report" if num_rounds == 1 else f"report-{num_rounds}",
        "writing the report",
        lambda: report.write(config, files, num_rounds=num_rounds, seconds=stages.seconds),
    )
    print(f"\n{report.summary(folder.report_json)}\n\n{folder.report_html}")


def run_break_it(config: RunConfig, *, fresh: bool, console: Console) -> None:
    """Run the variant that games its reward, in its own folder.

    Raises:
        FairleadError: a stage failed; finished stages are kept.
    """
    config = break_it.broken(config)
    folder = config.folder
    stages = Stages(folder.root, key=_key(config), fresh=fresh, total=7)
    files = Files(folder.root / "data")
    config = _with_data(config, demonstrations=files.demonstrations, prompts=files.prompts)
    config = rounds.round_config(config, 0)
    tasks, ppo = break_it.NUM_TASKS, config.ppo
    with Standby() as standby:
        runner = _Runner(console, standby)
        for name, title, body in (
            ("corpus", "writing demonstrations and prompts", lambda: _write_corpus(config, files)),
            ("sft", "fine-tuning on the demonstrations", lambda: runner.sft(config)),
            (
                "sample",
                f"generating answers, {tasks} tasks",
                lambda: runner.sample(config, files, tasks=tasks),
            ),
            ("rank", "labelers rank the policy's answers", lambda: rounds.rank(config, files, 0)),
            ("reward_model", "training the reward model", lambda: runner.reward_model(config)),
            (
                "ppo",
                f"{_method(ppo)}, {ppo.updates} updates without a KL penalty",
                lambda: runner.ppo(config),
            ),
            ("report", "writing the report", lambda: break_it.write(config)),
        ):
            stages.run(name, title, body)
    print(f"\n{break_it.summary(config)}\n\n{folder.root / 'break_it.html'}")


def _run_round(config: RunConfig, files: Files, number: int, stages: Stages, runner: _Runner) -> None:
    """Run one round: rank the policy's answers, train the reward model on them, and run PPO."""
    suffix = f"-{number}" if number else ""
    stages.run(
        f"rank{suffix}",
        "labelers rank the policy's answers",
        lambda: rounds.rank(config, files, number),
    )
    stages.run(
        f"reward_model{suffix}",
        f"training the reward model on {'all rankings so far' if number else 'the rankings'}",
        lambda: runner.reward_model(config),
    )
    stages.run(
        f"ppo{suffix}",
        f"{_method(config.ppo)}, {config.ppo.updates} updates × {config.ppo.batch_size} answers, by gRPC",
        lambda: runner.ppo(config),
    )


def _evaluate_round(config: RunConfig, files: Files, number: int, stages: Stages, *, last: bool) -> None:
    """Evaluate a round. Unless it is the last one, the tuned policy also answers the next round's tasks."""
    suffix = f"-{number}" if number else ""
    stages.run(
        f"evaluate{suffix}" if last else f"evaluate_and_sample{suffix}",
        "evaluating the tuned policy",
        lambda: rounds.evaluate(config, files, number, next_tasks=0 if last else rounds.NUM_TASKS),
    )


def _method(section: PpoSection) -> str:
    """Return what the learning stage is called."""
    if section.loss in OF_PAIRS:
        return "online DPO"
    return "PPO" if section.has_critic else f"learning with {section.estimator}"


def _write_corpus(config: RunConfig, files: Files) -> None:
    pairs = corpus.demonstrations(NUM_DEMONSTRATIONS, seed=config.seed)
    write_rows(files.demonstrations, ({"prompt": prompt, "completion": answer} for prompt, answer in pairs))
    write_rows(files.prompts, ({"prompt": question.text} for question in corpus.questions()))


def _key(config: RunConfig) -> str:
    """Return a hash of every setting that the outcome depends on."""
    names = ("seed", "model", "data", "sft", "reward_model", "ppo", "sampling", "evaluation")
    text = config.model_dump_json(include=set(names))
    return hashlib.sha256(text.encode()).hexdigest()


def _with_data(config: RunConfig, **paths: Path) -> RunConfig:
    values = {name: str(path.absolute()) for name, path in paths.items()}
    return config.model_copy(update={"data": config.data.model_copy(update=values)})


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, run the quickstart and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.parcel_help", description="The quickstart.")
    parser.add_argument("--seed", type=int, default=None, help="seed of all random draws")
    parser.add_argument("--config", type=Path, default=CONFIG, help="the run's TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--fresh", action="store_true", help="start over instead of continuing")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, help="number of rounds")
    parser.add_argument(
        "--method", choices=list(methods.METHODS), default=methods.DEFAULT, help="how to learn"
    )
    parser.add_argument("--break-it", action="store_true", help="run the variant that games its reward")
    options = parser.parse_args(argv)
    try:
        flags = parse_overrides(options.set)
        if options.seed is not None:
            flags["seed"] = options.seed
        config = methods.configured(load(options.config, overrides=flags), options.method)
        log.setup(style="human", level="WARNING" if sys.stderr.isatty() else config.observe.log_level)
        if options.rounds < 1:
            raise ConfigError("--rounds", got=options.rounds, allowed="1 or more")
        console = Console(stderr=True)
        if options.break_it:
            run_break_it(config, fresh=options.fresh, console=console)
        else:
            run_quickstart(config, fresh=options.fresh, console=console, num_rounds=options.rounds)
    except FairleadError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.code if isinstance(error, StageStopped) else 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues\n")
        return 130
    return 0
