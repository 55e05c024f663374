"""The process that runs every `python -m trainer.<stage>`: flags, logs, metrics page, signals, exit codes.

Knows nothing about the stages: each `__main__` passes its own body.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from prometheus_client import REGISTRY, CollectorRegistry
from transformers.utils import logging as transformers_logging

from fairlead import inputs, log, watchdog
from fairlead.config import RunConfig, load, parse_overrides
from fairlead.errors import FairleadError, exit_code
from fairlead.metrics import ProcessMetrics, TrainerMetrics
from fairlead.metrics import page as metrics_page
from trainer import durable, memory, results

logger = logging.getLogger(__name__)


def run(
    stage: str,
    body: Callable[[RunConfig, TrainerMetrics], None],
    argv: Sequence[str] | None = None,
    *,
    forget: Callable[[RunConfig], None] | None = None,
    registry: CollectorRegistry = REGISTRY,
) -> int:
    """Read the configuration and run the body of a stage, unless the stage is already done.

    SIGTERM and SIGINT end the body at once with 143 and 130; the same command then continues from what is on
    disk. The code is not 0, which a Kubernetes Job would take for the success of the run.

    Args:
        stage: `sft`, `reward_model` or `ppo`; names the result file.
        body: the stage; gets the configuration and the trainer's metrics.
        argv: flags, without the name of the program.
        forget: deletes what a finished stage would continue from; called before `--force` runs it again.
        registry: holds the metrics of this process.

    Returns:
        The exit code.
    """
    options = _flags(stage).parse_args(argv)
    try:
        # Warnings about the configuration come before it says how to log.
        log.setup()
        config = load(options.config, overrides=parse_overrides(options.set))
        log.setup(style=config.observe.log_style, level=config.observe.log_level)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        _stop_on_signals()
        made_from = inputs.collect(stage, config)
        changed = inputs.differences(stage, config, made_from)
        done = results.exit_code_if_done(stage, config, changed)
        if done is not None:
            if not options.force:
                return done
            # Only a finished stage starts from scratch: an interrupted one continues, with --force as well.
            if forget is not None:
                forget(config)
            config.folder.result(stage).unlink()
        else:
            inputs.warn_if_continued(stage, config, changed)
        _, stop_serving = metrics_page.serve(
            config.observe, tls=config.tls, ready=lambda: True, registry=registry
        )
        # Other stages have phases as long as the stage itself.
        stop_watching = watchdog.PROCESS.start(
            limit_seconds=config.observe.stall_seconds if stage == "ppo" else 0.0
        )
        try:
            with (
                memory.explained_memory_errors(stage, getattr(config, stage)),
                durable.explained_disk_errors(),
            ):
                inputs.record_start(stage, config, made_from)
                ProcessMetrics(registry)
                body(config, TrainerMetrics(registry))
        finally:
            stop_watching()
            stop_serving()
    except FairleadError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return exit_code(error)
    return 0


def _flags(stage: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m trainer.{stage}", description=f"Run the stage {stage}.")
    parser.add_argument("--config", type=Path, default=None, help="the TOML file of the run")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--force", action="store_true", help="run a finished stage again")
    return parser


def _stop_on_signals() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        logger.info("stopped by %s; run the same command again to continue", signal.Signals(number).name)
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
