"""Give every process of a run on one machine an address: the configured one, or a free port.

`allocate` reads the sections of the configuration and reports a mistake or a taken port before anything
starts. The functions above it know only sockets and `host:port`. Nothing here knows the processes themselves.
"""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass, field

from fairlead.config import RunConfig
from fairlead.config.base import ServiceSection
from fairlead.config.http import HttpSection
from fairlead.errors import ConfigError

# Below the kernel's range for outgoing connections (32768 and up on Linux), so that none of these can take
# a port while its process is away.
_FIRST_PORT = 20_000
_LAST_PORT = 32_000

LOOPBACK = "127.0.0.1"
SUPERVISOR = "supervisor"
"""Name of the supervisor among the processes with metrics."""


def split_address(address: str, *, field: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[v6]:port`.

    Args:
        address: the address.
        field: the setting that holds it, for errors.

    Raises:
        ConfigError: if it has neither form.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(field, got=address, allowed="host:port")
    return host, int(port)


def is_local_host(host: str) -> bool:
    """Return whether this machine can listen on the host; if not, the service runs on another machine."""
    try:
        with _socket(host) as listener:
            listener.bind((host, 0))
    except OSError:
        return False
    return True


def is_free_port(host: str, port: int) -> bool:
    """Return whether no process listens on the port."""
    try:
        with _socket(host) as listener:
            listener.bind((host, port))
            listener.listen(1)
    except OSError:
        return False
    return True


def reachable_host(host: str) -> str:
    """Return the host under which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)


def join_address(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Ports:
    """Assigns each port of a run to one process."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}

    def fixed(self, process: str, host: str, port: int, *, field: str) -> int:
        """Assign a port of the configuration and return it.

        Raises:
            ConfigError: if it is taken; names the process of this run that has it, if one has.
        """
        if port in self._owners:
            raise ConfigError(
                field,
                got=f"port {port} for {process}, which is already assigned to {self._owners[port]}",
                allowed="a different port for each process",
            )
        if not is_free_port(host, port):
            raise ConfigError(
                field,
                got=f"port {port} for {process}, which is in use on {host}",
                allowed="a free port, or 0 to choose one",
            )
        self._owners[port] = process
        return port

    def free(self, process: str, host: str = LOOPBACK) -> int:
        """Assign any port on which no process listens, and return it.

        Raises:
            ConfigError: if no port is free.
        """
        # Not seeded by the run: two runs started together must not try the same ports in the same order.
        candidates = random.SystemRandom().sample(range(_FIRST_PORT, _LAST_PORT), 1_000)
        for port in candidates:
            if port not in self._owners and is_free_port(host, port):
                self._owners[port] = process
                return port
        raise ConfigError(
            "port", got=f"no free port on {host} for {process}", allowed="a machine with free ports"
        )

    def take(self, process: str, host: str, port: int, *, field: str) -> int:
        """Assign the configured port, or a free one if it is 0, and return it."""
        return self.fixed(process, host, port, field=field) if port else self.free(process, host)


def _socket(host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    # With this option, connections in TIME_WAIT do not block a port; listeners still do.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


MODEL_SERVICES = ("policy", "reward", "reference")
"""Sections of the services that hold a model; each has one process per replica."""


def model_services(config: RunConfig) -> tuple[str, ...]:
    """Return the sections of those that a run has; the trainer may replace the reference service."""
    without = {"reference"} if config.reference.engine == "trainer" else set()
    return tuple(name for name in MODEL_SERVICES if name not in without)


@dataclass(frozen=True, slots=True)
class ServiceAddresses:
    """The addresses of one service."""

    clients: tuple[str, ...]
    """Addresses that clients connect to."""
    binds: tuple[str, ...] = ()
    """Addresses that the replicas on this machine listen on; empty if the service runs elsewhere."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of every process of a run."""

    services: dict[str, ServiceAddresses]
    """By section: policy, reward, reference."""
    weights: ServiceAddresses = ServiceAddresses(())
    """The weights service; empty if replicas read the store's folder."""
    gateway: ServiceAddresses = ServiceAddresses(())
    """The HTTP gateway."""
    feedback: ServiceAddresses = ServiceAddresses(())
    """The feedback service."""
    metrics: dict[str, int] = field(default_factory=dict)
    """Port of /metrics by process; -1 for no port."""
    redis_port: int = 0
    """Port of the embedded Valkey; 0 if a Redis is configured."""


def allocate(config: RunConfig) -> Addresses:
    """Return the addresses of every process of a PPO run.

    Raises:
        ConfigError: if a port is in use or configured twice (names the process), or if the addresses do not
            fit the number of replicas.
    """
    ports = Ports()
    services = {}
    for name in model_services(config):
        section = getattr(config, name)
        services[name] = _service(name, section, ports, replicas=section.replicas)
    names = [f"{name}-{index}" for name, one in services.items() for index in range(len(one.binds))]
    names += [f"rollout-worker-{index}" for index in range(config.rollout_worker.replicas)]
    gateway = ServiceAddresses(config.gateway.addresses)
    if config.gateway.replicas:
        gateway = _service("gateway", config.gateway, ports, replicas=config.gateway.replicas)
    names += [f"gateway-{index}" for index in range(len(gateway.binds))]
    feedback = ServiceAddresses(config.feedback.addresses)
    if config.feedback.replicas:
        feedback = _service("feedback", config.feedback, ports, replicas=config.feedback.replicas)
    names += [f"feedback-{index}" for index in range(len(feedback.binds))]
    weights = ServiceAddresses(config.weights.addresses)
    if config.weights.transport == "grpc":
        weights = _service("weights", config.weights, ports, replicas=1)
    names += [f"weights-{index}" for index in range(len(weights.binds))]
    metrics = _metrics(config, ["trainer", *names, SUPERVISOR], ports)
    redis_port = 0 if config.queue.redis_url else ports.free("valkey")
    return Addresses(services, weights, gateway, feedback, metrics, redis_port)


def allocate_stage(config: RunConfig, process: str) -> dict[str, int]:
    """Return the metrics port of the only process of a stage, and that of the supervisor.

    Raises:
        ConfigError: if a port is in use.
    """
    return _metrics(config, [process, SUPERVISOR], Ports())


def _service(
    name: str, section: ServiceSection | HttpSection, ports: Ports, *, replicas: int
) -> ServiceAddresses:
    """Return the addresses of a service.

    Of several addresses the first are for the replicas that are started, the others for replicas that are
    added later.
    """
    field_name = f"{name}.addresses"
    if any("://" in address for address in section.addresses):
        return ServiceAddresses(section.addresses)
    places = [split_address(address, field=field_name) for address in section.addresses]
    if section.bind:
        if replicas > 1:
            raise ConfigError(f"{name}.bind", got=section.bind, allowed="no value if replicas > 1")
        bind = split_address(section.bind, field=f"{name}.bind")
        places = [bind if bind[1] else (bind[0], places[0][1])]
    elif not any(is_local_host(host) for host, _ in places):
        return ServiceAddresses(section.addresses)
    if len(places) == 1 and places[0][1] == 0:
        places *= replicas
    later = [join_address(reachable_host(host), port) for host, port in places[replicas:]]
    if len(places) < replicas or any(port == 0 for _, port in places[replicas:]):
        raise ConfigError(
            field_name,
            got=section.addresses,
            allowed=f"one address per replica ({replicas}), further ones with a port, or one with port 0",
        )
    key = f"{name}.bind" if section.bind else field_name
    taken = [
        (host, ports.take(f"{name}-{index}", host, port, field=key))
        for index, (host, port) in enumerate(places[:replicas])
    ]
    return ServiceAddresses(
        clients=(*(join_address(reachable_host(host), port) for host, port in taken), *later),
        binds=tuple(join_address(host, port) for host, port in taken),
    )


def _metrics(config: RunConfig, names: list[str], ports: Ports) -> dict[str, int]:
    """Return the metrics port of each process; a configured port is the trainer's, the others follow it."""
    first = config.observe.metrics_port
    host = config.observe.metrics_host
    if first < 0:
        return dict.fromkeys(names, -1)
    if first == 0:
        return {name: ports.free(f"metrics of {name}", host) for name in names}
    return {
        name: ports.fixed(f"metrics of {name}", host, first + offset, field="observe.metrics_port")
        for offset, name in enumerate(names)
    }
