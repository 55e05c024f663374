"""Trains the policy, and the critic if there is one, on rollout batches, and keeps the state between them.

Called by the trainer; calls the pure functions of an update in `step`. Holds β, the λ of a constraint, the
scale of scores and the position in the demonstrations of PPO-ptx, all part of the checkpoint. Knows nothing
about the queue or versions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

from transformers import PreTrainedTokenizerBase

from fairlead.config import RunConfig, ignored
from fairlead.config.rewards import CombinedSection
from fairlead.config.training import OF_PAIRS, PpoSection
from fairlead.data.records import load_demonstrations
from fairlead.data.template import apply_settings
from fairlead.errors import ConfigError, CorruptCheckpoint
from fairlead.nn import adapters
from fairlead.nn.loading import load_tokenizer, max_sequence_tokens
from trainer.demonstrations import DemonstrationStream, encode
from trainer.distributed.group import Group
from trainer.ppo import actor_critic, critic_start, missing_eos, objective, step
from trainer.ppo.actor_critic import ActorCritic
from trainer.ppo.batch import RolloutBatch
from trainer.ppo.score_scale import ScoreScale
from trainer.sequences import TokenSequence

logger = logging.getLogger(__name__)

_WARNED_SHARE = 0.05
"""Share of scores beyond `ppo.score_clip` above which a warning is logged: a few are what it is for."""


def initial_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the policy that a run starts from, with the template that is configured for it.

    Raises:
        ModelLoadError: if it cannot be loaded.
    """
    tokenizer = load_tokenizer(actor_critic.initial_path(config))
    if config.policy.path:
        apply_settings(tokenizer, config)
    return tokenizer


def load(config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, group: Group | None = None) -> Learner:
    """Return an untrained learner with the models and demonstrations that a run names.

    Args:
        config: the run.
        tokenizer: the policy's.
        group: the ranks that train together, all of which call this; None: only this process.

    Raises:
        ModelLoadError: if policy or reward model cannot be loaded.
        ConfigError, DataError: for invalid demonstrations.
    """
    section = config.ppo.model_copy(update={"proximal_logprobs": _proximal_logprobs(config)})
    start = critic_start.choose(config)
    if group is None or group.is_first:
        critic_start.log(config, start)
        for message in ignored.of_ppo(section):
            logger.warning("%s", message)
    models = actor_critic.load(
        actor_critic.initial_path(config),
        section,
        critic_path=start.reward_model,
        seed=config.seed,
        group=group,
    )
    sequences: list[TokenSequence] = []
    if section.ptx_coefficient:
        limit = max_sequence_tokens(models.policy, 0)
        encoded = encode(load_demonstrations(config).train, tokenizer, max_tokens=limit)
        encoded.warn("ppo.ptx_coefficient", max_tokens=limit, remedy="the model reads no more")
        sequences = encoded.sequences
    return Learner(
        models,
        section,
        temperature=config.sampling.temperature,
        seed=config.seed,
        demonstrations=sequences,
        max_new_tokens=config.sampling.max_new_tokens,
        score_deviation=missing_eos.of_reward_model(config),
        combined=config.reward.combined,
    )


def _proximal_logprobs(config: RunConfig) -> str:
    """Return `ppo.proximal_logprobs` with `auto` resolved.

    An engine of others, and bfloat16, compute log-probs that differ from the trainer's by more than the
    rounding of float32. That noise must not be in the probability ratio.
    """
    section = config.ppo
    if section.proximal_logprobs != "auto":
        return section.proximal_logprobs
    is_exact = config.policy.dtype == section.dtype == config.weights.dtype == "float32"
    return "stale" if config.policy.engine == "transformers" and is_exact else "all"


class Learner:
    """The models, trained by the recipe in `[ppo]`."""

    def __init__(
        self,
        models: ActorCritic,
        section: PpoSection,
        *,
        temperature: float,
        seed: int,
        demonstrations: Sequence[TokenSequence] = (),
        max_new_tokens: int | None = None,
        score_deviation: float | None = None,
        combined: CombinedSection | None = None,
    ) -> None:
        """
        Args:
            models: what is trained.
            section: the recipe.
            temperature: sampling temperature of the rollouts.
            seed: the seed of the run.
            demonstrations: for PPO-ptx; used only with `ptx_coefficient`.
            max_new_tokens: limit of the length of an answer; None: the longest of each batch.
            score_deviation: standard deviation of the reward model's scores, if it is known; the penalty of a
                missing end, unless the section sets it.
            combined: the rule of a combined reward.

        Raises:
            ConfigError: if `ptx_coefficient` is set and there are no demonstrations.
        """
        self.models = models
        self._section = section
        self._temperature = temperature
        self._seed = seed
        self._max_new_tokens = max_new_tokens
        self._kl_coefficient = section.kl_coefficient
        """β of the next update, unless a schedule says it."""
        self._combined = combined or CombinedSection()
        self.multiplier = self._combined.multiplier
        """λ of a constrained reward, for the next update."""
        self.scale = ScoreScale()
        """Mean and deviation of all scores so far; stays empty without `normalise_scores`."""
        self._has_warned_of_clip = False
        self.missing_eos_penalty = missing_eos.of_settings(section)
        """Penalty of a missing end; None until the first batch determines it."""
        if self.missing_eos_penalty is None and score_deviation is not None:
            self._set_missing_eos_penalty(score_deviation, "that the reward model was trained with")
        if section.ptx_coefficient and not demonstrations:
            raise ConfigError(
                "ppo.ptx_coefficient",
                got="no demonstration that fits the model",
                allowed="0, or demonstrations in [data]",
            )
        self._stream = DemonstrationStream(demonstrations, seed=seed) if section.ptx_coefficient else None

    @property
    def score_unit(self) -> float:
        """The score that counts as 1 in the reward: the deviation of all scores with `normalise_scores`."""
        return self.scale.deviation if self._section.normalise_scores else 1.0

    def kl_coefficient(self, update: int) -> float:
        """Return β of the next update, whose number counts from 0."""
        if self._section.kl_control == "linear":
            return objective.scheduled_coefficient(update, self._section)
        return self._kl_coefficient

    def learn(
        self, rollouts: RolloutBatch, *, update: int, on_phase: Callable[[str], None] = lambda name: None
    ) -> dict[str, float]:
        """Do one update; return its figures, including β, the same on every rank.

        Args:
            rollouts: the batch.
            update: updates done before; determines learning rates and the order of mini-batches.
            on_phase: called with `prepare` and `train` when these phases begin.

        Raises:
            NotFinite: if too many optimizer steps in a row were skipped, or a weight is not finite.
        """
        section, beta = self._section, self.kl_coefficient(update)
        on_phase("prepare")
        rollouts = self._combine(rollouts)
        if section.normalise_scores:
            self.scale = self.scale.updated(rollouts.scores_B.tolist())
        if self.missing_eos_penalty is None:
            self._set_missing_eos_penalty(missing_eos.of_scores(rollouts.scores_B), "of the first batch")
        prepared, figures = step.prepare(
            self.models,
            rollouts,
            section.model_copy(update={"missing_eos_penalty": self.missing_eos_penalty}),
            kl_coefficient=beta,
            temperature=self._temperature,
            scale=self.scale,
            max_new_tokens=self._max_new_tokens,
        )
        self._warn_of_clip(rollouts)
        figures["kl_coefficient"] = beta
        figures |= self._term_figures(rollouts)
        on_phase("train")
        figures |= step.optimise(
            self.models,
            prepared,
            section,
            temperature=self._temperature,
            seed=self._seed,
            update=update,
            demonstrations=self._stream,
        )
        if not prepared.learned and self.models.group.is_first:
            reason = "every answer was cut off, and ppo.mask_cut_off leaves those out"
            if section.loss in OF_PAIRS:
                reason = "no group has two answers of different rewards that can be compared"
            logger.warning("update %d has no step: %s", update + 1, reason)
        self.models.check_weights()
        is_moving = update >= section.critic_warmup_updates
        if section.kl_control == "adaptive" and is_moving and math.isfinite(figures["kl"]):
            self._kl_coefficient = objective.adapted_coefficient(
                beta,
                divergence=figures["kl"],
                target=section.kl_target,
                horizon=section.kl_horizon,
                episodes=len(rollouts.sequences),
            )
        return figures

    def _combine(self, rollouts: RolloutBatch) -> RolloutBatch:
        """Return rollouts with scores by the present λ, if it is adapted; services know only the first."""
        combined = self._combined
        if not combined.is_adaptive or not combined.terms.keys() <= rollouts.terms.keys():
            return rollouts
        rows = zip(*(rollouts.terms[name].tolist() for name in combined.terms), strict=True)
        scores = [
            combined.score(dict(zip(combined.terms, row, strict=True)), multiplier=self.multiplier)
            for row in rows
        ]
        return replace(rollouts, scores_B=rollouts.scores_B.new_tensor(scores))

    def _warn_of_clip(self, rollouts: RolloutBatch) -> None:
        """Warn once if many scores are beyond the clip: answers whose scores are there count as equal."""
        if self._has_warned_of_clip or not self.models.group.is_first:
            return
        section = self._section
        beyond = objective.scaled_scores(rollouts.scores_B, section, self.scale).abs() > section.score_clip
        share = float(beyond.float().mean())
        if share <= _WARNED_SHARE:
            return
        self._has_warned_of_clip = True
        logger.warning(
            "%.0f%% of the scores, which are %.3g to %.3g, are beyond ppo.score_clip = %g: differences among "
            "them teach nothing; raise ppo.score_clip, scale the reward, or set ppo.normalise_scores = true",
            *(100 * share, rollouts.scores_B.min(), rollouts.scores_B.max(), section.score_clip),
        )

    def _term_figures(self, rollouts: RolloutBatch) -> dict[str, float]:
        """Return the mean of each term, and λ if it is adapted, which becomes that of the next update."""
        figures = {f"term_{name}": float(scores_B.mean()) for name, scores_B in rollouts.terms.items()}
        constrained = f"term_{self._combined.constrained}"
        if self._combined.is_adaptive and constrained in figures:
            figures["reward_multiplier"] = self.multiplier
            self.multiplier = self._combined.adapted(self.multiplier, mean=figures[constrained])
        return figures

    def _set_missing_eos_penalty(self, deviation: float | None, whose: str) -> None:
        self.missing_eos_penalty = deviation
        if deviation is not None and self.models.group.is_first:
            logger.info(
                "missing_eos_penalty is %.3g, the standard deviation of the scores %s", deviation, whose
            )

    def state(self) -> dict[str, object]:
        """Return the state that a resumed run needs in addition to the tensors."""
        return {
            "missing_eos_penalty": self.missing_eos_penalty,
            "kl_coefficient": self._kl_coefficient,
            "score_scale": self.scale.to_json(),
            "ptx_cursor": self._stream.cursor if self._stream else 0,
            "adapter": asdict(self.models.adapter) if self.models.adapter else None,
            **({"reward_multiplier": self.multiplier} if self._combined.is_adaptive else {}),
        }

    def load_state(self, state: Mapping[str, object]) -> None:
        """Restore what `state` returned. A β that does not adapt and a fixed penalty come from the
        configuration.

        Raises:
            CorruptCheckpoint: if a value is missing or invalid.
            ConfigError: if checkpoint and configuration differ in having an adapter, its kind or its base.
        """
        self._check_adapter(state.get("adapter"))
        try:
            if self._section.kl_control == "adaptive":
                self._kl_coefficient = float(str(state["kl_coefficient"]))
            if self._combined.is_adaptive:
                self.multiplier = float(str(state.get("reward_multiplier", self.multiplier)))
            self.scale = ScoreScale.from_json(state["score_scale"])
            penalty = state.get("missing_eos_penalty")
            if penalty is not None and missing_eos.of_settings(self._section) is None:
                self.missing_eos_penalty = float(str(penalty))
            if self._stream is not None:
                self._stream.cursor = int(str(state["ptx_cursor"]))
        except (KeyError, ValueError) as error:
            raise CorruptCheckpoint(f"the checkpoint has an invalid learning state: {error!r}") from error

    def _check_adapter(self, theirs: object) -> None:
        """Check that the checkpoint's adapter has the kind and the base that the run is configured with."""
        ours = self.models.adapter
        allowed = "the settings that the run's checkpoints were written with, or another name for the run"
        if not isinstance(theirs, Mapping) or ours is None:
            if bool(theirs) != bool(ours):
                got = (
                    "0, but the checkpoints hold adapters"
                    if theirs
                    else "above 0, but the checkpoints hold whole models"
                )
                raise ConfigError("ppo.lora.rank", got=got, allowed=allowed)
            return
        different = adapters.differences(theirs["config"], ours.config)
        if different:
            raise ConfigError("ppo.lora", got="; ".join(different), allowed=allowed)
        if theirs["base_fingerprint"] != ours.base_fingerprint:
            base = theirs["config"].get("base_model_name_or_path")
            raise ConfigError(
                "policy.path",
                got="base weights that differ from those of the checkpoints' adapters",
                allowed=f"{base!r}, unchanged",
            )
