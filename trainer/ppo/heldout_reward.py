"""A second reward model, which PPO does not maximise: it judges the answers of evaluations.

What the first model wrongly rewards, and PPO finds, another one trained on other labels or from another seed
rewards less (Gao et al. 2023; Coste et al. 2023). Computed in the trainer, without a service.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fairlead.config import RunConfig
from fairlead.config.base import ComputeSection
from fairlead.data.chat import Chat, Prompt
from fairlead.data.encoding import encode_answer
from fairlead.errors import ModelLoadError
from fairlead.nn.ensemble import RewardEnsemble, member_paths
from fairlead.nn.loading import load_tokenizer, max_sequence_tokens
from fairlead.nn.reward_model import load_reward_model
from fairlead.types import Message
from trainer.sequences import TokenSequence, overhead_tokens, pack, pad


class HeldoutReward:
    """The reward model at `evaluation.reward_model`, or the mean of an ensemble."""

    def __init__(self, config: RunConfig) -> None:
        """Load it to the device of PPO.

        Raises:
            ModelLoadError: if it cannot be loaded, or is an encoder.
        """
        path = config.evaluation.reward_model
        section = ComputeSection(device=config.ppo.device)
        members = tuple(load_reward_model(member, section) for member in member_paths(path))
        if any(member.is_encoder for member in members):
            raise ModelLoadError(
                f"evaluation.reward_model: {path!r} is an encoder; give a sequence-classification model made "
                "from a causal model"
            )
        self._model = RewardEnsemble(members)
        self._tokenizer = load_tokenizer(member_paths(path)[0])
        # As the reward service does for models that others trained.
        self._as_chat = not members[0].is_ours and bool(self._tokenizer.chat_template)
        self._limit = max_sequence_tokens(members[0].model, 0)
        self._max_tokens = config.ppo.max_micro_batch_tokens

    @torch.inference_mode()
    def scores(self, answers: Sequence[tuple[Prompt, str]]) -> list[float]:
        """Return the score of each answer, read to its end; too long a prompt loses its beginning."""
        sequences = [TokenSequence(self._ids(prompt, text), 1) for prompt, text in answers]
        found = [0.0] * len(sequences)
        lengths = [len(sequence.token_ids) for sequence in sequences]
        device = self._model.device
        for group in pack(lengths, max_tokens=self._max_tokens, overhead=overhead_tokens(device)):
            padded = pad([sequences[index] for index in group], device)
            scores_B = self._model.scores(padded.tokens_BT, padded.mask_BT.sum(1))
            for index, score in zip(group, scores_B.tolist(), strict=True):
                found[index] = score
        return found

    def _ids(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        asked = prompt
        if self._as_chat and not isinstance(prompt, Chat):
            asked = Chat((Message("user", prompt),))
        before, answer = encode_answer(self._tokenizer, asked, text)
        return (*before, *answer)[-self._limit :]
