"""A tiny tied model for any engine of the policy service, its versions, and what its log-probs have to be."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from fairlead.nn.logprobs import token_logprobs
from fairlead.transports.weights.base import Probe
from fairlead.types import Completion, GenerationRequest, ModelInfo, SamplingParams, WeightVersion
from services.policy.engine import Engine
from services.policy.front import EngineLimits
from services.policy.sampler import truncate
from tests.tiny import VOCABULARY_SIZE, tiny_causal_lm, tiny_tokenizer
from trainer.model_state import unique_tensors

CONTEXT = 256
SLOTS = 8
QUEUE_TOKENS = 4_000
PROMPT = tuple(range(5, 25))
V0 = WeightVersion(0, 0)
TOLERANCE = 1e-4
"""Largest difference of a log-prob in float32."""


@dataclass
class EngineWorld:
    """One engine, the models of its versions, and its metrics."""

    engine: Engine
    model: PreTrainedModel
    """The weights of version 0-0."""
    registry: CollectorRegistry
    root: Path
    models: dict[WeightVersion, PreTrainedModel] = field(init=False)

    def __post_init__(self) -> None:
        self.models = {V0: self.model}

    def next_version(self) -> WeightVersion:
        """Return a version that is newer than all others."""
        return WeightVersion(1, max(self.models).update + 1)

    def another_model(self, seed: int) -> PreTrainedModel:
        """Return a model with all weights changed, also the tied ones."""
        model = copy.deepcopy(self.model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model

    async def load(self, seed: int) -> WeightVersion:
        """Load a new version, and return it."""
        version = self.next_version()
        model = self.another_model(seed)
        folder = version_folder(self.root / str(version), model)
        self.models[version] = model
        await self.engine.load(version, folder, probe=probe(model))
        return version

    def value(self, name: str) -> float:
        """Return the value of a metric without labels."""
        return self.registry.get_sample_value(name) or 0.0

    def largest_difference(self, completion: Completion, sampling: SamplingParams | None = None) -> float:
        """Return the largest difference of a recorded log-prob from the models'."""
        return float(differences(self.models, completion, sampling=sampling).max())


def limits(*, max_staleness: int = 1) -> EngineLimits:
    """Return the limits that the tests expect."""
    return EngineLimits(max_slots=SLOTS, max_queue_tokens=QUEUE_TOKENS, finish_before_swap=max_staleness == 0)


def model_info(folder: Path, *, dtype: str = "float32") -> ModelInfo:
    """Describe the model of `tiny`."""
    return ModelInfo(str(folder), "f", VOCABULARY_SIZE, CONTEXT, dtype)


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
