"""Which processes a run on one machine has: their commands, environment, readiness and order of stopping.

Pure: nothing is started here, and the same configuration and addresses give the same plan.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fairlead.config import RunConfig
from fairlead.config.run import field_names
from fairlead.local.addresses import MODEL_SERVICES, Addresses
from fairlead.local.ports import joined, reachable_host, split
from fairlead.local.probes import GrpcHealth, Healthz, Probe, Readyz
from fairlead.local.process import ProcessSpec

STAGE_PROCESSES = {"sft": "sft", "reward_model": "reward-model"}
"""Name of a stage's only process, by stage."""

QUEUE_RANK = 2
"""The queue is stopped last: after who asks for work (0) and who does it (1)."""

_ASKING, _ANSWERING = 0, 1


def ppo_plan(
    config: RunConfig,
    addresses: Addresses,
    *,
    config_file: Path,
    queue: ProcessSpec | None,
    force: bool = False,
) -> list[ProcessSpec]:
    """Every process of a PPO run; all are started at once.

    Args:
        config: the run.
        addresses: where everything listens.
        config_file: what each process reads.
        queue: the embedded Valkey, if there is one.
        force: do a finished run again from its start.
    """
    wires = _Wires(config, addresses, config_file)
    services = [
        wires.model_service(name, index, bind)
        for name in MODEL_SERVICES
        for index, bind in enumerate(addresses.services[name].binds)
    ]
    services += [wires.weights(index, bind) for index, bind in enumerate(addresses.weights.binds)]
    queues = [queue] if queue else []
    before_worker = tuple(spec.name for spec in (*queues, *services))
    workers = [
        wires.rollout_worker(index, ready_after=before_worker)
        for index in range(config.rollout_worker.replicas)
    ]
    gateways = [
        wires.gateway(index, bind, ready_after=tuple(spec.name for spec in services))
        for index, bind in enumerate(addresses.gateway.binds)
    ]
    trainer = wires.trainer(ready_after=tuple(spec.name for spec in queues), force=force)
    return [*queues, trainer, *services, *workers, *gateways]


def stage_plan(stage: str, *, config_file: Path, force: bool = False) -> list[ProcessSpec]:
    """The only process of a stage without services: `sft` or `reward_model`."""
    return [
        ProcessSpec(
            name=STAGE_PROCESSES[stage],
            command=_module(f"trainer.{stage}", config_file, force=force),
            is_main=True,
            restarts=False,
        )
    ]


def base_environment(config: RunConfig, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What every child gets: the caller's variables, threads set on purpose, secrets.

    Settings in the environment have gone into the file that the children read; left where they are, they
    would win over flags that are in that file too.
    """
    settings = {f"FAIRLEAD_{name.upper().replace('.', '__')}" for name in field_names()}
    kept = {name: value for name, value in environment.items() if name.upper() not in settings}
    # In synchronous PPO trainer and services take turns, so each gets every core; threads that wait for
    # work must sleep, or they would take the cores from whose turn it is.
    kept.setdefault("OMP_NUM_THREADS", str(_cores()))
    kept.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    kept["TOKENIZERS_PARALLELISM"] = "false"
    # A log file is no place for progress bars.
    kept.setdefault("TQDM_DISABLE", "1")
    if config.queue.redis_url:
        kept["FAIRLEAD_QUEUE__REDIS_URL"] = config.queue.redis_url
    if config.queue.password is not None:
        kept["FAIRLEAD_QUEUE__PASSWORD"] = config.queue.password.get_secret_value()
    if config.keys.redis_url:
        kept["FAIRLEAD_KEYS__REDIS_URL"] = config.keys.redis_url
    if config.keys.redis_password is not None:
        kept["FAIRLEAD_KEYS__REDIS_PASSWORD"] = config.keys.redis_password.get_secret_value()
    return kept


@dataclass(frozen=True, slots=True)
class _Wires:
    """What every process of the run is told about the others."""

    config: RunConfig
    addresses: Addresses
    file: Path

    def model_service(self, name: str, index: int, bind: str) -> ProcessSpec:
        host, port = split(bind, field=f"{name}.bind")
        # A policy holds no weights, and is not ready, until the trainer has published the first.
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
            drain_rank=_ANSWERING,
        )

    def weights(self, index: int, bind: str) -> ProcessSpec:
        name = f"weights-{index}"
        host, port = split(bind, field="weights.bind")
        return ProcessSpec(
            name=name,
            command=_module("services.weights", self.file),
            environment=self._environment(name) | {"FAIRLEAD_WEIGHTS__BIND": bind},
            probe=self._health(host, port),
            alive=self._healthz(name),
            metrics=self._metrics(name),
            drain_rank=_ANSWERING,
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
            drain_rank=_ASKING,
        )

    def gateway(self, index: int, bind: str, *, ready_after: tuple[str, ...]) -> ProcessSpec:
        name = f"gateway-{index}"
        return ProcessSpec(
            name=name,
            command=_module("services.gateway", self.file),
            environment=self._environment(name) | {"FAIRLEAD_GATEWAY__BIND": bind},
            probe=self._readyz(name),
            alive=self._healthz(name),
            metrics=self._metrics(name),
            ready_after=ready_after,
            drain_rank=_ASKING,
        )

    def trainer(self, *, ready_after: tuple[str, ...], force: bool) -> ProcessSpec:
        return ProcessSpec(
            name="trainer",
            command=_module("trainer.ppo", self.file, force=force),
            environment=self._environment("trainer"),
            probe=self._readyz("trainer"),
            alive=self._healthz("trainer"),
            metrics=self._metrics("trainer"),
            ready_after=ready_after,
            drain_rank=_ASKING,
            is_main=True,
        )

    def _environment(self, process: str) -> dict[str, str]:
        found = {
            f"FAIRLEAD_{name.upper()}__ADDRESSES": json.dumps(list(service.clients))
            for name, service in self.addresses.services.items()
        }
        if self.config.weights.transport == "grpc":
            found["FAIRLEAD_WEIGHTS__ADDRESSES"] = json.dumps(list(self.addresses.weights.clients))
        return found | {"FAIRLEAD_OBSERVE__METRICS_PORT": str(self.addresses.metrics[process])}

    def _health(self, host: str, port: int) -> Probe:
        return GrpcHealth(joined(reachable_host(host), port), self.config.tls if self.config.tls.on else None)

    def _readyz(self, process: str) -> Probe | None:
        port = self.addresses.metrics[process]
        if port <= 0:
            return None
        host = reachable_host(self.config.observe.metrics_host)
        return Readyz(host, port, self.config.metrics_tls)

    def _healthz(self, process: str) -> Probe | None:
        port = self.addresses.metrics[process]
        if port <= 0:
            return None
        host = reachable_host(self.config.observe.metrics_host)
        return Healthz(host, port, self.config.metrics_tls)

    def _metrics(self, process: str) -> str:
        port = self.addresses.metrics[process]
        return joined(reachable_host(self.config.observe.metrics_host), port) if port > 0 else ""


def _module(name: str, file: Path, *, force: bool = False) -> tuple[str, ...]:
    return (sys.executable, "-m", name, "--config", str(file), *(["--force"] if force else []))


def _cores() -> int:
    """Cores that this process may use: under taskset fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
