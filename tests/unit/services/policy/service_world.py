"""A policy service with a tiny model on a real server in this process, and messages for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grpc import aio
from prometheus_client import CollectorRegistry

from fairlead import metrics
from fairlead.config.base import ComputeSection
from fairlead.config.infrastructure import KeysSection, ObserveSection
from fairlead.config.serving import PolicySection
from fairlead.nn.loading import load_causal_lm, load_tokenizer, tokenizer_fingerprint
from fairlead.types import ModelInfo, WeightVersion
from fairlead.v1 import policy_service_pb2 as pb
from fairlead.v1 import policy_service_pb2_grpc as pb_grpc
from fairlead.v1 import tokens_pb2
from services.policy.front import EngineLimits
from services.policy.requests import encode
from services.policy.servicer import SERVICE_NAME, PolicyServicer, wire_limits
from services.policy.transformers_engine import TransformersEngine
from services.runtime.server import ModelServer
from tests.tiny import VOCABULARY_SIZE

CONTEXT = 64
SECTION = PolicySection(bind="127.0.0.1:0", max_text_bytes=1 << 20, max_samples=8, timeout_seconds=30)


class Service:
    """A served engine and a stub without retries."""

    def __init__(
        self, stub: pb_grpc.PolicyServiceStub, engine: TransformersEngine, registry: CollectorRegistry
    ) -> None:
        self.stub: Any = stub
        self.engine = engine
        self.registry = registry
        self.wanted: list[WeightVersion] = []
        self.tokenizer: Any = None


@asynccontextmanager
async def serving(
    model_folder: str, *, keys: KeysSection | None = None, scanned: bool = False
) -> AsyncIterator[Service]:
    """Serve the model of a folder; `scanned` applies the limits on serialized requests."""
    registry = CollectorRegistry()
    tokenizer = load_tokenizer(model_folder)
    info = ModelInfo(model_folder, tokenizer_fingerprint(tokenizer), VOCABULARY_SIZE, CONTEXT, "float32")
    engine = TransformersEngine(
        load_causal_lm(model_folder, ComputeSection(device="cpu")),
        tokenizer,
        info,
        limits=EngineLimits(max_slots=4, max_samples=SECTION.max_samples),
        policy_metrics=metrics.PolicyMetrics(registry),
        initial=WeightVersion(1, 3),
    )
    async with ModelServer("policy", SECTION, ObserveSection(), keys=keys, registry=registry) as server:
        wanted: list[WeightVersion] = []
        servicer = PolicyServicer(
            engine, SECTION, encode=lambda prompt: encode(tokenizer, prompt), on_newer_weights=wanted.append
        )
        limits = wire_limits(info, max_text_bytes=SECTION.max_text_bytes) if scanned else None
        address = await server.start(servicer.add_to, [SERVICE_NAME], limits)
        async with aio.insecure_channel(address) as channel:
            service = Service(pb_grpc.PolicyServiceStub(channel), engine, registry)
            service.wanted, service.tokenizer = wanted, tokenizer
            yield service
    await asyncio.to_thread(engine.close)


def sampling(**fields: Any) -> tokens_pb2.SamplingParams:
    return tokens_pb2.SamplingParams(**({"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8} | fields))


def tokens(*ids: int) -> tokens_pb2.TokenSequence:
    return tokens_pb2.TokenSequence(token_ids=ids)


def talk(*turns: tuple[str, str]) -> tokens_pb2.Conversation:
    return tokens_pb2.Conversation(
        messages=[tokens_pb2.Message(role=role, content=content) for role, content in turns]
    )


def request(**fields: Any) -> pb.GenerateRequest:
    if not {"text", "conversation"} & set(fields):
        fields.setdefault("tokens", tokens(1, 5, 6))
    return pb.GenerateRequest(**({"sampling": sampling(), "num_samples": 1} | fields))
