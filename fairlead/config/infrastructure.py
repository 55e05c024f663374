"""The sections of what processes run on: Redis, weight store, API keys, logs and metrics, supervisor."""

from __future__ import annotations

import re
import urllib.parse
from typing import Literal

from pydantic import ConfigDict, Field, SecretStr, field_validator

from fairlead.config.base import DType, Section, ServiceSection

REDIS_URLS = (
    "redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix://PATH; percent-encode special characters of a "
    "password in it, or set redis_password instead"
)
"""Redis URLs that are accepted, for messages."""


def redis_url_without_secrets(url: str) -> str:
    """Return a Redis URL without its password, and with only the `db` of its options, for files and messages.

    Raises:
        ValueError: if it is not a valid Redis URL; the message does not quote it.
    """
    invalid = ValueError(REDIS_URLS)
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise invalid from None
    # An unencoded `/`, `?` or `#` in a password moves the rest of the URL into another part.
    rest = f"{parts.path}?{parts.query}"
    if "#" in url or "@" in rest or parts.scheme not in ("redis", "rediss", "unix"):
        raise invalid
    if parts.scheme == "unix" and not parts.path.strip("/"):
        raise invalid
    # Clients would connect to database 0, or to 12 for `/1/2`.
    if parts.scheme != "unix" and not re.fullmatch(r"/?([0-9]{1,9}/?)?", parts.path):
        raise invalid
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    user = f"{parts.username}@" if parts.username else ""
    options = [(key, value) for key, value in urllib.parse.parse_qsl(parts.query) if key == "db"]
    netloc = f"{user}{host}" + (f":{port}" if port is not None else "")
    shown = f"{parts.scheme}://{netloc}{parts.path}"
    return f"{shown}?{urllib.parse.urlencode(options)}" if options else shown


class RedisSection(Section):
    """A connection to Redis."""

    model_config = ConfigDict(hide_input_in_errors=True)

    redis_url: str = ""
    """URL of the server: `redis://`, `rediss://` or `unix://`."""
    redis_password: SecretStr | None = None
    """Password of the server, kept out of the URL and of logs. Set it in the environment."""
    redis_tls_ca: str = ""
    """Trusted certificate authorities for `rediss://`, a PEM file. Empty: those of the system."""
    redis_tls_certificate: str = ""
    """Client certificate for a server that requires one, a PEM file."""
    redis_tls_key: str = ""
    """Private key of `redis_tls_certificate`, a PEM file."""

    @field_validator("redis_url")
    @classmethod
    def _url_is_valid(cls, url: str) -> str:
        if url:
            redis_url_without_secrets(url)
        return url


class QueueSection(RedisSection):
    """The queue of tasks and rollouts in Redis."""

    redis_url: str = ""
    """URL of the server: `redis://`, `rediss://` or `unix://`. Empty: a run on one machine starts its own
    Valkey."""
    lease_seconds: float = Field(default=3.0, ge=0.1, le=600)
    """A task whose worker has not renewed its lease for this time is claimed by another worker."""
    max_failures: int = Field(default=3, ge=1, le=100)
    """Number of failures that workers report for a task before it becomes a dead letter."""
    max_deliveries: int = Field(default=50, ge=1, le=10_000)
    """Number of deliveries of a task, including those whose lease expired, before it becomes a dead
    letter."""
    stall_seconds: float = Field(default=30.0, gt=0, le=86_400)
    """Time without a rollout after which the trainer reconciles Redis with its ledger."""
    give_up_seconds: float = Field(default=600.0, gt=0, le=604_800)
    """Time without a rollout after which the trainer stops and names the tasks that it waits for."""


class WeightsSection(ServiceSection):
    """The store of policy weights: immutable versions with checksums in a folder that the trainer writes.
    Policy replicas read the folder, or fetch versions from the weights service and from one another.
    """

    transport: Literal["filesystem", "grpc"] = "filesystem"
    """How policy replicas get versions: `filesystem` reads `path`, which they must be able to read; `grpc`
    fetches from the weights service at `addresses`."""
    path: str = ""
    """Folder of the store. Empty: `weights/` in the run's folder."""
    keep: int = Field(default=3, ge=2, le=1_000)
    """Number of newest versions to keep."""
    dtype: DType = "float32"
    """Data type of the tensors of a whole model in a version. `bfloat16` halves what the trainer writes and
    every replica reads; a replica computes in `policy.dtype` either way. Adapters are always float32."""
    cache: str = ""
    """With `grpc`: folder for the versions that a replica has fetched; replicas cannot share it. Empty: a
    folder in `weight_caches/` of the run's folder, named after the replica's port."""
    chunk_bytes: int = Field(default=256 << 10, ge=1 << 10, le=3 << 20)
    """Size of one gRPC message with bytes of a shard. With `max_send_bytes_per_second`, smaller messages are
    sent more evenly."""
    relay_address: str = ""
    """Address, `host:port`, at which other replicas fetch from this one. Empty: the address that it listens
    on. A replica that listens on all interfaces, as in a pod, then does not relay."""
    relay_fan_out: int = Field(default=1, ge=1, le=64)
    """Number of replicas that fetch from the weights service, or from one replica, at the same time. 1 forms
    a chain, the fastest if all have the same bandwidth; larger values suffer less from one slow replica."""
    direct: bool = True
    """With `grpc`: send the bytes over a separate unencrypted TCP connection, which is several times faster.
    Has no effect with `[tls]`; if the connection fails, bytes are sent over gRPC."""
    direct_port: int = Field(default=0, ge=0, le=65_535)
    """Port of the weights service, and of each replica that relays, for `direct`; 0 is any free port."""
    stall_seconds: float = Field(default=10.0, ge=0.5, le=600)
    """A source that sends nothing for this time is replaced by another one. It must be longer than the
    longest pause of the storage at `path`."""
    max_send_bytes_per_second: int = Field(default=0, ge=0)
    """Maximum send rate of the weights service, and of each replica that relays, in bytes per second; 0 is no
    limit."""


class KeysSection(RedisSection):
    """API keys of callers. Without a file of keys everybody may call, which suits a single machine."""

    file: str = ""
    """File of keys, written by `fairlead keys` or mounted from a Secret; it is read again when it changes.
    Empty: no API keys are required."""
    redis_url: str = ""
    """URL of the Redis that counts rates and quotas over all replicas. Empty: every process counts its own
    requests."""
    allow_insecure: bool = False
    """Allow processes of this run to send their API key, FAIRLEAD_API_KEY, unencrypted to other machines.
    Only for a network that you trust; not needed with `[tls]`."""


AccessLog = Literal["auto", "off", "plain", "texts"]


class ObserveSection(Section):
    """Logs, metrics and samples."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Minimum level of log messages."""
    log_style: Literal["auto", "json", "human"] = "auto"
    """Format of log messages; `auto` is readable text on a terminal and JSON lines elsewhere."""
    access_log: AccessLog = "auto"
    """Whether to log one line per call. `plain`: method, status, id of the API key, request id, tokens and
    seconds. `texts`: also the beginning of the request's text, which may be private. `auto`: `plain` in the
    gateway and `off` in the services, which would log the same calls again."""
    metrics_host: str = "127.0.0.1"
    """Address that /metrics and /readyz listen on; 0.0.0.0 in a container."""
    metrics_port: int = Field(default=0, ge=-1, le=65_535)
    """Port of /metrics and /readyz; 0 is any free port, -1 disables them."""
    stall_seconds: float = Field(default=1_800.0, ge=0, le=604_800)
    """A PPO or service process that waits longer than this for one call, forward pass or phase logs what it
    waits for and ends with exit code 4, to be restarted. 0 disables it. Waiting for rollouts is limited by
    `queue.give_up_seconds` instead."""
    metrics_tls: bool = False
    """Serve /metrics and /readyz over TLS as configured in `[tls]`."""
    linger_seconds: float = Field(default=0.0, ge=0, le=3_600)
    """Time for which a stage that has ended, and then the supervisor of a run on one machine, still serve
    their metrics, so that Prometheus sees the end: at least two scrape intervals. On a cluster it is 35; a
    signal ends it early."""
    otlp_endpoint: str = ""
    """Address of a backend for traces that accepts OTLP over HTTP, such as `http://127.0.0.1:4318`; see
    [docs/traces.md](traces.md). Empty: no traces, unless the environment has OTEL_EXPORTER_OTLP_ENDPOINT.
    Needs the extra `otel`."""
    trace_one_in: int = Field(default=16, ge=1, le=1_000_000_000)
    """One task of this many is traced, from its dispatch to the gradient step, and one call of this many that
    comes without a trace. Updates are always traced."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Further tools that get the figures of every step: `wandb` (Weights & Biases) and `mlflow`, each with
    the extra of its name. Keys and servers are set in their own environment variables; see
    [docs/tracking.md](tracking.md)."""
    tracker_project: str = Field(default="fairlead", min_length=1, max_length=128)
    """Project of W&B, and experiment of MLflow, that the stages of the run appear in."""
    rollout_samples: int = Field(default=32, ge=0, le=100_000)
    """Number of answers of every update of PPO that are saved in samples_ppo.jsonl, the first ones of the
    batch."""

    @field_validator("otlp_endpoint")
    @classmethod
    def _endpoint_is_valid(cls, url: str) -> str:
        allowed = "http://HOST:PORT or https://HOST:PORT; credentials in OTEL_EXPORTER_OTLP_HEADERS"
        try:
            parts = urllib.parse.urlsplit(url)
            is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            raise ValueError(allowed) from None
        if url and (not is_valid or parts.username or parts.query or parts.fragment):
            raise ValueError(allowed)
        return url


class LocalSection(Section):
    """The supervisor of a run on one machine."""

    ready_seconds: float = Field(default=600.0, gt=0, le=3_600)
    """Time that a process has to become ready; a slower start counts as a failure."""
    hung_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """A process that was ready and does not respond to probes for this time is killed and restarted."""
    drain_seconds: float = Field(default=30.0, gt=0, le=3_600)
    """Time that processes have to end after SIGTERM, before SIGKILL."""
    max_restarts: int = Field(default=20, ge=0, le=100_000)
    """Maximum number of restarts of one process without progress in between; then the run stops with the
    reason. Progress of the trainer is a checkpoint of a later update; of another process, a minute of good
    health."""
    backoff_seconds: float = Field(default=0.5, gt=0, le=60)
    """Delay before the first restart. It doubles with each restart without progress in between, up to 30 s. A
    longer delay keeps a crashing process down while you look for the cause."""
    gpus: dict[str, str] = Field(default={})
    """GPUs of single processes, as in `CUDA_VISIBLE_DEVICES`: `{ trainer = "0,1", "policy-0" = "2" }`. Empty:
    one for each rank of the trainer, and the model services share the others."""


class RanksSection(Section):
    """Several processes that train one model together, each with a share of it; see
    [docs/architecture.md](architecture.md).
    """

    per_node: int = Field(default=1, ge=1, le=1_024)
    """Ranks on each machine or pod, one for each of its GPUs."""
    nodes: int = Field(default=1, ge=1, le=65_536)
    """Number of machines or pods with `per_node` ranks each; a run on one machine has 1."""
    address: str = ""
    """Address, `host:port`, at which rank 0 waits for the others; needed if `nodes` is above 1. On one
    machine a free port is used."""
    tensor_parallel: int = Field(default=1, ge=1, le=64)
    """Number of consecutive ranks that divide the matrices of each layer among them (tensor parallelism, by
    transformers' plan for the architecture) and read the same sequences. It must divide the number of ranks
    and of attention heads. They exchange data in every layer, so they should be on one machine. 1: layers are
    divided by FSDP only."""
    join_seconds: float = Field(default=600.0, gt=0, le=604_800)
    """Time that the ranks wait for one another at the start."""
    lost_seconds: float = Field(default=30.0, ge=1, le=3_600)
    """A rank from which no heartbeat arrives for this time is lost: all ranks end and are restarted from the
    last checkpoint. The end of a rank on the same machine is noticed at once."""
    stall_seconds: float = Field(default=300.0, ge=1, le=86_400)
    """A rank that has begun an update, a checkpoint or a version and makes no progress for this time hangs:
    all ranks end and are restarted from the last checkpoint. It must be longer than one micro-batch, and than
    writing one file."""
