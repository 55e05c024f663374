"""What the steps of a round do with models: sample, train a reward model, PPO, evaluate, score.

Each has files as its result and may run again. Answers and scores come from the policy and reward services.
Does not know who ranks, or what a good answer is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.config import RunConfig
from fairlead.config.training import OF_PAIRS, PpoSection
from fairlead.data.chat import Prompt, question
from fairlead.data.records import is_heldout
from fairlead.local import run as local_run
from fairlead.local.serving import score, serving
from fairlead.rounds.configuration import files_of, round_config
from fairlead.rounds.feedback_labelers import FeedbackLabelers
from fairlead.rounds.files import prompt_json, read_answers, write_answers, write_rows
from fairlead.rounds.sampling import TaskPlan, answer_evaluation, answer_tasks
from fairlead.rounds.training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The steps of all rounds."""

    config: RunConfig
    """The configuration of the whole run; its fine-tuned model is in its folder."""
    prompts: Sequence[Prompt]
    """Tasks and evaluation draw from them; some are held out by the run's seed."""
    plan: TaskPlan
    """What is ranked in a round."""
    labelers: FeedbackLabelers
    """Who ranks."""
    training: Training
    """Runs the training stages."""

    def sample(self) -> None:
        """Let the fine-tuned policy answer the tasks of the first round, which are given to the labelers, and
        the evaluation's prompts.
        """
        config, files = self.config, files_of(self.config)
        # A reward model is trained next.
        local_run.prepare(round_config(config, 0), ("reward_model",), self.training.standby)

        async def work() -> None:
            models = {"policy": config.folder.sft_model}
            async with serving(config, models, standby=self.training.standby) as addresses:
                address = addresses["policy"]
                await self._give_tasks(address, 0)
                answers = await answer_evaluation(config, address, self.prompts, number=0)
                write_answers(files.answers_sft, answers)

        asyncio.run(work())

    def reward_model(self, number: int) -> None:
        """Train the reward model of a round, on the rankings of this round and all before."""
        self.training.reward_model(round_config(self.config, number))

    def ppo(self, number: int) -> None:
        """Tune the policy of the round before for the reward model of this round; labelers rank its answers
        meanwhile, if they do.
        """
        config = round_config(self.config, number)
        with self.labelers.following(config):
            self.training.ppo(config)

    def evaluate(self, number: int, *, samples_next: bool) -> None:
        """Let the tuned policy answer, and the reward model score these answers, earlier ones and rankings.

        Args:
            number: number of the round, from 0.
            samples_next: whether the tuned policy first answers the tasks of the next round, which are given
                to the labelers.
        """
        config, files = round_config(self.config, number), files_of(self.config)
        if samples_next:
            # A reward model is trained next.
            following = round_config(self.config, number + 1)
            local_run.prepare(following, ("reward_model",), self.training.standby)

        async def work() -> None:
            models = {"policy": config.folder.policy_model, "reward": config.folder.reward_model}
            async with serving(config, models) as addresses:
                address = addresses["policy"]
                if samples_next:
                    await self._give_tasks(address, number + 1)
                answers = await answer_evaluation(config, address, self.prompts, number=number)
                write_answers(files.of_round(number, "answers"), answers)
                texts = self._to_score(number)
                scores = zip(texts, await score(addresses["reward"], texts), strict=True)
            rows = (
                {"prompt": prompt_json(prompt), "text": text, "score": value}
                for (prompt, text), value in scores
            )
            write_rows(files.of_round(number, "scores"), rows)

        asyncio.run(work())

    async def _give_tasks(self, address: str, number: int) -> None:
        """Let a policy answer the tasks of a round, and give them to the labelers at once.

        Answers that an interrupted command has written stay as they are: labelers may have seen them.
        """
        file = files_of(self.config).of_round(number, "tasks")
        if not file.exists():
            tasks = await answer_tasks(self.config, address, self.prompts, self.plan, number=number)
            write_answers(file, tasks)
        await asyncio.to_thread(self.labelers.give, number, read_answers(file))

    def _to_score(self, number: int) -> list[tuple[Prompt, str]]:
        """Return the (prompt, answer) pairs to score.

        These are evaluation answers of the fine-tuned policy and of the policies before and after this round,
        and held-out answers that were or will be ranked.
        """
        files = files_of(self.config)
        answers = list(itertools.chain(*read_answers(files.answers_sft)))
        for known in range(max(0, number - 1), number + 1):
            answers += itertools.chain(*read_answers(files.of_round(known, "answers")))
        for known in range(number + 2):
            if files.of_round(known, "tasks").exists():
                tasks = itertools.chain(*read_answers(files.of_round(known, "tasks")))
                answers += (answer for answer in tasks if is_heldout(self.config, question(answer.prompt)))
        return list(dict.fromkeys((answer.prompt, answer.text) for answer in answers))


def method_of(section: PpoSection) -> str:
    """Return what the learning stage is called."""
    if section.loss in OF_PAIRS:
        return "online DPO"
    return "PPO" if section.has_critic else f"learning with {section.estimator}"
