"""The environment of a trainer under test: a rollout worker in a thread, on the memory queue.

It samples from the weights in the store with the seed of the task, one sequence at a time, and scores by a
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from fairlead.config.base import ComputeSection
from fairlead.errors import FairleadError
from fairlead.nn.loading import load_causal_lm
from fairlead.transports.rollouts.base import Claim
from fairlead.transports.weights.base import Adapter
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import Completion, DeadLetter, FinishReason, Rollout, VersionSpan, WeightVersion
from tests.memory_queue import MemoryBroker

Score = Callable[[tuple[int, ...]], float]


@torch.no_grad()
def logprobs_of(model: PreTrainedModel, prompt: tuple[int, ...], response: list[int], temperature: float):
    """Log-probs of one sequence, from all logits."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].float()
    table = (logits / temperature).log_softmax(-1)
    return [float(table[t, token]) for t, token in enumerate(response)]


@torch.no_grad()
def sample(model: PreTrainedModel, claim: Claim, eos: int, number: int = 0) -> list[int]:
    sampling = claim.task.sampling
    generator = torch.Generator().manual_seed(sampling.seed + number)
    ids = list(claim.task.prompt_token_ids)
    answer: list[int] = []
    while len(answer) < sampling.max_new_tokens and (not answer or answer[-1] != eos):
        logits = model(torch.tensor([ids])).logits[0, -1].float() / sampling.temperature
        token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
        answer.append(token)
        ids.append(token)
    return answer


def with_adapter(
    base: PreTrainedModel, tensors: dict[str, torch.Tensor], adapter: Adapter
) -> dict[str, torch.Tensor]:
    """The model with W + alpha/r · B·A for every matrix with an adapter."""
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    scale = float(adapter.config["lora_alpha"]) / int(adapter.config["r"])
    for name, down in tensors.items():
        if name.endswith("lora_A.weight"):
            up = tensors[name.replace("lora_A", "lora_B")]
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            change = scale * up @ down
            # GPT-2 stores its matrices transposed.
            state[f"{layer}.weight"] += change.T if adapter.config["fan_in_fan_out"] else change
    return state


class World:
    """A worker thread; a context manager."""

    def __init__(self, model_path: Path, weights: Path, score: Score, broker: MemoryBroker | None = None):
        self.broker = broker or MemoryBroker()
        self.store = FilesystemWeightStore(weights)
        section = ComputeSection(device="cpu")
        self.policy = load_causal_lm(str(model_path), section)
        self.reference = load_causal_lm(str(model_path), section)
        self.score = score
        self.version = WeightVersion(0, 0)
        self.dead: set[int] = set()
        self._eos = int(self.policy.config.eos_token_id)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()))

    def __enter__(self) -> World:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _work(self) -> None:
        queue = self.broker.worker("w")
        while not self._stop.is_set():
            for claim in await queue.claim(count=8, block_seconds=0.02):
                self._refresh()
                if claim.task.task_id in self.dead:
                    await queue.finish(claim, DeadLetter("prompt_too_long", "as the test wants it"))
                else:
                    await queue.finish(claim, self.answer(claim))
        await queue.close()

    def _refresh(self) -> None:
        try:
            manifest = self.store.latest()
            if manifest is not None and manifest.version != self.version:
                folder = self.store.fetch(manifest.version)
                tensors = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
                if manifest.adapter is not None:
                    tensors = with_adapter(self.reference, tensors, manifest.adapter)
                self.policy.load_state_dict(tensors, strict=False)
                self.version = manifest.version
        except (FairleadError, OSError):
            return  # pruned meanwhile: the next claim sees a newer version

    def answer(self, claim: Claim) -> tuple[Rollout, ...]:
        return tuple(self._answer(claim, number) for number in range(claim.task.num_samples))

    def _answer(self, claim: Claim, number: int) -> Rollout:
        prompt, temperature = claim.task.prompt_token_ids, claim.task.sampling.temperature
        answer = sample(self.policy, claim, self._eos, number)
        finish = FinishReason.STOP if answer[-1] == self._eos else FinishReason.LENGTH
        return Rollout(
            completion=Completion(
                token_ids=tuple(answer),
                logprobs=tuple(logprobs_of(self.policy, prompt, answer, temperature)),
                finish_reason=finish,
                version_spans=(VersionSpan(self.version, 0, len(answer)),),
            ),
            score=self.score(tuple(answer)),
            reward_version="test",
            reference_logprobs=tuple(logprobs_of(self.reference, prompt, answer, temperature)),
        )
