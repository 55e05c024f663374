"""A stage on this machine, from its configuration to its end: lock, plan, processes, view.

What `fairlead sft`, `reward-model` and `ppo` call. Starts processes; never imports what they run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console

from fairlead import log
from fairlead.config import RunConfig
from fairlead.config.saving import save
from fairlead.local.addresses import allocate
from fairlead.local.lock import RunLock
from fairlead.local.plan import QUEUE_RANK, base_environment, ppo_plan, stage_plan
from fairlead.local.process import ProcessSpec
from fairlead.local.supervisor import Supervisor
from fairlead.local.verdict import EXIT_GUARDED, Outcome
from fairlead.local.view import View

logger = logging.getLogger(__name__)


def run_stage(config: RunConfig, stage: str, *, console: Console, force: bool = False) -> Outcome:
    """Runs a stage to its end on this machine.

    Args:
        config: the run.
        stage: `sft`, `reward_model` or `ppo`.
        console: where the live picture goes; without a terminal, lines go to the log.
        force: do a finished stage again.

    Returns:
        How it ended; code 130 or 143 when a signal stopped it, 5 when a guard did.

    Raises:
        ConfigError: for a taken port or addresses that do not fit.
        ProcessFailed: if another supervisor works on the run.
    """
    folder = config.folder
    stopped = stopped_by_guard(config) if stage == "ppo" and not force else ""
    if stopped:
        return Outcome(EXIT_GUARDED, f"{stopped}; --force does it again")
    if not force and is_finished(config, stage):
        return Outcome(0, f"{_verb(stage)} has finished already; --force does it again")
    with RunLock(folder), _log_to_file(config):
        save(config, folder.config)
        # What an earlier stage said would be taken for news.
        folder.progress.unlink(missing_ok=True)
        specs, environment = processes(config, stage, force=force)
        return asyncio.run(_supervise(config, stage, specs, environment=environment, console=console))


def is_finished(config: RunConfig, stage: str) -> bool:
    """Whether the stage has left its result, for PPO that of as many updates as are asked for."""
    try:
        result = json.loads(config.folder.result(stage).read_text(encoding="utf-8"))
        return stage != "ppo" or int(result.get("updates", 0)) >= config.ppo.updates
    except (OSError, ValueError, AttributeError):
        return False


def stopped_by_guard(config: RunConfig) -> str:
    """What ended PPO before its last update, if a guard did; with another `guard.action` it may go on."""
    if config.guard.action != "stop":
        return ""
    try:
        result = json.loads(config.folder.result("ppo").read_text(encoding="utf-8"))
        return str(result.get("stopped_by_guard", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def processes(
    config: RunConfig, stage: str, *, force: bool = False
) -> tuple[list[ProcessSpec], dict[str, str]]:
    """The processes of a stage, and the variables that all of them get; takes the ports they listen on.

    Raises:
        ConfigError: as `allocate`.
    """
    environment = base_environment(config)
    file = config.folder.config.absolute()
    if stage != "ppo":
        return stage_plan(stage, config_file=file, force=force), environment
    addresses = allocate(config)
    queue = None
    if not config.queue.redis_url:
        queue, variables = _embedded_queue(config, addresses.redis_port)
        environment |= variables
    return ppo_plan(config, addresses, config_file=file, queue=queue, force=force), environment


async def _supervise(
    config: RunConfig,
    stage: str,
    specs: Sequence[ProcessSpec],
    *,
    environment: Mapping[str, str],
    console: Console,
) -> Outcome:
    folder = config.folder
    supervisor = Supervisor(
        specs,
        local=config.local,
        folder=folder,
        environment=environment,
        stage=stage,
        finished=lambda: is_finished(config, stage),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, _on_signal, supervisor, number)
    title = f"{folder.root} · {_verb(stage)}"
    view = View(title, stage=stage, path=folder.progress, processes=supervisor.processes)
    showing = asyncio.create_task(view.show(console))
    # Lets the picture begin, so that what is said from here on stands above it.
    await asyncio.sleep(0)
    logger.info("%s: starting %s", title, ", ".join(spec.name for spec in specs))
    try:
        outcome = await supervisor.run()
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
    if view.read() is not None:
        view.say()
    return outcome if outcome.code else Outcome(0, f"{_verb(stage)} has finished")


def _verb(stage: str) -> str:
    """The stage's name on the command line."""
    return stage.replace("_", "-")


def _on_signal(supervisor: Supervisor, number: signal.Signals) -> None:
    if supervisor.draining:
        logger.warning("%s again: killing what is left", number.name)
    else:
        logger.info("%s: stopping; the same command goes on from here, a second %s kills", *[number.name] * 2)
    supervisor.stop(Outcome(128 + number, f"stopped by {number.name}; the same command goes on"))


@contextlib.contextmanager
def _log_to_file(config: RunConfig) -> Iterator[None]:
    """The supervisor's own events, beside the logs of its processes."""
    path = config.folder.log("supervisor")
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(log.JsonFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _embedded_queue(config: RunConfig, port: int) -> tuple[ProcessSpec, dict[str, str]]:
    """The Valkey of the run, and where its clients find it: the password is in that URL."""
    from fairlead.local import valkey

    server = valkey.prepare(config.folder.redis, port=port)

    async def is_ready() -> bool:
        return await asyncio.to_thread(server.is_ready)

    spec = ProcessSpec(
        name="valkey", command=server.command, probe=is_ready, alive=is_ready, drain_rank=QUEUE_RANK
    )
    return spec, {"FAIRLEAD_QUEUE__REDIS_URL": server.url}
