"""The sections of the model services, the rollout workers and the HTTP gateway."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.base import ComputeSection, Section, ServiceSection, TlsSection


class ModelServiceSection(ServiceSection, ComputeSection):
    """A model served over gRPC."""

    path: str = ""
    """Local folder or hub id. Empty: what the earlier stage left in the run's folder."""
    replicas: int = Field(default=1, ge=1, le=64)
    """Processes that a run on one machine starts; of more `addresses` than replicas, it starts the first."""
    max_sequence_tokens: int = Field(default=0, ge=0)
    """Longest sequence accepted, in tokens; 0 is the model's own limit."""
    max_text_bytes: int = Field(default=1 << 20, ge=1, le=1 << 30)
    """Largest single text accepted, in bytes of UTF-8."""


class BatchingSection(Section):
    """The micro-batcher of the reward and reference services."""

    max_batch_tokens: int = Field(default=8_192, ge=1)
    """Tokens, padding included, of one forward pass. A longer sequence runs alone."""
    max_queue_tokens: int = Field(default=1_048_576, ge=1)
    """Tokens waiting at most, half of them of bulk requests; beyond it requests are refused with a retry
    delay."""
    max_queue_seconds: float = Field(default=30.0, gt=0, le=86_400)
    """How long an online request may have to wait for the model, by the speed measured; it is refused with a
    retry delay if it would wait longer. Where answers are awaited by people, set it to what they bear."""
    max_items: int = Field(default=1_024, ge=1)
    """Sequences of one request at most."""


class PolicySection(ModelServiceSection):
    """Generation from the policy."""

    max_slots: int = Field(default=32, ge=1, le=4_096)
    """Sequences decoded at the same time."""
    max_samples: int = Field(default=64, ge=1, le=4_096)
    """Completions of one request at most."""
    max_queue_tokens: int = Field(default=1_048_576, ge=1)
    """Prompt and answer tokens waiting for a slot at most."""
    serve_initial: bool = False
    """Serve the model at `path` as version 0-0 without waiting for the weight store (no training run)."""


class TritonSection(Section):
    """The Triton or KServe server that scores where `reward.engine` is `triton`."""

    addresses: tuple[str, ...] = ("127.0.0.1:8001",)
    """Its gRPC endpoint, `host:port` or `dns:///name:port`; several that hold the same model are balanced."""
    model: str = "reward"
    """The model's name there; `fairlead export-triton` writes one."""
    version: str = ""
    """The model's version there. Empty leaves the choice to the server."""
    sends: Literal["tokens", "sentences"] = "tokens"
    """`tokens`: texts become ids here, by the tokenizer of `reward.path`, just as Fairlead's own engine reads
    them. `sentences`: prompt and response leave as one text, which the server tokenizes; conversations and
    ids are then refused, and neither a tokenizer nor torch is needed here."""
    timeout_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """Deadline of one call to it, all its tries together; the caller's own deadline may come first."""
    max_attempts: int = Field(default=4, ge=1, le=100)
    """Tries of one call, the first included."""
    tls: TlsSection = TlsSection()
    """Certificates towards it. It is shown no API key of ours."""
    health_seconds: float = Field(default=1.0, gt=0, le=3_600)
    """How often it is asked whether it is ready; the reward service is ready when it is."""


class RewardSection(ModelServiceSection):
    """Scoring by the reward model."""

    watch: bool = False
    """`path` is a local folder of versions, a folder each, or a model that is replaced: a newer one is loaded
    in the background, tried, and takes over. Newest is what `latest` in it leads to, else the last by
    name."""
    watch_seconds: float = Field(default=5.0, gt=0, le=86_400)
    """How often that folder is looked at. A version is taken when two looks find the same files in it."""
    allow_reload: Literal["auto", "always", "never"] = "auto"
    """Whether callers may replace the model by `fairlead reload`. `auto`: where API keys are asked for, with
    the scope `admin`. `always` lets everybody who reaches the port where there are no keys."""
    model_name: str = Field(default="reward", min_length=1, max_length=128)
    """The model's name in the Open Inference Protocol."""
    engine: Literal["local", "triton"] = "local"
    """What scores: a model in this process, or a Triton server."""
    triton: TritonSection = TritonSection()
    """The Triton server."""
    batching: BatchingSection = BatchingSection()
    """How requests are packed."""
    attention: Literal["auto", "segments", "padded"] = "auto"
    """`segments` computes no padding and a shared beginning once, `padded` pads the sequences of a batch to
    the longest. `auto`: segments on a CPU where the model's architecture allows it."""
    share_prompts: bool = True
    """With `segments`: what sequences of a batch have in common at their beginning is computed once."""
    prefix_cache_bytes: int = Field(default=256 << 20, ge=0)
    """With `share_prompts`: memory for keys and values of prompts that were seen, for later answers to them;
    0 keeps none."""
    pack_weights: bool = True
    """On a CPU in float32: linear layers through oneDNN, their weights laid out for it when loaded."""
    compile: bool = False
    """Compile the model with torch.compile when it is loaded, which takes a while and a C++ compiler;
    attention is `padded` then."""
    append_eos: bool = True
    """Put the tokenizer's EOS behind a response that comes as text; ids are scored as they come."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """Whether a prompt that comes as plain text is shown to the model as a user's turn in its chat template.
    `auto`: where it has one and was not trained by Fairlead. Conversations always go through the template."""
    calibration_temperature: float = Field(default=0.0, ge=0)
    """Scores divided by it are calibrated: σ(difference) is the probability that a labeler prefers one answer
    to another. 0 takes what `fairlead reward-model` has stored with the model."""
    ensemble: Literal["mean", "min", "mean_minus_std"] = "mean"
    """What becomes of the scores of an ensemble's members; a single model is served as it is."""
    ensemble_std_weight: float = Field(default=1.0, ge=0)
    """λ of `mean_minus_std`: mean − λ · standard deviation among the members."""


class ReferenceSection(ModelServiceSection):
    """Log-probs under the frozen reference."""

    batching: BatchingSection = BatchingSection()
    """How requests are packed."""
    pack_weights: bool = True
    """On a CPU in float32: linear layers through oneDNN, their weights laid out for it when loaded."""


class RolloutWorkerSection(Section):
    """Claims tasks, calls the services, hands back rollouts."""

    replicas: int = Field(default=1, ge=0, le=1_024)
    """Processes that a run on one machine starts."""
    max_in_flight: int = Field(default=64, ge=1, le=4_096)
    """Tasks that one worker has claimed at the same time."""
    drain_seconds: float = Field(default=20.0, ge=0, le=3_600)
    """After SIGTERM: how long tasks in flight may take; the rest is left to the peers."""
    hedge_factor: float = Field(default=4.0, ge=0, le=1_000)
    """A call that has taken so many times the usual, and a second, is sent to another replica as well; the
    first answer counts. So a replica that hangs or is slow is not waited for. 0: never."""
    retry_attempts: int = Field(default=6, ge=1, le=100)
    """Tries of one call within its deadline before the task is given back."""


class GatewaySection(Section):
    """HTTP in, gRPC out. It asks the services at `reward.addresses` and `policy.addresses`; an address with
    port 0 means that there is none.
    """

    replicas: int = Field(default=0, ge=0, le=64)
    """Processes that a run on one machine starts."""
    addresses: tuple[str, ...] = ("127.0.0.1:0",)
    """Where callers find it, `host:port`. On one machine port 0 means any free one."""
    bind: str = ""
    """Address a replica listens on. Empty: the first of `addresses`."""
    tls: Literal["full", "server", "off"] = "full"
    """What of `[tls]` it shows its callers: `full` all of it, `server` its certificate without asking for
    theirs, `off` plain HTTP, behind a proxy that ends TLS. To the services it speaks as `[tls]` says."""
    timeout_seconds: float = Field(default=120.0, gt=0, le=86_400)
    """Deadline of a request, reading it included; a caller may ask for less by `X-Request-Timeout`."""
    retry_attempts: int = Field(default=3, ge=1, le=100)
    """Tries of one call to a service within the deadline before the caller is told; 1 hands a refusal on at
    once, more wait as long as the service asks for."""
    max_body_bytes: int = Field(default=16 << 20, ge=1 << 10, le=1 << 30)
    """Largest body accepted."""
    max_in_flight: int = Field(default=1_024, ge=1, le=1_000_000)
    """Requests at the same time; beyond it they are refused with a retry delay."""
    keep_alive_seconds: float = Field(default=65.0, gt=0, le=3_600)
    """An idle connection is closed after so long: later than load balancers do, which is 60 s for most."""
    drain_seconds: float | None = Field(default=None, ge=0, le=3_600)
    """Deprecated: overrides `server.drain_seconds` for the gateway."""
    chat_max_tokens: int = Field(default=1_024, ge=1, le=131_072)
    """Tokens of an answer of /v1/chat/completions at most, where the caller does not say."""
    chat_log: str = ""
    """File that every exchange of /v1/chat/completions is appended to, as JSON lines that `fairlead score`
    and `data.prompts` read; empty: none. Replicas need a file each: `{pid}` in it is the process's id."""
    chat_log_bytes: int = Field(default=64 << 20, ge=1 << 10)
    """Size at which the chat log is put aside as `<file>.1`, `.2` …"""
    chat_log_files: int = Field(default=10, ge=1, le=10_000)
    """Files put aside that are kept."""
