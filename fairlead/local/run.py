"""Runs a stage on this machine from its configuration to its end: lock, plan, processes, view.

`fairlead sft`, `reward-model`, `dpo` and `ppo` call it. It starts processes and never imports their code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from rich.console import Console

from fairlead import inputs, log
from fairlead.config import RunConfig
from fairlead.config.saving import save
from fairlead.inputs import stage_inputs
from fairlead.local.addresses import MODEL_SERVICES, SUPERVISOR, allocate, allocate_stage
from fairlead.local.json_lines import JsonLines, Row
from fairlead.local.plan import (
    QUEUE_RANK,
    STAGE_PROCESSES,
    base_environment,
    metrics_address,
    ppo_plan,
    stage_plan,
)
from fairlead.local.process import ProcessSpec
from fairlead.local.restart_policy import EXIT_GUARDED, RunOutcome
from fairlead.local.run_files import MARK, RunLock
from fairlead.local.standby import Standby
from fairlead.local.supervisor import Observed, Supervisor
from fairlead.local.view import View, leave_closed_terminal
from fairlead.metrics import RunMetrics, SupervisorMetrics
from fairlead.metrics import page as metrics_page
from fairlead.planning.machine import visible_gpus
from fairlead.planning.refusals import check_earlier_models, check_stage
from fairlead.transports.rollouts.run_claim import check_name

logger = logging.getLogger(__name__)

_REPEATED = 5
"""Different warnings of a finished stage that are repeated where it was started."""


def run_stage(
    config: RunConfig,
    stage: str,
    *,
    console: Console,
    force: bool = False,
    standby: Standby | None = None,
) -> RunOutcome:
    """Run a stage to its end on this machine and return how it ended.

    Args:
        config: the configuration of the run.
        stage: `sft`, `reward_model`, `preference` or `ppo`.
        console: where the live view is shown; if it is no terminal, progress is logged as lines.
        force: repeat a finished stage.
        standby: processes that may run what loads models; see `prepare`.

    Returns:
        The outcome; its code is 130 or 143 if a signal stopped the run, 5 if a guard did.

    Raises:
        ConfigError: if a port is taken, the addresses do not fit the number of replicas, another active run
            on the same Redis has this name, or a process would refuse a setting.
        ProcessFailed: if another supervisor is working on the run.
    """
    folder = config.folder
    stopped = stopped_by_guard(config) if stage == "ppo" and not force else ""
    if stopped:
        return RunOutcome(EXIT_GUARDED, f"{stopped}; --force runs it again")
    finished = is_finished(config, stage)
    if finished and not force:
        return _finished(stage, inputs.differences(stage, config, inputs.collect(stage, config)))
    if stage == "ppo" and config.queue.redis_url:
        check_name(config.queue, run=config.name, folder=folder)
    with RunLock(folder), _log_to_file(config):
        if not finished:
            changed = inputs.differences(stage, config, inputs.collect(stage, config))
            inputs.warn_if_continued(stage, config, changed)
        save(config, folder.config)
        # The progress of an earlier stage must not be shown as the progress of this one.
        folder.progress.unlink(missing_ok=True)
        specs, environment, port = processes(config, stage, force=force)
        check_earlier_models(config, stage, services=services_of(specs))
        check_stage(config, stage, services=services_of(specs))
        observed, stop_metrics = _observed(config, stage, specs, port)
        supervisor = Supervisor(
            specs,
            local=config.local,
            folder=folder,
            environment=environment,
            stage=stage,
            finished=lambda: is_finished(config, stage),
            standby=standby,
            observed=observed,
        )
        began = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        try:
            outcome = asyncio.run(_supervise(config, stage, supervisor, console=console))
        finally:
            stop_metrics()
        if not outcome.code:
            main = next(spec.name for spec in specs if spec.is_main)
            repeat_warnings(folder.log(main), since=began)
        return outcome


def repeat_warnings(file: Path, *, since: str) -> None:
    """Log the warnings of a finished process, which are in a file of its own: each message once.

    Those about changed inputs are left out: `run_stage` has logged them at the start.

    Args:
        file: its log.
        since: the time from which they count, as the log writes it.
    """

    def warning(row: Row) -> Row | None:
        is_new = row.get("logger") != stage_inputs.logger.name and str(row.get("time", "")) >= since
        return row if is_new and row.get("level") == "warning" else None

    rows = JsonLines(file, keep=warning).read()
    messages = list(dict.fromkeys(str(row.get("message", "")) for row in rows))
    for message in messages[:_REPEATED]:
        logger.warning("%s: %s", file.stem, message)
    if len(messages) > _REPEATED:
        logger.warning("%s: %d more warnings in %s", file.stem, len(messages) - _REPEATED, file)


def _observed(
    config: RunConfig, stage: str, specs: Sequence[ProcessSpec], port: int
) -> tuple[Observed, Callable[[], None]]:
    """Serve the metrics of the supervisor; return them, and a function that ends that."""
    registry = CollectorRegistry()
    found = SupervisorMetrics([spec.name for spec in specs], registry)
    RunMetrics(config, stage=stage, registry=registry)
    _, stop = metrics_page.serve(
        config.observe.model_copy(update={"metrics_port": port}),
        tls=config.tls,
        ready=lambda: found.all_ready,
        registry=registry,
    )
    scheme = "https" if config.observe.metrics_tls else "http"
    return Observed(found, metrics_address(config, port), config.name, scheme), stop


def prepare(config: RunConfig, stages: Collection[str], standby: Standby) -> None:
    """Start the processes on standby that stages can use one after the other; call it while another runs."""
    count = len(stages) if config.ranks.per_node == 1 else 0
    if "ppo" in stages:
        # vLLM and Triton import their own libraries; with the engine `trainer` there is no service.
        services = (config.policy, config.reward, config.reference)
        count += sum(section.replicas for section in services if section.engine in ("local", "transformers"))
    standby.prepare(count, {**base_environment(config), MARK: str(config.folder.root.absolute())})


def services_of(specs: Sequence[ProcessSpec]) -> frozenset[str]:
    """Return the model services among the processes of a stage; `reward-model` is none, but a stage."""
    replicas = (spec.name.rpartition("-") for spec in specs)
    return frozenset(MODEL_SERVICES) & {name for name, _, number in replicas if number.isdigit()}


def _finished(stage: str, changed: Sequence[str]) -> RunOutcome:
    """Return the outcome of a stage that has already finished, and log what has changed since."""
    if not changed:
        return RunOutcome(0, f"{_verb(stage)} has already finished; --force runs it again")
    logger.warning("%s has finished with other inputs than these: %s", _verb(stage), "; ".join(changed))
    return RunOutcome(
        0, f"{_verb(stage)} has already finished, with other inputs; --force runs it again with these"
    )


def is_finished(config: RunConfig, stage: str) -> bool:
    """Return whether the stage has written its result; for PPO, the result of all `ppo.updates`."""
    try:
        result = json.loads(config.folder.result(stage).read_text(encoding="utf-8"))
        return stage != "ppo" or int(result.get("updates", 0)) >= config.ppo.updates
    except (OSError, ValueError, AttributeError):
        return False


def stopped_by_guard(config: RunConfig) -> str:
    """Return the reason if a guard stopped PPO; empty if none did, or if `guard.action` is not `stop` now."""
    if config.guard.action != "stop":
        return ""
    try:
        result = json.loads(config.folder.result("ppo").read_text(encoding="utf-8"))
        return str(result.get("stopped_by_guard", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def processes(
    config: RunConfig, stage: str, *, force: bool = False
) -> tuple[list[ProcessSpec], dict[str, str], int]:
    """Return the processes of a stage, the environment of all of them, and the port of the supervisor's
    metrics; allocates their ports.

    Raises:
        ConfigError: as in `allocate`.
    """
    environment = base_environment(config)
    file = config.folder.config.absolute()
    if stage != "ppo":
        name = STAGE_PROCESSES[stage]
        ports = allocate_stage(config, name)
        specs = stage_plan(config, stage, config_file=file, force=force, metrics_port=ports[name])
        return specs, environment, ports[SUPERVISOR]
    addresses = allocate(config)
    queue = None
    if not config.queue.redis_url:
        queue, variables = _embedded_queue(config, addresses.redis_port)
        environment |= variables
    specs = ppo_plan(
        config, addresses, config_file=file, queue=queue, gpus=visible_gpus(environment), force=force
    )
    return specs, environment, addresses.metrics[SUPERVISOR]


async def _supervise(
    config: RunConfig, stage: str, supervisor: Supervisor, *, console: Console
) -> RunOutcome:
    folder = config.folder
    loop = asyncio.get_running_loop()
    for number in _stop_signals():
        loop.add_signal_handler(number, _on_signal, supervisor, number)
    title = f"{folder.root} · {_verb(stage)}"
    view = View(folder, stage=stage)
    showing = asyncio.create_task(view.show(console))
    # Lets the live view start, so that log lines from here on are printed above it.
    await asyncio.sleep(0)
    logger.info("%s: starting %s", title, ", ".join(process.name for process in supervisor.processes))
    try:
        outcome = await supervisor.run()
        await supervisor.linger(config.observe.linger_seconds)
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
        leave_closed_terminal()
    if view.read() is not None:
        view.log_line()
    return outcome if outcome.code else RunOutcome(0, f"{_verb(stage)} has finished")


def _stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a run; not SIGHUP if the caller ignores it, as `nohup` does."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def _verb(stage: str) -> str:
    """Return the name of the stage on the command line."""
    return stage.replace("_", "-")


def _on_signal(supervisor: Supervisor, number: signal.Signals) -> None:
    if supervisor.draining:
        logger.warning("second %s: killing the remaining processes", number.name)
    else:
        logger.info(
            "%s: stopping; the same command continues from here, a second %s kills", *[number.name] * 2
        )
    supervisor.stop(RunOutcome(128 + number, f"stopped by {number.name}; the same command continues the run"))


@contextlib.contextmanager
def _log_to_file(config: RunConfig) -> Iterator[None]:
    """Write the supervisor's own log to a file next to the logs of its processes."""
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
    """Return the process of the run's Valkey, and the variable with its URL, which contains the password."""
    from fairlead.local import valkey

    server = valkey.prepare(config.folder.redis, port=port)

    async def is_ready() -> bool:
        return await asyncio.to_thread(server.is_ready)

    spec = ProcessSpec(
        name="valkey",
        command=server.command,
        probe=is_ready,
        alive=is_ready,
        redis=f"127.0.0.1:{server.port}",
        drain_rank=QUEUE_RANK,
    )
    return spec, {"FAIRLEAD_QUEUE__REDIS_URL": server.url}
