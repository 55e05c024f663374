"""Which address every process of a run on one machine gets: the configured ones, free ones for the rest.

Knows the sections' fields; a mistake or a taken port is told before anything starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.config import RunConfig
from fairlead.config.base import ServerSection
from fairlead.config.serving import GatewaySection
from fairlead.errors import ConfigError
from fairlead.local.ports import Ports, is_local, joined, reachable_host, split

MODEL_SERVICES = ("policy", "reward", "reference")
"""Sections of the services that hold a model; each is a process per replica."""


@dataclass(frozen=True, slots=True)
class ServiceAddresses:
    """One model service."""

    clients: tuple[str, ...]
    """Where clients find it."""
    binds: tuple[str, ...] = ()
    """What each replica on this machine listens on; empty when the service runs elsewhere."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Everything that listens."""

    services: dict[str, ServiceAddresses]
    """By section: policy, reward, reference."""
    weights: ServiceAddresses = ServiceAddresses(())
    """The weights service; nobody listens where replicas read the store's folder."""
    gateway: ServiceAddresses = ServiceAddresses(())
    """The HTTP gateway."""
    metrics: dict[str, int] = field(default_factory=dict)
    """Port of /metrics by process; -1 for none."""
    redis_port: int = 0
    """Port of the embedded Valkey; 0 when a Redis is configured."""


def allocate(config: RunConfig) -> Addresses:
    """Addresses for every process of a PPO run.

    Raises:
        ConfigError: for a port that is taken (names the process), wanted twice, or addresses that do not fit
            the number of replicas.
    """
    ports = Ports()
    services = {}
    for name in MODEL_SERVICES:
        section = getattr(config, name)
        services[name] = _service(name, section, ports, replicas=section.replicas)
    names = [f"{name}-{index}" for name in MODEL_SERVICES for index in range(len(services[name].binds))]
    names += [f"rollout-worker-{index}" for index in range(config.rollout_worker.replicas)]
    gateway = ServiceAddresses(config.gateway.addresses)
    if config.gateway.replicas:
        gateway = _service("gateway", config.gateway, ports, replicas=config.gateway.replicas)
    names += [f"gateway-{index}" for index in range(len(gateway.binds))]
    weights = ServiceAddresses(config.weights.addresses)
    if config.weights.transport == "grpc":
        weights = _service("weights", config.weights, ports, replicas=1)
    names += [f"weights-{index}" for index in range(len(weights.binds))]
    metrics = _metrics(config, ["trainer", *names], ports)
    redis_port = 0 if config.queue.redis_url else ports.free("valkey")
    return Addresses(services, weights, gateway, metrics, redis_port)


def _service(
    name: str, section: ServerSection | GatewaySection, ports: Ports, *, replicas: int
) -> ServiceAddresses:
    """Of several addresses the first are for the replicas that are started, the others for later ones."""
    field_name = f"{name}.addresses"
    if any("://" in address for address in section.addresses):
        return ServiceAddresses(section.addresses)
    places = [split(address, field=field_name) for address in section.addresses]
    if section.bind:
        if replicas > 1:
            raise ConfigError(f"{name}.bind", got=section.bind, allowed="nothing when replicas > 1")
        bind = split(section.bind, field=f"{name}.bind")
        places = [bind if bind[1] else (bind[0], places[0][1])]
    elif not any(is_local(host) for host, _ in places):
        return ServiceAddresses(section.addresses)
    if len(places) == 1 and places[0][1] == 0:
        places *= replicas
    later = [joined(reachable_host(host), port) for host, port in places[replicas:]]
    if len(places) < replicas or any(port == 0 for _, port in places[replicas:]):
        raise ConfigError(
            field_name,
            got=section.addresses,
            allowed=f"one per replica ({replicas}) and more that have a port, or one with port 0",
        )
    key = f"{name}.bind" if section.bind else field_name
    taken = [
        (host, ports.take(f"{name}-{index}", host, port, field=key))
        for index, (host, port) in enumerate(places[:replicas])
    ]
    return ServiceAddresses(
        clients=(*(joined(reachable_host(host), port) for host, port in taken), *later),
        binds=tuple(joined(host, port) for host, port in taken),
    )


def _metrics(config: RunConfig, names: list[str], ports: Ports) -> dict[str, int]:
    """A configured port is the trainer's; the others follow it, in order."""
    first, host = config.observe.metrics_port, config.observe.metrics_host
    if first < 0:
        return dict.fromkeys(names, -1)
    if first == 0:
        return {name: ports.free(f"the metrics of {name}", host) for name in names}
    return {
        name: ports.fixed(f"the metrics of {name}", host, first + offset, field="observe.metrics_port")
        for offset, name in enumerate(names)
    }
