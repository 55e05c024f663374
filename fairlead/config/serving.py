"""The sections of the model services, the rollout workers and the HTTP gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fairlead.config.base import ComputeSection, Section, ServiceSection, TlsSection
from fairlead.config.rewards import FUNCTION_PATTERN, CombinedSection
from fairlead.errors import ConfigError


class ModelServiceSection(ServiceSection, ComputeSection):
    """A model served over gRPC."""

    path: str = ""
    """Local folder or Hugging Face id of the model. Empty: the model that the earlier stage saved in the
    run's folder."""
    replicas: int = Field(default=1, ge=1, le=64)
    """Processes that a run on one machine starts, at the first of `addresses`."""
    max_sequence_tokens: int = Field(default=0, ge=0)
    """Maximum length of a sequence, in tokens; 0 is the limit of the model."""
    max_text_bytes: int = Field(default=1 << 20, ge=1, le=1 << 30)
    """Maximum size of a single text, in bytes of UTF-8."""


class DividedSection(ModelServiceSection):
    """A model that may be divided among several GPUs."""

    tensor_parallel: int = Field(default=1, ge=1, le=64)
    """GPUs among which each replica divides its model, by the tensor-parallel plan that transformers has for
    it, with a process for each; on a CPU, the number of these processes, which share `threads`. It must
    divide the numbers of attention heads and of key-value heads."""


def _all_different(names: tuple[str, ...]) -> tuple[str, ...]:
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"each name once, not {repeated!r} several times")
    return names


Aliases = Annotated[
    tuple[Annotated[str, Field(max_length=512, pattern=r"^[^\s\x00-\x1f\x7f]+$")], ...],
    AfterValidator(_all_different),
]
"""Further names of a model: a path, a hub id or any other text without spaces."""


class BatchingSection(Section):
    """The micro-batcher of a reward or reference service."""

    max_batch_tokens: int = Field(default=8_192, ge=1)
    """Maximum number of tokens in one forward pass, padding included. A longer sequence is computed as a
    batch of one."""
    max_queue_tokens: int = Field(default=1_048_576, ge=1)
    """Maximum number of tokens in the queue, at most half of them in bulk requests. Requests above it are
    refused with a retry delay."""
    max_queue_seconds: float = Field(default=30.0, gt=0, le=86_400)
    """Maximum time that an online request may wait for the model. A request whose expected wait, at the
    measured speed, is longer is refused with a retry delay. For interactive callers, set it to the longest
    wait that they accept."""
    max_items: int = Field(default=1_024, ge=1)
    """Maximum number of sequences in one request."""


VLLM_OPTIONS_SET_BY_FAIRLEAD: Mapping[str, str] = {
    "model": "policy.path",
    "tokenizer": "policy.path",
    "dtype": "policy.dtype",
    "max_model_len": "policy.max_sequence_tokens",
    "max_num_seqs": "policy.max_slots",
    "seed": "the seed of each request",
    "enable_lora": "ppo.lora.rank",
    "max_lora_rank": "ppo.lora.rank",
    "data_parallel_size": "several replicas of the policy service",
    "load_format": "safetensors files, which the trainer publishes",
    "trust_remote_code": "false: code from a model's folder is never run",
} | dict.fromkeys(
    (
        "max_loras",
        "max_cpu_loras",
        "skip_tokenizer_init",
        "generation_config",
        "logprobs_mode",
        "scheduling_policy",
        "worker_extension_cls",
        "enable_log_requests",
        "disable_log_stats",
    ),
    "the policy service itself",
)
"""Options of vLLM that `[policy.vllm]` does not take, and what decides instead."""
VLLM_OPTIONS_NOT_SUPPORTED: Mapping[str, str] = {
    "enable_sleep_mode": "no service puts vLLM to sleep: trainer and service need GPUs of their own, or a "
    "share of one each (gpu_memory_utilization)",
}
"""Options of vLLM that nothing in Fairlead uses, and why."""


VLLM_OPTIONS_OF_SCORERS: Mapping[str, str] = {
    "model": "path",
    "tokenizer": "path",
    "dtype": "dtype",
    "max_model_len": "max_sequence_tokens",
    "tensor_parallel_size": "tensor_parallel",
    "data_parallel_size": "several replicas of the service",
    "load_format": "safetensors files",
    "trust_remote_code": "false: code from a model's folder is never run",
} | dict.fromkeys(
    (
        "runner",
        "convert",
        "pooler_config",
        "skip_tokenizer_init",
        "generation_config",
        "logprobs_mode",
        "worker_extension_cls",
        "enable_lora",
        "enable_log_requests",
        "disable_log_stats",
    ),
    "the service itself",
)
"""Options of vLLM that `[reward.vllm]` and `[reference.vllm]` do not take, and what decides instead."""


def _without(refused: Mapping[str, str]) -> Callable[[dict[str, object]], dict[str, object]]:
    def check(options: dict[str, object]) -> dict[str, object]:
        for name in options:
            if name in VLLM_OPTIONS_NOT_SUPPORTED:
                raise ValueError(f"no option {name!r}: {VLLM_OPTIONS_NOT_SUPPORTED[name]}")
            if name in refused:
                raise ValueError(f"no option {name!r}: set by {refused[name]}")
        return options

    return check


class PolicySection(ModelServiceSection):
    """The service that generates completions with the policy."""

    aliases: Aliases = ()
    """Further names that callers of the gateway may give as the `model` of a chat completion, beside `policy`
    and the id of the model."""
    max_slots: int = Field(default=32, ge=1, le=4_096)
    """Maximum number of sequences that are decoded at the same time."""
    max_samples: int = Field(default=64, ge=1, le=4_096)
    """Maximum number of completions of one request."""
    max_queue_tokens: int = Field(default=1_048_576, ge=1)
    """Maximum number of prompt and completion tokens that wait for a slot."""
    serve_initial: bool = False
    """Serve the model at `path` as version 0-0 instead of waiting for the weight store, for serving without a
    training run."""
    static_cache: Literal["auto", "always", "never"] = "auto"
    """With the engine `transformers`: whether keys and values are at fixed addresses, so that a decoding step
    on a GPU is replayed as a CUDA graph. `auto`: on a GPU, if the architecture supports it."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates the completions: `transformers`, a transformers model in this process, or `vllm`, which
    must be installed; see [docs/vllm.md](vllm.md)."""
    vllm: Annotated[dict[str, object], AfterValidator(_without(VLLM_OPTIONS_SET_BY_FAIRLEAD))] = {}  # noqa: RUF012  # pydantic copies it
    """Options of vLLM, with `engine = "vllm"`, by the names of its `AsyncEngineArgs`, such as
    `tensor_parallel_size = 8`. Those that other settings decide are refused."""


class TritonSection(Section):
    """The Triton or KServe server that computes scores if `reward.engine` is `triton`."""

    addresses: tuple[str, ...] = ("127.0.0.1:8001",)
    """Addresses of its gRPC endpoint, `host:port` or `dns:///name:port`. Requests are balanced over several
    servers that hold the same model."""
    model: str = "reward"
    """Name of the model on the server; `fairlead export-triton` writes a model."""
    version: str = ""
    """Version of the model on the server. Empty: the server chooses."""
    sends: Literal["tokens", "sentences"] = "tokens"
    """What is sent to the server. `tokens`: token ids, made with the tokenizer of `reward.path`, exactly as
    for a local model. `sentences`: prompt and response as one text, which the server tokenizes; the reward
    service then needs no tokenizer and no torch, and refuses conversations and token ids."""
    timeout_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """Deadline of one call to the server, including retries. The caller's own deadline applies too."""
    max_attempts: int = Field(default=4, ge=1, le=100)
    """Maximum number of attempts of one call, including the first."""
    tls: TlsSection = TlsSection()
    """TLS for calls to the server, in place of `[tls]`. The server is never sent an API key."""


class RewardSection(DividedSection):
    """The service that scores responses with the reward model."""

    watch: bool = False
    """Treat `path` as a local folder that changes: it holds one folder per version, or a model that is
    replaced. A newer version is loaded in the background, tried, and then replaces the current one. The
    newest version is the target of the link `latest` in the folder, or else the last folder by name."""
    watch_seconds: float = Field(default=5.0, gt=0, le=86_400)
    """With `watch`: time between checks of the folder. A version is loaded when two checks find the same
    files, so it must be longer than the longest pause of the program that writes them."""
    allow_reload: Literal["auto", "always", "never"] = "auto"
    """Whether callers may replace the model with `fairlead reload`. `auto`: callers with an API key of scope
    `admin`, if API keys are required. `always`: if no API keys are required, also everybody who can reach the
    port."""
    model_name: str = Field(default="reward", min_length=1, max_length=128)
    """Name of the model in the Open Inference Protocol."""
    aliases: Aliases = ()
    """Further names of the model in requests, beside `reward`, its id and `model_name`, for clients with a
    name of their own, such as the path of the model on their machine. Set it for the gateway and the service
    alike."""
    engine: Literal["local", "triton", "vllm", "function", "combined"] = "local"
    """What computes the scores: `local`, transformers in processes of the service; `triton`, a Triton server;
    `vllm`, which must be installed and serves the model by itself, see [docs/vllm.md](vllm.md); `function`, a
    Python function of yours, or `combined`, several terms, see [docs/rewards.md](rewards.md)."""
    function: str = Field(default="", pattern=FUNCTION_PATTERN)
    """With `engine = "function"`: the function as `file.py:name`, relative to the folder of the run's file,
    or `module:name`. It is called with a list of prompts and a list of responses, and returns a number for
    each; it may be async."""
    function_timeout_seconds: float = Field(default=30.0, gt=0, le=86_400)
    """Time limit of one call of the function. A call that takes longer is ended, and repeated for each
    response by itself."""
    combined: CombinedSection = CombinedSection()
    """The terms of a combined reward."""
    vllm: Annotated[dict[str, object], AfterValidator(_without(VLLM_OPTIONS_OF_SCORERS))] = {}  # noqa: RUF012
    """Options of vLLM, with `engine = "vllm"`, by the names of its `AsyncEngineArgs`. Those that other
    settings decide are refused."""
    triton: TritonSection = TritonSection()
    """The Triton server."""
    batching: BatchingSection = BatchingSection()
    """Limits of batches and of the queue."""
    attention: Literal["auto", "segments", "varlen", "padded"] = "auto"
    """Attention of a batch: `segments` uses no padding and computes a shared beginning once; `varlen` uses no
    padding and suits GPUs; `padded` pads all sequences to the longest. `auto`: `segments` on a CPU and
    `varlen` on a GPU, if the architecture of the model supports it."""
    share_prompts: bool = True
    """With `segments`: compute a beginning that several sequences of a batch share only once."""
    prefix_cache_bytes: int = Field(default=256 << 20, ge=0)
    """With `share_prompts`: memory for the keys and values of prompts, reused for later responses to them; 0
    disables the cache."""
    pack_weights: bool = True
    """On a CPU in float32: run linear layers through oneDNN, with weights repacked for it at load time.
    Results then differ by rounding from those of PyTorch's own layers."""
    compile: bool = False
    """Compile the model with torch.compile at load time, which takes a while and needs a C++ compiler.
    Attention is then `padded`."""
    append_eos: bool = True
    """Score every answer at the end that the model was trained to read: append that end to a response or
    whole text without one, and to the answers of PPO. With false, text and token ids are scored unchanged."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """Whether a prompt that is sent as plain text is formatted as a user's turn in the chat template of the
    model. `auto`: if the model has a template and was not trained by Fairlead. Conversations always use the
    template."""
    calibration_temperature: float = Field(default=0.0, ge=0)
    """Scores divided by it are calibrated: σ(difference) is the probability that a labeler prefers one
    response to the other. 0 uses the value that `fairlead reward-model` saved with the model."""
    ensemble: Literal["mean", "min", "mean_minus_std"] = "mean"
    """How the scores of the members of an ensemble are combined. Has no effect for a single model."""
    ensemble_std_weight: float = Field(default=1.0, ge=0)
    """λ of `mean_minus_std`: mean − λ · standard deviation over the members."""

    @property
    def is_model(self) -> bool:
        """Whether the reward is one model."""
        return self.engine not in ("function", "combined")

    def check_engine(self) -> None:
        """Check the settings that an engine cannot have. A file for several engines may have them, so the
        service and the start of a run check it, not the file's reader.

        Raises:
            ConfigError: for the first such setting.
        """
        because = f"because reward.engine is {self.engine!r}"
        if self.watch and self.engine not in ("local", "triton"):  # a Triton watches its own models
            raise ConfigError("reward.watch", got=True, allowed=f"false, {because}")
        if self.tensor_parallel > 1 and self.engine not in ("local", "vllm"):
            raise ConfigError("reward.tensor_parallel", got=self.tensor_parallel, allowed=f"1, {because}")


class ReferenceSection(DividedSection):
    """The service that computes log-probs with the frozen reference model."""

    engine: Literal["local", "vllm", "trainer"] = "local"
    """What computes the log-probs: `local`, transformers in processes of the service; `vllm`, which must be
    installed, see [docs/vllm.md](vllm.md); or, with `[ppo.lora]`, `trainer`: the trainer itself, with its
    policy's adapters switched off. There is then no reference service, and evaluations measure no KL."""
    vllm: Annotated[dict[str, object], AfterValidator(_without(VLLM_OPTIONS_OF_SCORERS))] = {}  # noqa: RUF012
    """Options of vLLM, with `engine = "vllm"`, by the names of its `AsyncEngineArgs`. Those that other
    settings decide are refused."""
    batching: BatchingSection = BatchingSection()
    """Limits of batches and of the queue."""
    pack_weights: bool = True
    """On a CPU in float32: run linear layers through oneDNN, with weights repacked for it at load time.
    Results then differ by rounding from those of PyTorch's own layers."""


class RolloutWorkerSection(Section):
    """The processes that claim tasks, call the model services and return rollouts."""

    replicas: int = Field(default=1, ge=0, le=1_024)
    """Processes that a run on one machine starts."""
    max_in_flight: int = Field(default=64, ge=1, le=4_096)
    """Maximum number of answers that one worker works on at the same time; a task counts as
    `ppo.num_samples` of them, and one task is always allowed."""
    drain_seconds: float = Field(default=20.0, ge=0, le=3_600)
    """Time that tasks in progress have to finish after SIGTERM; other workers claim the rest."""
    hedge_factor: float = Field(default=4.0, ge=0, le=1_000)
    """A call that takes longer than this many times the usual time, and longer than a second, is also sent to
    another replica, and the first response is used. It limits the effect of slow or hung replicas. 0 disables
    it."""
    retry_attempts: int = Field(default=6, ge=1, le=100)
    """Maximum number of attempts of one call within its deadline; then the worker gives the task back to the
    queue."""
