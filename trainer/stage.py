"""The frame of every `python -m trainer.<stage>`: flags, logs, metrics page, signals, exit codes.

Knows no stage; each `__main__` hands its own body in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from transformers.utils import logging as transformers_logging

from fairlead import log, watchdog
from fairlead.config import RunConfig, load, parse_overrides
from fairlead.errors import EXIT_CODE, FairleadError, StoppedByGuard, exit_code
from fairlead.metrics import ProcessMetrics, TrainerMetrics
from fairlead.metrics import page as metrics_page
from trainer import durable, memory

logger = logging.getLogger(__name__)


def run(
    stage: str,
    body: Callable[[RunConfig, TrainerMetrics], None],
    argv: Sequence[str] | None = None,
    *,
    forget: Callable[[RunConfig], None] | None = None,
) -> int:
    """Reads the configuration and runs a stage's body.

    Args:
        stage: `sft`, `reward_model` or `ppo`; names the result file.
        body: the stage; gets the configuration and the trainer's gauges.
        argv: flags, without the program's name.
        forget: removes what a finished stage would go on from; called before `--force` does it again.

    Returns:
        The exit code. SIGTERM and SIGINT end the body at once with 143 and 130: the same command goes on
        from what is on the disk. Not with 0, which a Kubernetes Job would take for the run's success.
    """
    options = _flags(stage).parse_args(argv)
    try:
        # Warnings about the configuration come before it says how to log.
        log.setup()
        config = load(options.config, overrides=parse_overrides(options.set))
        log.setup(style=config.observe.log_style, level=config.observe.log_level)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        _stop_on_signals()
        ended = _ended(stage, config)
        if ended is not None:
            if not options.force:
                return ended
            # Only a finished stage is begun anew: one that died on the way goes on, with --force as well.
            if forget is not None:
                forget(config)
            config.folder.result(stage).unlink()
        stop_serving = _serve(config)
        # Other stages have phases that take as long as the stage.
        stop_watching = watchdog.PROCESS.start(
            limit_seconds=config.observe.stall_seconds if stage == "ppo" else 0.0
        )
        try:
            with memory.exhaustion_named(stage, getattr(config, stage)), durable.disk_faults_named():
                ProcessMetrics()
                body(config, TrainerMetrics())
        finally:
            stop_watching()
            stop_serving()
    except FairleadError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return exit_code(error)
    return 0


def settings_hash(config: RunConfig, *sections: str) -> str:
    """SHA-256 over the seed and the sections that decide a stage's outcome, shortened."""
    settings = {name: getattr(config, name).model_dump(mode="json") for name in sections}
    text = json.dumps({"seed": config.seed, **settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


STAGE_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "sft": ("model", "data", "sft"),
    "reward_model": ("data", "reward_model"),
    "ppo": ("data", "ppo", "sampling"),
}
"""Sections of the configuration that decide what a stage comes to."""


def config_hash(stage: str, config: RunConfig) -> str:
    """The hash that a stage's result and checkpoints carry."""
    return settings_hash(config, *STAGE_SECTIONS[stage])


def _ended(stage: str, config: RunConfig) -> int | None:
    """The exit code of a stage that has ended before; None if there is something left to do."""
    path = config.folder.result(stage)
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if stage == "ppo" and int(result.get("updates", 0)) < config.ppo.updates:
        # With another action than `stop` a run that its guard ended goes on from its last good checkpoint.
        if "stopped_by_guard" not in result or config.guard.action != "stop":
            return None
        logger.warning("%s (--force does it again)", result["stopped_by_guard"])
        return EXIT_CODE[StoppedByGuard]
    changed = result.get("config_hash") != config_hash(stage, config)
    logger.warning(
        "%s is done already: %s%s (--force does it again)",
        stage,
        path,
        ", but with other settings than now" if changed else "",
    )
    return 0


def _flags(stage: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m trainer.{stage}", description=f"Runs the stage {stage}."
    )
    parser.add_argument("--config", type=Path, default=None, help="the run's TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--force", action="store_true", help="do a finished stage again")
    return parser


def _serve(config: RunConfig) -> Callable[[], None]:
    _, stop = metrics_page.serve(config.observe, tls=config.tls, ready=lambda: True)
    return stop


def _stop_on_signals() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        logger.info("stopped by %s; the same command goes on", signal.Signals(number).name)
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
