"""The quickstart: `fairlead iterate` with the task's texts before it and a report after it.

Its labelers are simulated, and rank over HTTP as others do. Answers of PPO's updates, of which there are
thousands, are labeled here and not at the service.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console

from examples.exit_codes import failed
from examples.parcel_help import break_it, corpus, fresh_labels, methods, people, report
from examples.parcel_help.files import Files
from fairlead import log
from fairlead.config import RunConfig, load, parse_overrides
from fairlead.errors import ConfigError, FairleadError, StoppedByGate, exit_code
from fairlead.rounds.configuration import round_config
from fairlead.rounds.files import write_rows
from fairlead.rounds.iteration import STEPS_BEFORE, STEPS_OF_A_ROUND, Iteration, steps_key
from fairlead.rounds.loop import method_of
from fairlead.rounds.running import running
from fairlead.rounds.steps import Steps
from fairlead.rounds.training import StageStopped

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.toml"
NUM_DEMONSTRATIONS = 6_400
NUM_ROUNDS = 2
"""Default number of rounds."""


def run_quickstart(
    config: RunConfig,
    *,
    fresh: bool,
    console: Console,
    num_rounds: int = NUM_ROUNDS,
    num_demonstrations: int = NUM_DEMONSTRATIONS,
) -> None:
    """Run every step that has not finished yet. More rounds than before continue an earlier quickstart.

    Raises:
        FairleadError: a step failed; finished steps are kept.
    """
    folder = config.folder
    steps = _steps(config, fresh=fresh, total=2 + STEPS_BEFORE + STEPS_OF_A_ROUND * num_rounds)
    files = Files(folder.root / "data")
    config = _with_data(config, demonstrations=files.demonstrations, prompts=files.prompts)
    steps.run(
        "corpus",
        "writing demonstrations and prompts",
        lambda: _write_corpus(config, files, num_demonstrations),
    )
    with _running(config, console) as work:
        work.run(steps, num_rounds=num_rounds)
    steps.run(
        "report" if num_rounds == 1 else f"report-{num_rounds}",
        "writing the report",
        lambda: report.write(config, files, num_rounds=num_rounds, seconds=steps.seconds),
    )
    print(f"\n{report.summary(folder.report_json)}\n\n{folder.report_html}")


def run_break_it(config: RunConfig, *, fresh: bool, console: Console) -> None:
    """Run the variant that games its reward, in its own folder.

    Raises:
        FairleadError: a step failed; finished steps are kept.
    """
    config = break_it.broken(config)
    folder = config.folder
    steps = _steps(config, fresh=fresh, total=7)
    files = Files(folder.root / "data")
    config = _with_data(config, demonstrations=files.demonstrations, prompts=files.prompts)
    steps.run(
        "corpus",
        "writing demonstrations and prompts",
        lambda: _write_corpus(config, files, NUM_DEMONSTRATIONS),
    )
    learning = f"{method_of(config.ppo)}, {config.ppo.updates} updates without a KL penalty"
    with _running(config, console) as work:
        sft, sample = lambda: work.loop.training.sft(config), work.loop.sample
        steps.run("sft", "fine-tuning on the demonstrations", sft)
        steps.run("sample", f"generating answers, {break_it.NUM_TASKS} tasks", sample)
        with work.working():
            steps.run("judgments", "labelers rank the policy's answers", lambda: work.judge(0))
        steps.run("reward_model", "training the reward model", lambda: work.reward_model(0))
        steps.run("ppo", learning, lambda: work.ppo(0))
    steps.run("report", "writing the report", lambda: break_it.write(round_config(config, 0)))
    print(f"\n{break_it.summary(config)}\n\n{folder.root / 'break_it.html'}")


def _steps(config: RunConfig, *, fresh: bool, total: int) -> Steps:
    file = config.folder.root / "stages.json"
    return Steps(file, key=steps_key(config), verb="quickstart", total=total, show=_show, fresh=fresh)


def _show(line: str) -> None:
    print(line, flush=True)


def _running(config: RunConfig, console: Console) -> AbstractContextManager[Iteration]:
    def fresh(config: RunConfig) -> AbstractContextManager[None]:
        rankings = Path(config.data.fresh_rankings)
        return fresh_labels.labelling(config.folder.rollout_samples, rankings, seed=config.seed)

    cohorts = people.alike(seed=config.seed)
    return running(config, show=_show, console=console, cohorts=cohorts, fresh_labels=fresh)


def _write_corpus(config: RunConfig, files: Files, num_demonstrations: int) -> None:
    pairs = corpus.demonstrations(num_demonstrations, seed=config.seed)
    write_rows(files.demonstrations, ({"prompt": prompt, "completion": answer} for prompt, answer in pairs))
    write_rows(files.prompts, ({"prompt": question.text} for question in corpus.questions()))


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
    except StageStopped as error:
        return failed(error, code=error.code)
    except StoppedByGate as error:
        return failed(error, code=exit_code(error))
    except FairleadError as error:
        return failed(error)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues\n")
        return 130
    return 0
