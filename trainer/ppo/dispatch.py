"""Step 1 of a rollout's life: which prompt is task n, and how it is to be answered.

A task follows from the run's seed, its prompts and its number alone, so a task that is sent again is the
same task. Knows no queue.
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
    """Prompts in a new permutation every epoch."""

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
            prompts: what is asked.
            tokenizer: the policy's.
            sampling: how answers are drawn.
            seed: the run's.

        Raises:
            DataError: a prompt of messages, and there is no chat template or the template refuses it.
        """
        check_prompts(tokenizer, prompts)
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._seed = seed
        self._epoch, self._order = -1, list[int]()

    @property
    def longest_bytes(self) -> int:
        """Text of the longest prompt."""
        return max(len(str(prompt).encode()) for prompt in self._prompts)

    def task(self, task_id: int, *, min_version: WeightVersion) -> PromptTask:
        """Task number `task_id`, to be answered by weights at least as new as `min_version`."""
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
        """Several tasks, in the order asked for."""
        return [self.task(task_id, min_version=min_version) for task_id in task_ids]
