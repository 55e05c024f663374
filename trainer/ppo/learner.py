"""What learns from one rollout batch after the other, and what it must remember from one to the next.

Between the trainer's life and the pure parts of an update: holds β, the scale of scores and the place in the
demonstrations of PPO-ptx, all of them part of the checkpoint. Knows no queue and no versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from transformers import PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.config.training import PpoSection
from fairlead.data.records import load_demonstrations
from fairlead.errors import ConfigError, CorruptCheckpoint
from fairlead.nn import adapters
from fairlead.nn.loading import max_sequence_tokens
from trainer.demonstrations import encode
from trainer.ppo import actor_critic, objective, step
from trainer.ppo.actor_critic import ActorCritic
from trainer.ppo.batch import RolloutBatch
from trainer.ppo.ptx import DemonstrationStream
from trainer.ppo.score_scale import ScoreScale
from trainer.sequences import TokenSequence


def load(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Learner:
    """A learner that has learnt nothing yet, from the models and the demonstrations that a run names.

    Raises:
        ModelLoadError: if policy or reward model cannot be loaded.
        ConfigError, DataError: for bad demonstrations.
    """
    section = config.ppo
    reward_model = config.reward.path or str(config.folder.reward_model)
    models = actor_critic.load(
        config.policy.path or str(config.folder.sft_model),
        section,
        critic_path=reward_model if section.critic_init == "reward_model" else None,
        seed=config.seed,
    )
    sequences: list[TokenSequence] = []
    if section.ptx_coefficient:
        limit = max_sequence_tokens(models.policy, 0)
        sequences, _ = encode(load_demonstrations(config).train, tokenizer, max_tokens=limit)
    return Learner(
        models,
        section,
        temperature=config.sampling.temperature,
        seed=config.seed,
        demonstrations=sequences,
    )


class Learner:
    """Policy and critic under the recipe of `[ppo]`."""

    def __init__(
        self,
        models: ActorCritic,
        section: PpoSection,
        *,
        temperature: float,
        seed: int,
        demonstrations: Sequence[TokenSequence] = (),
    ) -> None:
        """
        Args:
            models: what is trained.
            section: the recipe.
            temperature: that rollouts are sampled at.
            seed: the run's.
            demonstrations: for PPO-ptx; not read without `ptx_coefficient`.

        Raises:
            ConfigError: if PPO-ptx is asked for and there are no demonstrations.
        """
        self.models, self._section = models, section
        self._temperature, self._seed = temperature, seed
        self.kl_coefficient = section.kl_coefficient
        """β of the next update."""
        self.scale = ScoreScale()
        """Of all scores so far; stays empty without `normalise_scores`."""
        if section.ptx_coefficient and not demonstrations:
            raise ConfigError(
                "ppo.ptx_coefficient",
                got="no demonstration that fits the model",
                allowed="0, or demonstrations in [data]",
            )
        self._stream = DemonstrationStream(demonstrations, seed=seed) if section.ptx_coefficient else None

    def learn(
        self, rollouts: RolloutBatch, *, update: int, on_phase: Callable[[str], None] = lambda name: None
    ) -> dict[str, float]:
        """One update; returns its figures, β among them.

        Args:
            rollouts: the batch.
            update: updates done before; decides learning rates and the order of mini-batches.
            on_phase: told `prepare` and `train` when they begin.
        """
        section = self._section
        on_phase("prepare")
        if section.normalise_scores:
            self.scale = self.scale.updated(rollouts.scores_B.tolist())
        prepared, figures = step.prepare(
            self.models,
            rollouts,
            section,
            kl_coefficient=self.kl_coefficient,
            temperature=self._temperature,
            scale=self.scale,
        )
        figures["kl_coefficient"] = self.kl_coefficient
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
        if section.kl_control == "adaptive":
            self.kl_coefficient = objective.adapted_coefficient(
                self.kl_coefficient,
                divergence=figures["kl"],
                target=section.kl_target,
                horizon=section.kl_horizon,
                episodes=len(rollouts.sequences),
            )
        return figures

    def state(self) -> dict[str, object]:
        """What a resumed run needs besides the tensors."""
        return {
            "kl_coefficient": self.kl_coefficient,
            "score_scale": self.scale.to_json(),
            "ptx_cursor": self._stream.cursor if self._stream else 0,
            "adapter": asdict(self.models.adapter) if self.models.adapter else None,
        }

    def load_state(self, state: Mapping[str, object]) -> None:
        """Takes over what `state` gave. A fixed β is the configuration's, whatever it was before.

        Raises:
            CorruptCheckpoint: if something is missing.
            ConfigError: if its tensors are an adapter's for another base or of another kind, or of none.
        """
        self._check_adapter(state.get("adapter"))
        try:
            if self._section.kl_control == "adaptive":
                self.kl_coefficient = float(str(state["kl_coefficient"]))
            self.scale = ScoreScale.from_json(state["score_scale"])
            if self._stream is not None:
                self._stream.cursor = int(str(state["ptx_cursor"]))
        except (KeyError, ValueError) as error:
            raise CorruptCheckpoint(f"the checkpoint's learning state: {error}") from error

    def _check_adapter(self, theirs: object) -> None:
        """An adapter means something with its own base and its own scale alone."""
        ours = self.models.adapter
        kept = "what the run's checkpoints were made with, or another name for the run"
        if not isinstance(theirs, Mapping) or ours is None:
            if bool(theirs) != bool(ours):
                got = (
                    "0, and the checkpoints hold adapters"
                    if theirs
                    else "above 0, and they hold whole models"
                )
                raise ConfigError("ppo.lora.rank", got=got, allowed=kept)
            return
        different = adapters.differences(theirs["config"], ours.config)
        if different:
            raise ConfigError("ppo.lora", got="; ".join(different), allowed=kept)
        if theirs["base_fingerprint"] != ours.base_fingerprint:
            base = theirs["config"].get("base_model_name_or_path")
            raise ConfigError(
                "policy.path", got="weights that the adapters were not made on", allowed=f"{base!r} as it was"
            )
