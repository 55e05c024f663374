"""`[reward]`: the service that scores."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.compute import BatchingSection, ModelServiceSection
from fairlead.config.section import Section
from fairlead.config.tls import TlsSection


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
    stream_max_requests: int = Field(default=256, ge=1, le=65_536)
    """Requests of one stream that are in work at a time, at most `max_message_bytes` together; until answers
    are taken no more are read."""
