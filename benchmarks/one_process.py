"""PPO as a plain loop in one process: `python -m benchmarks.one_process --config RUN.toml`.

The baseline of the services: the same decoder, scorers, learner and tasks, called one after the other. It has
no queue, wire, store, ledger or checkpoints, and the decoder reads the weights that are trained. Prints a
JSON line after every update.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.generation import decode
from fairlead.config import RunConfig, load
from fairlead.data.control import policy_stop_ids
from fairlead.data.records import load_prompts
from fairlead.nn.loading import eos_token_ids, load_tokenizer, set_threads
from fairlead.types import Completion, Outcome, PromptTask, Rollout, TokenPair, WeightVersion
from services.batching.packing import pack
from services.policy.decoder import Decoder
from services.policy.sample_state import SampleState
from services.policy.sampler import stream_key
from services.reference.model import Lookup
from services.reference.scorer import ReferenceScorer
from services.reward.scorer import RewardScorer
from trainer.ppo import batch, learner
from trainer.ppo.batch import RolloutBatch
from trainer.ppo.dispatch import PromptOrder

_T = TypeVar("_T")


class Loop:
    """Policy, critic, reward model and reference in one process."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        tokenizer = load_tokenizer(config.policy.path)
        self.tokenizer = tokenizer
        """That of the policy."""
        self._learner = learner.load(config, tokenizer)
        self._reward = RewardScorer(config.reward.path, config.reward)
        self._reference = ReferenceScorer(config.reference.path, config.reference)
        policy = self._learner.models.policy
        self._stop_ids = eos_token_ids(policy, tokenizer) | policy_stop_ids(tokenizer)
        self._decoder = Decoder(policy, slots=config.policy.max_slots)
        self._prompts = PromptOrder(
            load_prompts(config).train,
            tokenizer,
            sampling=config.sampling,
            seed=config.seed,
            num_samples=config.ppo.num_samples,
        )
        set_threads(config.ppo)

    def update(self, number: int) -> dict[str, float]:
        """Generate a batch, score it, look up the reference and learn; return the metrics of the update."""
        rollouts = self.rollouts(self.outcomes(number))
        assert rollouts is not None
        return self.learn(rollouts, number)

    def outcomes(self, number: int) -> list[Outcome]:
        """Return the outcomes of the tasks of an update, answered by the policy as it is."""
        size, version = self._config.ppo.tasks_per_update, WeightVersion(1, number)
        tasks = self._prompts.tasks(range(number * size, (number + 1) * size), min_version=version)
        completions = self._generate(tasks, version)
        of_task = [task for task in tasks for _ in range(task.num_samples)]
        pairs = [
            TokenPair(task.prompt_token_ids, completion.token_ids)
            for task, completion in zip(of_task, completions, strict=True)
        ]
        found = zip(completions, self._scores(pairs), self._reference_logprobs(pairs), strict=True)
        answers = (Rollout(completion, score, "", reference) for completion, score, reference in found)
        return [
            Outcome(task, tuple(itertools.islice(answers, task.num_samples)), "loop", 1, 0) for task in tasks
        ]

    def rollouts(self, outcomes: Sequence[Outcome]) -> RolloutBatch | None:
        """Return the batch of outcomes, as the trainer makes it; None without any."""
        return batch.from_outcomes(outcomes, self._learner.models.device)

    def learn(self, rollouts: RolloutBatch, number: int) -> dict[str, float]:
        """Train on the batch of an update; return its metrics."""
        return self._learner.learn(rollouts, update=number)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def use_reward_model(self, path: str) -> None:
        """Score with another reward model from now on."""
        self._reward = RewardScorer(path, self._config.reward)

    def _generate(self, tasks: Sequence[PromptTask], version: WeightVersion) -> list[Completion]:
        samples = [
            SampleState(
                prompt=task.prompt_token_ids,
                sampling=task.sampling,
                key=stream_key(task.sampling.seed, number),
                stop_ids=self._stop_ids,
                limit=task.sampling.max_new_tokens,
            )
            for task in tasks
            for number in range(task.num_samples)
        ]
        decode(self._decoder, samples, version)
        return [sample.completion() for sample in samples]

    def _scores(self, pairs: Sequence[TokenPair]) -> list[float]:
        ended = [dataclasses.replace(pair, append_end=True) for pair in pairs]
        sequences = self._reward.encode(ended)
        found: dict[int, float | Exception] = {}
        budget = self._config.reward.batching.max_batch_tokens
        for members in pack([len(sequence) for sequence in sequences], max_batch_tokens=budget):
            found |= zip(members, self._reward.score([sequences[i] for i in members]), strict=True)
        return [_sound(found[index]) for index in range(len(pairs))]

    def _reference_logprobs(self, pairs: Sequence[TokenPair]) -> list[tuple[float, ...]]:
        lookups: list[Lookup] = self._reference.check(pairs, self._config.sampling.temperature)
        found: dict[int, tuple[float, ...] | Exception] = {}
        budget = self._config.reference.batching.max_batch_tokens
        for members in pack([lookup.num_tokens for lookup in lookups], max_batch_tokens=budget):
            found |= zip(members, self._reference.logprobs([lookups[i] for i in members]), strict=True)
        return [_sound(found[index]) for index in range(len(pairs))]


def _sound(result: _T | Exception) -> _T:
    if isinstance(result, Exception):
        raise result
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Train for the configured number of updates."""
    parser = argparse.ArgumentParser(prog="benchmarks.one_process", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the run's TOML file")
    config = load(parser.parse_args(argv).config)
    loop = Loop(config)
    for number in range(config.ppo.updates):
        figures = loop.update(number)
        line = {
            "time": time.time(),
            "cpu_seconds": time.process_time(),
            "reward": figures["reward"],
            "kl": figures["kl"],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
