"""The process that runs every `python -m trainer.<stage>`: flags, logs, metrics page, signals, exit codes.

With several ranks each of them is such a process. Only the first writes the files of the run and shows its
metrics. Knows nothing about the stages: each `__main__` passes its own body.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TypeVar

from prometheus_client import REGISTRY, CollectorRegistry
from transformers.utils import logging as transformers_logging

from fairlead import inputs, log, tracing, watchdog
from fairlead.config import RunConfig, load, parse_overrides
from fairlead.errors import EXIT_CODE, FairleadError, StoppedByGuard, exit_code
from fairlead.metrics import RunMetrics, StageMetrics, TraceMetrics, TrainerMetrics
from fairlead.metrics import page as metrics_page
from fairlead.nn import allocator
from trainer import durable, memory, results
from trainer.distributed.group import Group, join
from trainer.distributed.place import Place, place

logger = logging.getLogger(__name__)

_FINAL_CODES = (0, EXIT_CODE[StoppedByGuard])
"""Ends after which the stage is not restarted, and which are in its metrics."""

_Metrics = TypeVar("_Metrics", TrainerMetrics, StageMetrics)
Body = Callable[[RunConfig, _Metrics, Group], None]
"""The work of a stage: gets the configuration, its metrics, and the ranks that share the work."""


def run(
    stage: str,
    body: Body[_Metrics],
    argv: Sequence[str] | None = None,
    *,
    new_metrics: Callable[[CollectorRegistry], _Metrics],
    forget: Callable[[RunConfig], None] | None = None,
    registry: CollectorRegistry = REGISTRY,
) -> int:
    """Read the configuration, join the other ranks, and run the body of a stage unless it is already done.

    SIGTERM and SIGINT end the body at once with 143 and 130; the same command then continues from what is on
    disk. The code is not 0, which a Kubernetes Job would take for the success of the run.

    Args:
        stage: `sft`, `reward_model`, `preference` or `ppo`; names the result file.
        body: the stage.
        argv: flags, without the name of the program.
        new_metrics: creates the metrics of the stage.
        forget: deletes what a finished stage would continue from; called before `--force` runs it again.
        registry: holds the metrics of this process.

    Returns:
        The exit code.
    """
    options = _flags(stage).parse_args(argv)
    allocator.keep_some_freed_memory(memory.FREE_BYTES)
    allocator.bound_kernels()
    try:
        # Warnings about the configuration come before it says how to log.
        log.setup()
        config = load(options.config, overrides=parse_overrides(options.set))
        position = place(config.ranks)
        log.setup(
            style=config.observe.log_style,
            level=config.observe.log_level,
            fields={"run": config.name} | ({"rank": position.rank} if position.size > 1 else {}),
        )
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        _stop_on_signals()
        RunMetrics(config, stage=stage, registry=registry)
        with _serving(config, registry, position) as joined:
            code, worked = 0, False
            try:
                with join(position, config.ranks, device=getattr(config, stage).device) as group:
                    joined.set()
                    done = _begin(stage, config, forget, force=options.force, group=group)
                    if done is None:
                        worked = True
                        # Metrics of the other ranks would be counted twice.
                        shown = registry if group.is_first else CollectorRegistry()
                        with _traced(stage, config, shown) if group.is_first else nullcontext():
                            _work(stage, config, lambda: body(config, new_metrics(shown), group))
                    code = done or 0
            except FairleadError as error:
                code = _report(error)
            if worked and position.rank == 0 and code in _FINAL_CODES:
                _linger(config.observe.linger_seconds)
            return code
    except FairleadError as error:
        return _report(error)


def _begin(
    stage: str,
    config: RunConfig,
    forget: Callable[[RunConfig], None] | None,
    *,
    force: bool,
    group: Group,
) -> int | None:
    """Return, on every rank, the exit code of a stage that is already done; None if there is work left.

    The first rank decides, and records what the stage is made from.
    """
    done: int | None = None
    if group.is_first:
        made_from = inputs.collect(stage, config)
        changed = inputs.differences(stage, config, made_from)
        done = results.exit_code_if_done(stage, config, changed, force=force)
        if done is None:
            inputs.warn_if_continued(stage, config, changed)
        elif force:
            # Only a finished stage starts from scratch: an interrupted one continues, with --force as well.
            done = None
            if forget is not None:
                forget(config)
            config.folder.result(stage).unlink()
        if done is None:
            with durable.explained_disk_errors():
                inputs.record_start(stage, config, made_from)
    agreed: int | None = json.loads(group.broadcast(json.dumps(done).encode()))
    return agreed


def _report(error: FairleadError) -> int:
    """Write an error as the last line of the log; return its exit code."""
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    sys.stderr.flush()
    return exit_code(error)


def _linger(seconds: float) -> None:
    """Keep serving metrics, so that the end of the stage is scraped; a signal ends that early."""
    if not seconds:
        return
    scraped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: scraped.set())
    logger.info("done; metrics are served for another %g s (observe.linger_seconds)", seconds)
    scraped.wait(seconds)


def _traced(stage: str, config: RunConfig, registry: CollectorRegistry) -> AbstractContextManager[None]:
    """Return what traces PPO; other stages have no tasks."""
    if stage != "ppo":
        return nullcontext()
    return tracing.start(
        config.observe,
        run=config.name,
        process="trainer",
        counter=lambda: TraceMetrics(registry).count,
    )


def _work(stage: str, config: RunConfig, body: Callable[[], None]) -> None:
    """Run the body, with the watchdog of this process."""
    # Other stages have phases as long as the stage itself.
    stop_watching = watchdog.PROCESS.start(
        limit_seconds=config.observe.stall_seconds if stage == "ppo" else 0.0
    )
    try:
        with memory.explained_memory_errors(stage, getattr(config, stage)), durable.explained_disk_errors():
            body()
    finally:
        stop_watching()


@contextmanager
def _serving(config: RunConfig, registry: CollectorRegistry, position: Place) -> Iterator[threading.Event]:
    """Serve the metrics page from the first rank of every node; it also answers the probes of a pod.

    The process is ready once the event is set. It must not be killed while it waits for the other ranks.
    """
    joined = threading.Event()
    if position.local_rank:
        yield joined
        return
    _, stop = metrics_page.serve(config.observe, tls=config.tls, ready=joined.is_set, registry=registry)
    try:
        yield joined
    finally:
        stop()


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
