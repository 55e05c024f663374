"""Step 1 of a rollout's life: the prompt of task n, and how its answer is sampled.

A task depends only on the run's seed, its prompts and its number, so a task that is sent again is the same
task. Knows nothing about the queue.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from fairlead.config.sampling import SamplingSection
from fairlead.data.chat import Chat, Prompt
from fairlead.data.encoding import check_prompts, encode_prompt
from fairlead.errors import ConfigError
from fairlead.types import PromptTask, WeightVersion
from trainer import seeds

logger = logging.getLogger(__name__)

_SPECIAL_TOKENS = 8
"""More than any tokenizer adds to a plain prompt."""


class PromptOrder:
    """The prompts of a run, in a new permutation every epoch."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        *,
        sampling: SamplingSection,
        seed: int,
        num_samples: int = 1,
        context_tokens: int | None = None,
    ) -> None:
        """
        Args:
            prompts: the prompts of the run; those that leave no space for an answer are left out.
            tokenizer: the tokenizer of the policy.
            sampling: how answers are sampled.
            seed: the seed of the run.
            num_samples: answers per prompt.
            context_tokens: longest sequence of the policy, prompt and answer together; None for no limit.

        Raises:
            DataError: for a conversation, if there is no chat template or the template refuses it.
            ConfigError: if every prompt is too long.
        """
        check_prompts(tokenizer, prompts)
        self._prompts = prompts_that_fit(
            prompts, tokenizer, context_tokens=context_tokens, key="data.prompts"
        )
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._seed = seed
        self._num_samples = num_samples
        self._epoch = -1
        self._order: list[int] = []

    @property
    def longest_bytes(self) -> int:
        """Size of the longest prompt as text."""
        return max(len(str(prompt).encode()) for prompt in self._prompts)

    def task(self, task_id: int, *, min_version: WeightVersion) -> PromptTask:
        """Return task number `task_id`, to be answered by weights at least as new as `min_version`."""
        epoch, position = divmod(task_id, len(self._prompts))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = seeds.permutation(len(self._prompts), self._seed, "prompts", epoch)
        prompt = self._prompts[self._order[position]]
        return PromptTask(
            task_id=task_id,
            prompt_token_ids=tuple(encode_prompt(self._tokenizer, prompt)),
            prompt_text=str(prompt),
            sampling=self._sampling.params(seed=seeds.derive(self._seed, "task", task_id)),
            min_version=min_version,
            messages=prompt.messages if isinstance(prompt, Chat) else (),
            num_samples=self._num_samples,
        )

    def tasks(self, task_ids: Iterable[int], *, min_version: WeightVersion) -> list[PromptTask]:
        """Return several tasks, in the given order."""
        return [self.task(task_id, min_version=min_version) for task_id in task_ids]


def prompts_that_fit(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_tokens: int | None,
    key: str,
) -> Sequence[Prompt]:
    """Return the prompts that leave space for an answer, and log how many are left out.

    Args:
        prompts: as text or conversations.
        tokenizer: the tokenizer of the policy.
        context_tokens: longest sequence of the policy, prompt and answer together; None for no limit.
        key: the configuration key that names their source.

    Raises:
        ConfigError: if every prompt is too long.
    """
    if context_tokens is None:
        return prompts
    # A token is at least a byte, apart from the few special ones, so most prompts need no tokenizer here.
    short = context_tokens - _SPECIAL_TOKENS
    kept = [
        prompt
        for prompt in prompts
        if (isinstance(prompt, str) and len(prompt.encode()) <= short)
        or len(encode_prompt(tokenizer, prompt)) < context_tokens
    ]
    if not kept:
        raise ConfigError(
            key,
            got=f"{len(prompts)} prompts, all of {context_tokens} tokens or more",
            allowed=f"prompts that leave space for an answer in the context of {context_tokens} tokens",
        )
    if len(kept) < len(prompts):
        logger.warning(
            "%s: left out %d of %d prompts: they leave no space for an answer in the context of %d tokens",
            *(key, len(prompts) - len(kept), len(prompts), context_tokens),
        )
    return kept
