"""Evaluation during training: the services answer and score held-out prompts, and the best update is kept.

The trainer waits for it up to a limit. If services cannot be reached, an evaluation is skipped and the run
continues. Its seeds are the same at every update, so that evaluations differ only in the weights.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from fairlead.backoff import Backoff, retry
from fairlead.clients.rollout import RolloutClients, RolloutPrompt, ScoreInputs, generate_and_score
from fairlead.config import RunConfig
from fairlead.config.rewards import CombinedSection
from fairlead.config.training import PpoSection
from fairlead.data.chat import Chat, Prompt
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
from trainer.ppo.dispatch import prompts_that_fit
from trainer.ppo.heldout_reward import HeldoutReward

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_RETRY = Backoff(first_seconds=0.25, longest_seconds=0.25, jitter=0.0)


@dataclass(frozen=True, slots=True)
class BestUpdate:
    """The update with the highest objective on held-out prompts so far."""

    version: WeightVersion
    """Version of its weights and of its checkpoint."""
    reward: float
    """Mean score of its answers."""
    objective: float
    """What PPO maximises, on those answers: see `objective`."""
    heldout_reward: float | None = None
    """Mean score of a second reward model; None without one."""


@dataclass(frozen=True, slots=True)
class EvaluatedAnswer:
    """Measurements of one answer."""

    score: float
    """Score of the reward model."""
    divergence: float | None
    """log π − log π_ref, summed over its tokens; None for greedy answers, which are not sampled from π."""
    length: int
    """Length in tokens."""
    ended: bool
    """False if it reached the length limit."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Of a combined reward: the score of each term."""
    prompt: Prompt = ""
    """What it answers."""
    text: str = ""
    """The answer."""


class Evaluation:
    """Evaluates every few updates and remembers the best one."""

    def __init__(
        self, config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, context_tokens: int | None = None
    ) -> None:
        """Read the held-out prompts, if evaluations are configured.

        Args:
            config: names the prompts and the evaluations.
            tokenizer: the tokenizer of the policy.
            context_tokens: longest sequence of the policy; prompts without space for an answer are left out.

        Raises:
            ConfigError: if evaluations are configured and no prompt is held out, or all are too long.
            ModelLoadError: if the second reward model cannot be loaded.
            DataError: for invalid prompts, and those that the chat template refuses.
        """
        self._config = config
        self._section = config.evaluation
        self._tokenizer = tokenizer
        self._prompts: Sequence[Prompt] = ()
        if self._section.every_updates:
            self._prompts = load_prompts(config).heldout
        if self._section.every_updates and not self._prompts:
            raise ConfigError(
                "evaluation.every_updates",
                got="no held-out prompt to evaluate on",
                allowed="0, more prompts, or a larger data.heldout_fraction",
            )
        check_prompts(tokenizer, self._prompts)
        if self._prompts:
            key = "data.heldout_prompts" if config.data.heldout_prompts else "data.prompts"
            self._prompts = prompts_that_fit(
                self._prompts, tokenizer, context_tokens=context_tokens, key=f"{key}, held out"
            )
        self._heldout_reward: HeldoutReward | None = None
        if self._prompts and self._section.reward_model:
            self._heldout_reward = HeldoutReward(config)
        self.best: BestUpdate | None = None
        """The best update so far; None before the first evaluation."""
        self._warn_without_divergence()
        self._waits_for = "waiting for an answer"
        # One event loop for all evaluations: late events of gRPC need it open.
        self._runner: asyncio.Runner | None = None

    def _warn_without_divergence(self) -> None:
        """Warn if the best update is chosen by nothing but the score that PPO maximises."""
        is_in_trainer = self._config.reference.engine == "trainer"
        if not self._prompts or self._heldout_reward is not None or not self._config.ppo.final_kl_coefficient:
            return
        if is_in_trainer or not self._section.temperature:
            logger.warning(
                "with %s evaluations measure no KL, so policy_best is the update with the highest score, "
                "which may be one that exploits the reward; set evaluation.reward_model to a second one",
                "reference.engine = 'trainer'" if is_in_trainer else "evaluation.temperature = 0",
            )

    def is_due(self, update: int) -> bool:
        """Return whether the weights after this many updates are evaluated."""
        every = self._section.every_updates
        return bool(every) and (update % every == 0 or update == self._config.ppo.updates)

    def after(
        self,
        version: WeightVersion,
        *,
        on_phase: Callable[[str], None],
        score_unit: float = 1.0,
        missing_eos_penalty: float | None = None,
        is_contradicted: bool = False,
    ) -> dict[str, float]:
        """Evaluate the weights just published if they are due, and remember them if they are the best.

        Args:
            version: the weights.
            on_phase: called with the phase of the trainer.
            score_unit: the score that counts as 1 in PPO's reward: the deviation of the scores if they are
                normalised.
            missing_eos_penalty: PPO's penalty of a missing end; None: the section's.
            is_contradicted: whether fresh labels contradict the reward model, so that no update is the best.

        Returns:
            The figures; empty if no evaluation is due, or if it was not done within `max_seconds`.
        """
        if not self.is_due(version.update):
            return {}
        on_phase("evaluate")
        try:
            self._runner = self._runner or asyncio.Runner()
            answers = self._runner.run(self._measure(version))
            found = figures(answers)
            if self._heldout_reward is not None:
                scores = self._heldout_reward.scores([(answer.prompt, answer.text) for answer in answers])
                found["eval_heldout_reward"] = _finite_mean(scores)
        except (FairleadError, TimeoutError) as error:
            reason = str(error) or f"not done within {self._section.max_seconds:.0f} s: {self._waits_for}"
            logger.warning("update %d is not evaluated: %s", version.update, reason)
            return {}
        section = self._config.ppo
        if missing_eos_penalty is not None:
            section = section.model_copy(update={"missing_eos_penalty": missing_eos_penalty})
        found["eval_objective"] = objective(found, section, score_unit=score_unit)
        reason = "fresh labels contradict the reward model" if is_contradicted else ""
        if reason := reason or excess(found, self._config.reward.combined):
            logger.warning("update %d does not become policy_best: %s", version.update, reason)
        elif self.best is None or found["eval_objective"] > self.best.objective:
            self.best = BestUpdate(
                version, found["eval_reward"], found["eval_objective"], found.get("eval_heldout_reward")
            )
        return found

    def close(self) -> None:
        """Close the event loop; another evaluation would open a new one."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def is_best(self, version: WeightVersion) -> bool:
        """Return whether these weights are the best so far; their checkpoint is kept."""
        return self.best is not None and self.best.version == version

    def kept(self) -> frozenset[WeightVersion]:
        """Return the checkpoints that must not be pruned."""
        return frozenset() if self.best is None else frozenset([self.best.version])

    def state(self) -> dict[str, object]:
        """Return the state for the checkpoint."""
        best = self.best
        if best is None:
            return {"best": None}
        numbers = {"reward": best.reward, "objective": best.objective, "heldout_reward": best.heldout_reward}
        return {"best": {"version": str(best.version), **numbers, "measured_by": self._measured_by()}}

    def _measured_by(self) -> dict[str, object]:
        """Return the settings that objectives depend on, so that only comparable ones are compared."""
        keys = [f"evaluation.{key}" for key in ("reward_model", "temperature", "num_prompts")]
        keys += [f"reward.{key}" for key in ("engine", "path", "function", "combined", "ensemble")]
        keys += [f"ppo.{key}" for key in ("missing_eos_penalty", "normalise_scores")]
        keys += ["data.heldout_prompts", "sampling.max_new_tokens", "sampling.stop_strings"]
        values = self._config.model_dump(mode="json", include={key.partition(".")[0] for key in keys})
        found = {key: values[key.partition(".")[0]][key.partition(".")[2]] for key in keys}
        return found | {"ppo.kl_coefficient": self._config.ppo.final_kl_coefficient}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Restore what `state` returned.

        Raises:
            CorruptCheckpoint: if the value has another form.
        """
        content: Any = state.get("best")
        try:
            self.best = content and BestUpdate(
                WeightVersion.parse(content["version"]),
                float(content["reward"]),
                # Checkpoints of 0.1.0 compare rewards.
                float(content.get("objective", content["reward"])),
                None if (heldout := content.get("heldout_reward")) is None else float(heldout),
            )
            before = dict(content.get("measured_by", {})) if content else {}
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            raise CorruptCheckpoint(f"the checkpoint has an invalid best evaluation: {error!r}") from error
        now = self._measured_by()
        # Checkpoints of other releases may have other keys.
        if changed := [key for key in now.keys() & before.keys() if now[key] != before[key]]:
            logger.warning(
                "the best update so far, %s, was chosen with another %s and is forgotten",
                *(content["version"], " and ".join(sorted(changed))),
            )
            self.best = None

    async def _measure(self, version: WeightVersion) -> list[EvaluatedAnswer]:
        async with asyncio.timeout(self._section.max_seconds), RolloutClients.of(self._config) as clients:
            policy, reward = await asyncio.gather(
                self._retry(clients.policy.info), self._retry(clients.reward.info)
            )
            as_text = policy.model.tokenizer_fingerprint != reward.model.tokenizer_fingerprint
            slots = asyncio.Semaphore(self._config.policy.max_slots)

            async def one(number: int) -> EvaluatedAnswer | None:
                async with slots:
                    return await self._answer(clients, number, version, scored_as_text=as_text)

            found = await asyncio.gather(*(one(number) for number in range(self._count)))
        return [answer for answer in found if answer is not None]

    @property
    def _count(self) -> int:
        """Number of answers; a greedy answer is always the same, so each prompt is answered at most once."""
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

        async def generate() -> Sequence[Completion]:
            return await self._retry(lambda: clients.policy.generate(ids, sampling, min_version=version))

        async def score(inputs: Sequence[ScoreInputs]) -> Scores:
            return await self._retry(lambda: clients.reward.score([each.item for each in inputs]))

        client = clients.reference

        async def reference(inputs: Sequence[ScoreInputs]) -> Sequence[tuple[float, ...]]:
            assert client is not None
            pairs = [each.tokens for each in inputs]
            return await self._retry(lambda: client.logprobs(pairs, temperature=temperature))

        try:
            found = await generate_and_score(
                RolloutPrompt(ids, str(prompt), prompt.messages if isinstance(prompt, Chat) else ()),
                generate=generate,
                score=score,
                reference=reference if temperature and client is not None else None,
                scored_as_text=scored_as_text,
            )
        except InvalidInput as error:
            logger.warning("a held-out prompt is not evaluated: %s", error)
            return None
        [completion] = found.completions
        divergence = None
        if found.reference_logprobs is not None:
            divergence = sum(completion.logprobs) - sum(found.reference_logprobs[0])
        ended = completion.finish_reason == FinishReason.STOP
        terms = {name: values[0] for name, values in found.scores.terms.items()}
        length = len(completion.token_ids)
        return EvaluatedAnswer(
            found.scores.scores[0], divergence, length, ended, terms, prompt, completion.text
        )

    async def _retry(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Return the call's result, retried after transient errors until the evaluation's time is up."""

        def note(error: FairleadError) -> None:
            self._waits_for = str(error)

        return await retry(call, what="", backoff=_RETRY, on_wait=note)


def figures(answers: list[EvaluatedAnswer]) -> dict[str, float]:
    """Return means over the answers, named as in metrics_ppo.jsonl.

    Raises:
        FairleadError: if there are no answers, or a score or log-prob is not finite.
    """
    if not answers:
        raise FairleadError("the services refused every held-out prompt")
    for answer in answers:
        if not math.isfinite(answer.score) or not math.isfinite(answer.divergence or 0.0):
            raise FairleadError(
                f"an answer has the score {answer.score} and the divergence {answer.divergence}: "
                "one of them is not finite"
            )
    found = {
        "eval_reward": _mean([answer.score for answer in answers]),
        "eval_length": _mean([float(answer.length) for answer in answers]),
        "eval_eos_rate": _mean([float(answer.ended) for answer in answers]),
    }
    found |= {
        f"eval_term_{name}": _mean([answer.terms[name] for answer in answers if name in answer.terms])
        for name in answers[0].terms
    }
    divergences = [answer.divergence for answer in answers if answer.divergence is not None]
    return found | ({"eval_kl": _mean(divergences)} if divergences else {})


def excess(figures: Mapping[str, float], combined: CombinedSection) -> str:
    """Return how answers break an adapted constraint; empty if they keep it or there is none.

    Their reward does not say so: it has the λ of the configuration, so that updates are comparable.
    """
    found = figures.get(f"eval_term_{combined.constrained}")
    if not combined.is_adaptive or found is None or found <= combined.limit:
        return ""
    return f"its mean of the term {combined.constrained}, {found:.3g}, is above the limit {combined.limit:g}"


def objective(figures: Mapping[str, float], section: PpoSection, *, score_unit: float = 1.0) -> float:
    """Return what PPO maximises: mean score − β·KL − penalty·(share of answers without EOS).

    The score by itself would prefer the update that has moved furthest from the reference, where the reward
    model is least reliable. The score of a second reward model, which PPO does not maximise, takes its place.
    β is that of the configuration, with a schedule that of its end, so that updates are comparable if it
    changes. Greedy answers have no KL.
    """
    penalty = section.final_kl_coefficient * figures.get("eval_kl", 0.0)
    penalty += (section.missing_eos_penalty or 0.0) * (1.0 - figures["eval_eos_rate"])
    return figures.get("eval_heldout_reward", figures["eval_reward"]) - penalty * score_unit


def _finite_mean(scores: list[float]) -> float:
    bad = next((score for score in scores if not math.isfinite(score)), None)
    if bad is not None:
        raise FairleadError(f"the second reward model returned the score {bad}")
    return _mean(scores)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
