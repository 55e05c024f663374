"""Generation by our decode loop against transformers' `generate`, log-probs of every token included in both.

Two cases on the quickstart's model: a batch of equal answers, which is what `generate` is made for, and
answers of many lengths with more of them than slots, where ours fills a slot as soon as it is free and
`generate` waits for the longest of each batch. The second decides the constants of the scheduler.
"""

from __future__ import annotations

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.result import Result, interleaved
from fairlead.types import SamplingParams, WeightVersion
from services.policy.decoder import Decoder
from services.policy.sample import Sample
from services.policy.sampler import stream_key
from services.policy.scheduler import Scheduler
from services.policy.ticket import Ticket

VOCABULARY, PROMPT_TOKENS, NEW_TOKENS = 96, 8, 24
SLOTS = (32, 64)
MIXED_ANSWERS, MIXED_TOKENS = 384, (6, 40)
VERSION = WeightVersion(0, 0)


def run(device: torch.device) -> dict[str, Result]:
    """Tokens per second of both."""
    model = _model(device)
    results = {}
    for slots in SLOTS:
        equal = [NEW_TOKENS] * slots
        rng = random.Random(0)
        mixed = [rng.randint(*MIXED_TOKENS) for _ in range(MIXED_ANSWERS)]
        for name, lengths in (("equal", equal), ("mixed", mixed)):
            seconds = interleaved(
                {
                    "ours": lambda lengths=lengths, slots=slots: _ours(model, lengths, slots),
                    "generate": lambda lengths=lengths, slots=slots: _generate(model, lengths, slots),
                },
                rounds=7 if name == "equal" else 3,
            )
            results[f"generation_{name}_{slots}"] = Result(
                sum(lengths) / seconds["ours"],
                "tokens/s",
                sum(lengths) / seconds["generate"],
                "transformers generate",
            )
    return results


def _model(device: torch.device) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval().to(device)
    model.generation_config.eos_token_id = None
    return model


def _prompts(count: int) -> list[tuple[int, ...]]:
    rng = random.Random(1)
    return [tuple(rng.randrange(4, VOCABULARY) for _ in range(PROMPT_TOKENS)) for _ in range(count)]


def _ours(model: PreTrainedModel, lengths: list[int], slots: int) -> None:
    samples = [
        Sample(prompt, SamplingParams(), stream_key(0, index), frozenset(), limit=length)
        for index, (prompt, length) in enumerate(zip(_prompts(len(lengths)), lengths, strict=True))
    ]
    decoder, scheduler = Decoder(model, slots=slots), Scheduler(slots=slots, max_queue_tokens=10**9)
    for sample in samples:
        scheduler.put(Ticket([sample], min_version=None, deadline=None), tokens_per_second=1)
    while decoder.running or len(scheduler):
        taken = scheduler.take(free=slots - len(decoder.running), version=VERSION)
        if taken:
            decoder.join([sample for _, sample in taken], VERSION)
        decoder.leave([sample for sample in decoder.running if sample.finish_reason])
        if decoder.running:
            decoder.step(VERSION)
            decoder.leave([sample for sample in decoder.running if sample.finish_reason])


def _generate(model: PreTrainedModel, lengths: list[int], slots: int) -> None:
    prompts = _prompts(len(lengths))
    for start in range(0, len(prompts), slots):
        ids = torch.tensor(prompts[start : start + slots], device=model.device)
        longest = max(lengths[start : start + slots])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=longest,
                do_sample=True,
                top_k=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
            model.compute_transition_scores(output.sequences, output.logits, normalize_logits=True)
