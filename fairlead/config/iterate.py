"""The section `[iterate]`: how many rounds, what people rank in each, and when a round may continue."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.config.base import Section


class IterateSection(Section):
    """Rounds of sampling, judgments of people, reward model and PPO, by `fairlead iterate`. How many people
    judge a shared task, and the share of such tasks, are `feedback.project.overlap` and `shared_share`.
    """

    rounds: int = Field(default=2, ge=1, le=1_000)
    """Number of rounds. A higher number continues an earlier run."""
    tasks: int = Field(default=200, ge=1, le=1_000_000)
    """Prompts whose answers are ranked in a round, drawn at random from `data.prompts`; all if there are
    fewer."""
    repeat_prompts: bool = False
    """Draw prompts with replacement, so that one may occur in several tasks of a round with new answers; for
    a small set of prompts."""
    answers: int = Field(default=4, ge=2, le=16)
    """Answers of the policy that are ranked together. InstructGPT had 4 to 9."""
    wanted_judgments: int = Field(default=0, ge=0)
    """Judgments, without those of held-out people, after which a round continues; 0: one for each task. It
    also continues when no task is open."""
    min_agreement: float = Field(default=0.6, ge=0, le=1)
    """Stop if people agree on less than this share of the pairs of a round's shared tasks, with the whole 95%
    interval below it."""
    gate: Literal["stop", "warn"] = "stop"
    """What to do if a round's reward model is less accurate than the one before on pairs of held-out people,
    or of held-out prompts if there are no such people, or if people agree too little: `stop` ends the
    command, which then asks for more judgments, `warn` logs it and continues."""
    reward_model_start: Literal["sft", "previous"] = "sft"
    """What the reward model is trained from, from the second round on: the fine-tuned model, or the body of
    the round before's reward model, which needs fewer epochs. An ensemble always starts from the fine-tuned
    model."""
    reward_model_epochs: int = Field(default=0, ge=0, le=1_000)
    """`reward_model.epochs` from the second round on; 0: the same number."""
    wait_hours: float = Field(default=72.0, gt=0)
    """How long to wait without any new judgment. The same command continues."""
    fresh_per_update: int = Field(default=4, ge=0, le=1_000)
    """Answers of each PPO update that people compare with earlier ones while PPO runs, which the guard reads.
    It needs `observe.rollout_samples`; 0: none."""
