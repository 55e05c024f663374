"""Evaluation during training: held-out prompts, answered and scored by the services; which update was best.

The trainer waits for it, within bounds; services that cannot be reached cost an evaluation, never the run.
Its seeds are its own and the same at every update, so that updates differ by their weights alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from fairlead.backoff import Backoff, retry
from fairlead.clients.rollout import RolloutClients, RolloutPrompt, ScoreInputs, generate_and_score
from fairlead.config import RunConfig
from fairlead.data.chat import Chat
from fairlead.data.encoding import check_prompts, encode_prompt
from fairlead.data.records import load_prompts
from fairlead.errors import (
    ConfigError,
    CorruptCheckpoint,
    FairleadError,
    InvalidInput,
)
from fairlead.types import Completion, FinishReason, SamplingParams, Scores, WeightVersion
from trainer import seeds

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_RETRY = Backoff(first_seconds=0.25, longest_seconds=0.25, jitter=0.0)


@dataclass(frozen=True, slots=True)
class BestUpdate:
    """The update with the highest reward on held-out prompts so far."""

    version: WeightVersion
    """Its weights, and its checkpoint."""
    reward: float
    """Mean score of its answers."""


@dataclass(frozen=True, slots=True)
class EvaluatedAnswer:
    """What one answer came to."""

    score: float
    """The reward model's scalar."""
    divergence: float | None
    """log π − log π_ref, summed over its tokens; None for greedy answers, which are no samples of π."""
    length: int
    """Tokens."""
    ended: bool
    """False if it met the length limit."""


class Evaluation:
    """Measures every few updates and remembers the best one."""

    def __init__(self, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Reads the held-out prompts, if there will be evaluations.

        Raises:
            ConfigError: if there are to be evaluations and no prompt is held out.
            DataError: for bad prompts, and those that the chat template refuses.
        """
        self._config, self._section = config, config.evaluation
        self._tokenizer = tokenizer
        self._prompts = load_prompts(config).heldout if self._section.every_updates else ()
        if self._section.every_updates and not self._prompts:
            raise ConfigError(
                "evaluation.every_updates",
                got="no held-out prompt to evaluate on",
                allowed="0, more prompts, or a larger data.heldout_fraction",
            )
        check_prompts(tokenizer, self._prompts)
        self.best: BestUpdate | None = None
        """None before the first evaluation."""
        self._waits_for = "an answer"
        # One loop for all evaluations: gRPC's late events find it open.
        self._runner: asyncio.Runner | None = None

    def is_due(self, update: int) -> bool:
        """Whether the weights of this many updates are to be evaluated."""
        every = self._section.every_updates
        return bool(every) and (update % every == 0 or update == self._config.ppo.updates)

    def after(self, version: WeightVersion, *, on_phase: Callable[[str], None]) -> dict[str, float]:
        """Figures of the weights that were just published, and whether they are the best is remembered.

        Empty if no evaluation is due, or if it could not be done within `max_seconds`.
        """
        if not self.is_due(version.update):
            return {}
        on_phase("evaluate")
        try:
            self._runner = self._runner or asyncio.Runner()
            figures = self._runner.run(self._measure(version))
        except (FairleadError, TimeoutError) as error:
            reason = str(error) or f"{self._section.max_seconds:.0f} s have passed; {self._waits_for}"
            logger.warning("update %d is not evaluated: %s", version.update, reason)
            return {}
        if self.best is None or figures["eval_reward"] > self.best.reward:
            self.best = BestUpdate(version, figures["eval_reward"])
        return figures

    def close(self) -> None:
        """Ends its event loop; the next evaluation would make another."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def is_best(self, version: WeightVersion) -> bool:
        """Whether these weights are the best so far; their checkpoint is kept."""
        return self.best is not None and self.best.version == version

    def kept(self) -> frozenset[WeightVersion]:
        """Checkpoints that must not be pruned."""
        return frozenset() if self.best is None else frozenset([self.best.version])

    def state(self) -> dict[str, object]:
        """What the checkpoint keeps."""
        best = self.best
        return {"best": None if best is None else {"version": str(best.version), "reward": best.reward}}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Takes over what `state` gave.

        Raises:
            CorruptCheckpoint: if it has another form.
        """
        content: Any = state.get("best")
        try:
            self.best = content and BestUpdate(
                WeightVersion.parse(content["version"]), float(content["reward"])
            )
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            raise CorruptCheckpoint(f"the checkpoint's best evaluation: {error}") from error

    async def _measure(self, version: WeightVersion) -> dict[str, float]:
        async with asyncio.timeout(self._section.max_seconds), RolloutClients.of(self._config) as clients:
            policy, reward = await asyncio.gather(
                self._retry(clients.policy.info), self._retry(clients.reward.info)
            )
            as_text = policy.model.tokenizer_fingerprint != reward.model.tokenizer_fingerprint
            room = asyncio.Semaphore(self._config.policy.max_slots)

            async def one(number: int) -> EvaluatedAnswer | None:
                async with room:
                    return await self._answer(clients, number, version, scored_as_text=as_text)

            found = await asyncio.gather(*(one(number) for number in range(self._count)))
        return figures([answer for answer in found if answer is not None])

    @property
    def _count(self) -> int:
        """A greedy answer is always the same: each prompt once at most."""
        wanted = self._section.num_prompts
        return wanted if self._section.temperature else min(wanted, len(self._prompts))

    async def _answer(
        self, clients: RolloutClients, number: int, version: WeightVersion, *, scored_as_text: bool
    ) -> EvaluatedAnswer | None:
        """Evaluate one completion; None if a service refuses the prompt or the completion."""
        temperature = self._section.temperature
        prompt = self._prompts[number % len(self._prompts)]
        ids = tuple(encode_prompt(self._tokenizer, prompt))
        sampling = SamplingParams(
            temperature=temperature,
            max_new_tokens=self._config.sampling.max_new_tokens,
            stop_strings=self._config.sampling.stop_strings,
            seed=seeds.derive(self._config.seed, "evaluate", number),
        )

        async def generate() -> Completion:
            [completion] = await self._retry(
                lambda: clients.policy.generate(ids, sampling, min_version=version)
            )
            return completion

        async def score(inputs: ScoreInputs) -> Scores:
            return await self._retry(lambda: clients.reward.score([inputs.item]))

        async def reference(inputs: ScoreInputs) -> tuple[float, ...]:
            [logprobs] = await self._retry(
                lambda: clients.reference.logprobs([inputs.tokens], temperature=temperature)
            )
            return logprobs

        try:
            found = await generate_and_score(
                RolloutPrompt(ids, str(prompt), prompt.messages if isinstance(prompt, Chat) else ()),
                generate=generate,
                score=score,
                reference=reference if temperature else None,
                scored_as_text=scored_as_text,
            )
        except InvalidInput as error:
            logger.warning("a held-out prompt is not evaluated: %s", error)
            return None
        completion = found.completion
        divergence = None
        if found.reference_logprobs is not None:
            divergence = sum(completion.logprobs) - sum(found.reference_logprobs)
        ended = completion.finish_reason == FinishReason.STOP
        return EvaluatedAnswer(found.scores.scores[0], divergence, len(completion.token_ids), ended)

    async def _retry(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Return the call's result, retried after transient errors until the evaluation's time is up."""

        def note(error: FairleadError) -> None:
            self._waits_for = str(error)

        return await retry(call, what="", backoff=_RETRY, on_wait=note)


def figures(answers: list[EvaluatedAnswer]) -> dict[str, float]:
    """Means over the answers, named as in metrics_ppo.jsonl.

    Raises:
        FairleadError: if there are none.
    """
    if not answers:
        raise FairleadError("the services refused every held-out prompt")
    found = {
        "eval_reward": _mean([answer.score for answer in answers]),
        "eval_length": _mean([float(answer.length) for answer in answers]),
        "eval_eos_rate": _mean([float(answer.ended) for answer in answers]),
    }
    divergences = [answer.divergence for answer in answers if answer.divergence is not None]
    return found | ({"eval_kl": _mean(divergences)} if divergences else {})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
