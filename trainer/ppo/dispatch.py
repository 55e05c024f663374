"""Step 1 of a rollout's life: the prompt of task n, and how its answer is sampled.

A task depends only on the run's seed, its prompts and its number, so a task that is sent again is the same
task. Knows nothing about the queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from fairlead.config.training import SamplingSection
from fairlead.data.chat import Chat, Prompt
from fairlead.data.encoding import check_prompts, encode_prompt
from fairlead.types import PromptTask, WeightVersion
from trainer import seeds


class PromptOrder:
    """The prompts of a run, in a new permutation every epoch."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        *,
        sampling: SamplingSection,
        seed: int,
    ) -> None:
        """
        Args:
            prompts: the prompts of the run.
            tokenizer: the tokenizer of the policy.
            sampling: how answers are sampled.
            seed: the seed of the run.

        Raises:
            DataError: for a conversation, if there is no chat template or the template refuses it.
        """
        check_prompts(tokenizer, prompts)
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._seed = seed
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
        )

    def tasks(self, task_ids: Iterable[int], *, min_version: WeightVersion) -> list[PromptTask]:
        """Return several tasks, in the given order."""
        return [self.task(task_id, min_version=min_version) for task_id in task_ids]
