"""The sections of what processes run on: Redis, weight store, API keys, logs and metrics, supervisor."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from fairlead.config.base import Section, ServiceSection


class RedisSection(Section):
    """A connection to Redis."""

    redis_url: str = ""
    """URL of the server, `redis://`, `rediss://` or `unix://`."""
    redis_password: SecretStr | None = None
    """Password, kept out of the URL and of logs. Set it by the environment."""
    redis_tls_ca: str = ""
    """Certificate authorities trusted for `rediss://`, a PEM file. Empty: those of the system."""
    redis_tls_certificate: str = ""
    """Client certificate for a server that asks for one, a PEM file; its key is `redis_tls_key`."""
    redis_tls_key: str = ""
    """Private key of `redis_tls_certificate`, a PEM file."""


class QueueSection(RedisSection):
    """The queue of prompts and rollouts in Redis, and how long the trainer waits for it."""

    redis_url: str = ""
    """URL of the server, `redis://` or `rediss://`. Empty: a run on one machine starts its own Valkey."""
    lease_seconds: float = Field(default=3.0, ge=0.1, le=600)
    """A task whose worker did not renew its claim for so long goes to a peer."""
    max_failures: int = Field(default=3, ge=1, le=100)
    """Explicit failures of a task before it is dead-lettered."""
    max_deliveries: int = Field(default=50, ge=1, le=10_000)
    """Deliveries of one sending, leases that ran out included, before it is dead-lettered."""
    stall_seconds: float = Field(default=30.0, gt=0, le=86_400)
    """The trainer reconciles Redis with its ledger when nothing arrived for so long."""
    give_up_seconds: float = Field(default=600.0, gt=0, le=604_800)
    """The trainer stops, naming what it waits for, when nothing arrived for so long."""


class WeightsSection(ServiceSection):
    """Immutable, checksummed versions in a folder that the trainer writes; replicas see the folder too, or
    fetch from the weights service and from one another.
    """

    transport: Literal["filesystem", "grpc"] = "filesystem"
    """How policy replicas get versions: `filesystem` reads `path`, which they must see; `grpc` asks the
    weights service at `addresses`."""
    path: str = ""
    """Folder of the store. Empty: `weights/` in the run's folder."""
    keep: int = Field(default=3, ge=2, le=1_000)
    """Newest versions kept."""
    cache: str = ""
    """`grpc`: folder in which a replica keeps what it fetched, its own alone. Empty: one below
    `weight_caches/` in the run's folder, named after its port."""
    relay_address: str = ""
    """`host:port` where peers fetch from this replica. Empty: where it listens, unless that is every
    interface, as in a pod: then it does not relay."""
    relay_fan_out: int = Field(default=1, ge=1, le=64)
    """How many fetch from the origin, and from each replica, at the same time. 1 makes a chain, which takes
    least time where senders have the same bandwidth; more suffer less from one slow replica."""
    direct: bool = True
    """`grpc`: bytes come over a plain TCP connection beside it, where sender and receiver want that: several
    times the rate. Never under `[tls]`; where the connection cannot be made, they come over gRPC."""
    direct_port: int = Field(default=0, ge=0, le=65_535)
    """Port of the weights service, and of each replica that relays, for `direct`. 0: any that is free."""
    lease_seconds: float = Field(default=5.0, ge=0.5, le=600)
    """A replica that was not heard of for so long loses its place at a source, and is none itself."""
    stall_seconds: float = Field(default=10.0, ge=0.5, le=600)
    """A source that sends nothing for so long is left for another."""
    give_up_seconds: float = Field(default=60.0, ge=1, le=86_400)
    """A fetch that gets nothing from any source for so long fails; the replica tries again later."""
    max_send_bytes_per_second: int = Field(default=0, ge=0)
    """What the weights service, and each replica that relays, sends at most; 0 is no limit."""


class KeysSection(RedisSection):
    """Who may call the services. Without a file anybody may, as is right on a machine of one's own."""

    file: str = ""
    """File of keys as `fairlead keys` writes it, or a mounted Secret; read again when it changes. Empty: no
    keys are asked for."""
    redis_url: str = ""
    """URL of the Redis in which all replicas count rates and quotas together. Empty: every process counts for
    itself."""
    reload_seconds: float = Field(default=1.0, ge=0, le=3_600)
    """Shortest time between two checks of the file for changes."""
    allow_insecure: bool = False
    """Processes of this run show their key, FAIRLEAD_API_KEY, to other machines in plain text, too. Only on a
    network that you trust; with `[tls]` it is not needed."""


AccessLog = Literal["auto", "off", "plain", "texts"]


class ObserveSection(Section):
    """What a process says about itself."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level that is logged."""
    log_style: Literal["auto", "json", "human"] = "auto"
    """`auto`: readable on a terminal, JSON lines elsewhere."""
    access_log: AccessLog = "auto"
    """One line for every call: `plain` has method, status, id of the key, request id, tokens and seconds,
    `texts` also the beginning of what was asked, which may be private. `auto`: `plain` at the gateway, `off`
    at the services, which would say the same again."""
    metrics_host: str = "127.0.0.1"
    """Address that /metrics and /readyz listen on; 0.0.0.0 in a container."""
    metrics_port: int = Field(default=0, ge=-1, le=65_535)
    """Port of /metrics and /readyz; 0 is any free one, -1 none."""
    stall_seconds: float = Field(default=1_800.0, ge=0, le=604_800)
    """A process of PPO or of serving that waits so long for one call, forward pass or phase says for what and
    ends with exit code 4, to be started again; 0: never. The wait for rollouts: `queue.give_up_seconds`."""
    metrics_tls: bool = False
    """That port speaks TLS as `[tls]` says, instead of plain text."""
    tensorboard: bool = True
    """Write TensorBoard event files beside metrics.jsonl."""
    rollout_samples: int = Field(default=32, ge=0, le=100_000)
    """Answers of every update of PPO that are kept in samples_ppo.jsonl, the first of the batch."""


class LocalSection(Section):
    """The supervisor of a run on one machine."""

    ready_seconds: float = Field(default=120.0, gt=0, le=3_600)
    """A process that is not ready after so long is a failure."""
    hung_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """A process that was ready and answers no probe for so long is killed and started again."""
    drain_seconds: float = Field(default=30.0, gt=0, le=3_600)
    """How long processes may take to end after SIGTERM, then SIGKILL."""
    max_restarts: int = Field(default=20, ge=0, le=100_000)
    """Restarts of one process, without a minute of health between, before the run stops with the reason."""
    backoff_seconds: float = Field(default=0.5, gt=0, le=60)
    """Delay before the first restart; doubles up to 30 s, and falls back after a minute of health."""
