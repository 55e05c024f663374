"""An engine on vLLM with a tiny tied model, and what its log-probs have to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.nn import adapters, loading
from fairlead.nn.logprobs import token_logprobs
from fairlead.transports.weights.base import Adapter, Probe
from fairlead.types import Completion, GenerationRequest, ModelInfo, SamplingParams, WeightVersion
from services.policy.front import EngineLimits
from services.policy.sampler import truncate
from tests.tiny import VOCABULARY_SIZE, tiny_causal_lm, tiny_tokenizer
from trainer.model_state import unique_tensors

CONTEXT = 256
SLOTS = 8
PROMPT = tuple(range(5, 25))


def tiny(folder: Path, *, seed: int, tied: bool = True) -> PreTrainedModel:
    """Save a model that vLLM's CPU build can decode (heads of 32), without an end token, and return it."""
    tiny_causal_lm(
        folder,
        seed=seed,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return model


@asynccontextmanager
async def serving(folder: Path, registry: CollectorRegistry | None = None, **sections: dict) -> AsyncIterator:
    """Run an engine on the model in a folder, whose weights are version 0-0."""
    from services.policy.vllm.engine import VllmEngine

    policy = {
        "engine": "vllm",
        "path": str(folder),
        "serve_initial": True,
        "max_slots": SLOTS,
        "vllm": {"kv_cache_memory_bytes": 64 << 20, "enforce_eager": True},
    }
    config = RunConfig(
        policy=policy | sections.get("policy", {}), ppo={"max_staleness": 1} | sections.get("ppo", {})
    )
    model = loading.causal_lm_without_weights(str(folder))
    adapter = None
    if config.ppo.lora.rank:
        adapters.add(model, config.ppo.lora, base=str(folder), field="ppo.lora", seed=0, dtype=torch.float32)
        adapter = Adapter(adapters.fingerprint(str(folder)), adapters.config(model))
    engine = VllmEngine(
        model,
        loading.load_tokenizer(str(folder)),
        ModelInfo(str(folder), "f", VOCABULARY_SIZE, CONTEXT, config.policy.dtype),
        config=config,
        limits=EngineLimits(
            max_slots=SLOTS, max_queue_tokens=4_000, finish_before_swap=config.ppo.max_staleness == 0
        ),
        policy_metrics=metrics.PolicyMetrics(registry or CollectorRegistry()),
        adapter=adapter,
    )
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


def version_folder(folder: Path, model: PreTrainedModel) -> Path:
    """Write the weights of a model as the trainer publishes them."""
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in unique_tensors(model).items()},
        folder / "model-00001.safetensors",
    )
    return folder


def request(*, prompt: Sequence[int] = PROMPT, samples: int = 1, **sampling: object) -> GenerationRequest:
    """Return a request with 32 tokens to generate, unless given otherwise."""
    settings = {"max_new_tokens": 32, "seed": 3} | sampling
    return GenerationRequest("r", tuple(prompt), SamplingParams(**settings), num_samples=samples)  # type: ignore[arg-type]


def probe(model: PreTrainedModel, *, dtype: str = "float32") -> Probe:
    """Return what the trainer would publish with the weights of a model."""
    ids = torch.randint(4, VOCABULARY_SIZE, (32,), generator=torch.Generator().manual_seed(0))
    logprobs_T = token_logprobs(logits(model, ids)[:-1], ids[1:], temperature=1.0)
    return Probe(tuple(ids.tolist()), tuple(logprobs_T.tolist()), dtype)


def logits(model: PreTrainedModel, ids_T: Tensor) -> Tensor:
    """Return the model's own logits [T, V] of one sequence."""
    with torch.no_grad():
        found: Tensor = model(ids_T[None]).logits[0].float()
    return found


def differences(
    models: dict[WeightVersion, PreTrainedModel],
    completion: Completion,
    *,
    prompt: Sequence[int] = PROMPT,
    sampling: SamplingParams | None = None,
) -> Tensor:
    """Return |recorded − computed| of each token, by the model that the token's version names."""
    sampling = sampling or SamplingParams()
    ids_T = torch.tensor([*prompt, *completion.token_ids])
    found = torch.empty(len(completion.token_ids))
    for span in completion.version_spans:
        rows = slice(len(prompt) - 1 + span.start, len(prompt) - 1 + span.end)
        scaled_TV = logits(models[span.version], ids_T)[rows] / (sampling.temperature or 1.0)
        if sampling.temperature and (sampling.top_k or sampling.top_p < 1):
            count = len(scaled_TV)
            scaled_TV = truncate(
                scaled_TV,
                torch.full((count, 1), sampling.top_k or VOCABULARY_SIZE),
                torch.full((count, 1), sampling.top_p, dtype=torch.float64),
            )
        tokens_T = ids_T[len(prompt) + span.start : len(prompt) + span.end]
        computed_T = token_logprobs(scaled_TV, tokens_T, temperature=1.0)
        found[span.start : span.end] = computed_T - torch.tensor(completion.logprobs[span.start : span.end])
    return found.abs()
