"""The processes of a run on one machine: commands, environment, probes and the order in which they stop.

Pure functions: nothing is started here, and the same configuration and addresses give the same plan.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.config import RunConfig
from fairlead.config.run import field_names
from fairlead.errors import ConfigError
from fairlead.local.addresses import Addresses, join_address, reachable_host, split_address
from fairlead.local.committed import CommittedUpdates
from fairlead.local.cores import usable_cores
from fairlead.local.probes import ALIVE_PATH, READY_PATH, GrpcHealth, HttpHealth, Probe
from fairlead.local.process import ProcessSpec
from fairlead.planning.gpus import visible_devices

STAGE_PROCESSES = {"sft": "sft", "reward_model": "reward-model", "preference": "preference"}
"""Name of the only process of a stage without services, by stage."""

QUEUE_RANK = 2
"""Drain rank of the queue: it stops last, after the clients of the services (0) and the services (1)."""

_PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PET_NNODES", "PET_NPROC_PER_NODE")
"""Variables that would make a child one of several ranks of the caller that started this run."""
_CLIENT_RANK = 0
_SERVICE_RANK = 1


def ppo_plan(
    config: RunConfig,
    addresses: Addresses,
    *,
    config_file: Path,
    queue: ProcessSpec | None,
    gpus: Sequence[str] = (),
    force: bool = False,
) -> list[ProcessSpec]:
    """Return every process of a PPO run; all of them are started at once.

    Args:
        config: the configuration of the run.
        addresses: the address of every process.
        config_file: the file that every process reads.
        queue: the embedded Valkey, if the run has one.
        gpus: the GPUs of the machine, as `CUDA_VISIBLE_DEVICES` names them.
        force: repeat a finished run from its start.

    Raises:
        ConfigError: if the run needs several machines, or more GPUs than there are, or if its ranks cannot
            divide layers as configured.
    """
    replicas = [
        (name, f"{name}-{index}")
        for name in addresses.services
        for index in range(len(addresses.services[name].binds))
    ]
    build = _Processes(config, addresses, config_file, visible_devices(config, replicas, gpus))
    services = [
        build.model_service(name, index, bind)
        for name in addresses.services
        for index, bind in enumerate(addresses.services[name].binds)
    ]
    services += [build.weights(index, bind) for index, bind in enumerate(addresses.weights.binds)]
    queues = [queue] if queue else []
    before_worker = tuple(spec.name for spec in (*queues, *services))
    workers = [
        build.rollout_worker(index, ready_after=before_worker)
        for index in range(config.rollout_worker.replicas)
    ]
    gateways = [
        build.http_service("gateway", index, bind, ready_after=tuple(spec.name for spec in services))
        for index, bind in enumerate(addresses.gateway.binds)
    ]
    feedback = [
        build.http_service("feedback", index, bind, ready_after=())
        for index, bind in enumerate(addresses.feedback.binds)
    ]
    trainer = build.trainer(ready_after=tuple(spec.name for spec in queues), force=force)
    return [*queues, trainer, *services, *workers, *gateways, *feedback]


def stage_plan(
    config: RunConfig, stage: str, *, config_file: Path, force: bool = False, metrics_port: int = 0
) -> list[ProcessSpec]:
    """Return the only process of a stage without services, as a list.

    Args:
        config: the configuration of the run.
        stage: `sft`, `reward_model` or `preference`.
        config_file: the file that the process reads.
        force: repeat a finished stage.
        metrics_port: port of its metrics; 0: as configured, -1: none.

    Raises:
        ConfigError: if the run needs several machines, or its ranks cannot divide layers as configured.
    """
    return [
        ProcessSpec(
            name=STAGE_PROCESSES[stage],
            command=_trainer(config, stage, config_file, force=force),
            environment={"FAIRLEAD_OBSERVE__METRICS_PORT": str(metrics_port)} if metrics_port else {},
            metrics=metrics_address(config, metrics_port),
            is_main=True,
            restarts=False,
            loads_models=config.ranks.per_node == 1,
        )
    ]


def metrics_address(config: RunConfig, port: int) -> str:
    """Return `host:port` at which this machine reaches metrics; empty without a port."""
    return join_address(reachable_host(config.observe.metrics_host), port) if port > 0 else ""


def base_environment(config: RunConfig, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables of every child: the caller's, the number of threads, and secrets.

    Settings in the caller's environment are left out. They are already in the file that the children read; in
    the environment they would override flags that are in that file too.
    """
    settings = {f"FAIRLEAD_{name.upper().replace('.', '__')}" for name in field_names()}
    kept = {
        name: value
        for name, value in environment.items()
        if name.upper() not in settings and name not in _PLACES
    }
    # In synchronous PPO the trainer and the services take turns, so each may use every core. Threads that
    # wait for work must sleep: spinning would take the cores from the process whose turn it is.
    kept.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    kept.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    kept["TOKENIZERS_PARALLELISM"] = "false"
    # Progress bars do not belong in a log file.
    kept.setdefault("TQDM_DISABLE", "1")
    if config.queue.redis_url:
        kept["FAIRLEAD_QUEUE__REDIS_URL"] = config.queue.redis_url
    if config.queue.redis_password is not None:
        kept["FAIRLEAD_QUEUE__REDIS_PASSWORD"] = config.queue.redis_password.get_secret_value()
    if config.keys.redis_url:
        kept["FAIRLEAD_KEYS__REDIS_URL"] = config.keys.redis_url
    if config.keys.redis_password is not None:
        kept["FAIRLEAD_KEYS__REDIS_PASSWORD"] = config.keys.redis_password.get_secret_value()
    return kept


@dataclass(frozen=True, slots=True)
class _Processes:
    """Builds the specification of each process, with the addresses of the others in its environment."""

    config: RunConfig
    addresses: Addresses
    file: Path
    gpus: Mapping[str, str]

    def model_service(self, name: str, index: int, bind: str) -> ProcessSpec:
        host, port = split_address(bind, field=f"{name}.bind")
        # A policy service has no weights, and is not ready, until the trainer has published the first.
        waits_for_weights = name == "policy" and not self.config.policy.serve_initial
        own = {f"FAIRLEAD_{name.upper()}__BIND": bind}
        if name == "policy" and self.config.weights.cache:
            own["FAIRLEAD_WEIGHTS__CACHE"] = str(Path(self.config.weights.cache) / f"policy-{port}")
        return ProcessSpec(
            name=f"{name}-{index}",
            command=_module(f"services.{name}", self.file),
            environment=self._environment(f"{name}-{index}") | own,
            probe=self._health(host, port),
            alive=self._healthz(f"{name}-{index}"),
            metrics=self._metrics(f"{name}-{index}"),
            ready_after=("trainer",) if waits_for_weights else (),
            drain_rank=_SERVICE_RANK,
            loads_models=True,
        )

    def weights(self, index: int, bind: str) -> ProcessSpec:
        name = f"weights-{index}"
        host, port = split_address(bind, field="weights.bind")
        return ProcessSpec(
            name=name,
            command=_module("services.weights", self.file),
            environment=self._environment(name) | {"FAIRLEAD_WEIGHTS__BIND": bind},
            probe=self._health(host, port),
            alive=self._healthz(name),
            metrics=self._metrics(name),
            drain_rank=_SERVICE_RANK,
        )

    def rollout_worker(self, index: int, *, ready_after: tuple[str, ...]) -> ProcessSpec:
        name = f"rollout-worker-{index}"
        return ProcessSpec(
            name=name,
            command=_module("services.rollout_worker", self.file),
            environment=self._environment(name),
            probe=self._readyz(name),
            alive=self._healthz(name),
            metrics=self._metrics(name),
            ready_after=ready_after,
            drain_rank=_CLIENT_RANK,
        )

    def http_service(
        self, section: str, index: int, bind: str, *, ready_after: tuple[str, ...]
    ) -> ProcessSpec:
        name = f"{section}-{index}"
        return ProcessSpec(
            name=name,
            command=_module(f"services.{section}", self.file),
            environment=self._environment(name) | {f"FAIRLEAD_{section.upper()}__BIND": bind},
            probe=self._readyz(name),
            alive=self._healthz(name),
            metrics=self._metrics(name),
            ready_after=ready_after,
            drain_rank=_CLIENT_RANK,
        )

    def trainer(self, *, ready_after: tuple[str, ...], force: bool) -> ProcessSpec:
        return ProcessSpec(
            name="trainer",
            command=_trainer(self.config, "ppo", self.file, force=force),
            environment=self._environment("trainer"),
            probe=self._readyz("trainer"),
            alive=self._healthz("trainer"),
            metrics=self._metrics("trainer"),
            ready_after=ready_after,
            drain_rank=_CLIENT_RANK,
            is_main=True,
            committed=CommittedUpdates(self.config.folder.checkpoints),
            loads_models=self.config.ranks.per_node == 1,
        )

    def _environment(self, process: str) -> dict[str, str]:
        found = {
            f"FAIRLEAD_{name.upper()}__ADDRESSES": json.dumps(list(service.clients))
            for name, service in self.addresses.services.items()
        }
        if self.config.weights.transport == "grpc":
            found["FAIRLEAD_WEIGHTS__ADDRESSES"] = json.dumps(list(self.addresses.weights.clients))
        if self.config.gateway.collect != "off":
            found["FAIRLEAD_FEEDBACK__ADDRESSES"] = json.dumps(list(self.addresses.feedback.clients))
        if process in self.gpus:
            found["CUDA_VISIBLE_DEVICES"] = self.gpus[process]
        return found | {"FAIRLEAD_OBSERVE__METRICS_PORT": str(self.addresses.metrics[process])}

    def _health(self, host: str, port: int) -> Probe:
        return GrpcHealth(
            join_address(reachable_host(host), port), self.config.tls if self.config.tls.on else None
        )

    def _readyz(self, process: str) -> Probe | None:
        return self._http_health(process, READY_PATH)

    def _healthz(self, process: str) -> Probe | None:
        return self._http_health(process, ALIVE_PATH)

    def _http_health(self, process: str, path: str) -> Probe | None:
        port = self.addresses.metrics[process]
        if port <= 0:
            return None
        host = reachable_host(self.config.observe.metrics_host)
        return HttpHealth(host, port, path, self.config.metrics_tls)

    def _metrics(self, process: str) -> str:
        return metrics_address(self.config, self.addresses.metrics[process])


def _trainer(config: RunConfig, stage: str, file: Path, *, force: bool) -> tuple[str, ...]:
    """Return the command of a stage: its module, or the launcher of its ranks."""
    if config.ranks.nodes > 1:
        raise ConfigError("ranks.nodes", got=config.ranks.nodes, allowed="1 for a run on one machine")
    ranks = config.ranks
    if ranks.per_node % ranks.tensor_parallel:
        allowed = f"a number that divides ranks.per_node, {ranks.per_node}"
        raise ConfigError("ranks.tensor_parallel", got=ranks.tensor_parallel, allowed=allowed)
    module = f"trainer.{stage}"
    if ranks.per_node == 1:
        return _module(module, file, force=force)
    program, option, _, *rest = _module(module, file, force=force)
    return (program, option, "trainer.distributed.launch", module, *rest)


def _module(name: str, file: Path, *, force: bool = False) -> tuple[str, ...]:
    return (sys.executable, "-m", name, "--config", str(file), *(["--force"] if force else []))
