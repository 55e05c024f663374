"""The rounds of a run: sample → rank → reward model → PPO → evaluate, and again from the tuned policy.

Each step has files as its result and may run again. Answers and scores come from the policy and reward
services. Does not know who ranks, or what a good answer is.
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
from fairlead.rounds.files import prompt_json, read_answers, write_answers, write_rows
from fairlead.rounds.labelers import Labelers
from fairlead.rounds.sampling import TaskPlan, answer_evaluation, answer_tasks
from fairlead.rounds.steps import Steps
from fairlead.rounds.training import Training

STEPS_OF_A_ROUND = 4
"""Rank, reward model, PPO, evaluate; the first round has `sample` before them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The steps of all rounds."""

    config: RunConfig
    """The configuration of the whole run; its fine-tuned model is in its folder."""
    prompts: Sequence[Prompt]
    """Tasks and evaluation draw from them; some are held out by the run's seed."""
    plan: TaskPlan
    """What is ranked in a round."""
    labelers: Labelers
    """Who ranks."""
    training: Training
    """Runs the training stages."""

    def run(self, steps: Steps, *, num_rounds: int) -> None:
        """Run every step that is not done yet. More rounds than before continue an earlier run.

        Raises:
            FairleadError: a step failed; finished steps are kept.
        """
        plan = self.plan
        steps.run(
            "sample", f"generating answers, {plan.num_tasks} tasks × {plan.num_answers} answers", self.sample
        )
        for number in range(num_rounds):
            self._run_round(steps, number, last=number + 1 == num_rounds)

    def sample_again(self, number: int) -> None:
        """Let the policy of the round before answer the tasks of a round."""
        config, files = self.config, files_of(self.config)
        before = round_config(config, number - 1)

        async def work() -> None:
            async with serving(before, {"policy": before.folder.policy_model}) as addresses:
                tasks = await answer_tasks(
                    config, addresses["policy"], self.prompts, self.plan, number=number
                )
                write_answers(files.of_round(number, "tasks"), tasks)

        asyncio.run(work())

    def sample(self) -> None:
        """Let the fine-tuned policy answer the tasks of the first round and the evaluation's prompts."""
        config, files = self.config, files_of(self.config)
        # A reward model is trained next.
        local_run.prepare(round_config(config, 0), "reward_model", self.training.standby)

        async def work() -> None:
            models = {"policy": config.folder.sft_model}
            async with serving(config, models, standby=self.training.standby) as addresses:
                address = addresses["policy"]
                tasks = await answer_tasks(config, address, self.prompts, self.plan, number=0)
                write_answers(files.of_round(0, "tasks"), tasks)
                answers = await answer_evaluation(config, address, self.prompts, number=0)
                write_answers(files.answers_sft, answers)

        asyncio.run(work())

    def rank(self, number: int) -> None:
        """Give the tasks of a round to the labelers, wait for their rankings, and write a line with each."""
        files = files_of(self.config)
        self.labelers.give(number, read_answers(files.of_round(number, "tasks")))
        write_rows(files.of_round(number, "rankings"), self.labelers.wait(number))

    def reward_model(self, number: int) -> None:
        """Train the reward model of a round, on the rankings of this round and all before."""
        self.training.reward_model(round_config(self.config, number))

    def ppo(self, number: int) -> None:
        """Tune the policy of the round before for the reward model of this round."""
        self.training.ppo(round_config(self.config, number), self.labelers)

    def evaluate(self, number: int, *, samples_next: bool) -> None:
        """Let the tuned policy answer, and the reward model score these answers, earlier ones and rankings.

        Args:
            number: number of the round, from 0.
            samples_next: whether the tuned policy also answers the tasks of the next round.
        """
        config, files = round_config(self.config, number), files_of(self.config)
        if samples_next:
            # A reward model is trained next.
            following = round_config(self.config, number + 1)
            local_run.prepare(following, "reward_model", self.training.standby)

        async def work() -> None:
            models = {"policy": config.folder.policy_model, "reward": config.folder.reward_model}
            async with serving(config, models) as addresses:
                address = addresses["policy"]
                answers = await answer_evaluation(config, address, self.prompts, number=number)
                write_answers(files.of_round(number, "answers"), answers)
                if samples_next:
                    tasks = await answer_tasks(config, address, self.prompts, self.plan, number=number + 1)
                    write_answers(files.of_round(number + 1, "tasks"), tasks)
                texts = self._to_score(number)
                scores = zip(texts, await score(addresses["reward"], texts), strict=True)
            rows = (
                {"prompt": prompt_json(prompt), "text": text, "score": value}
                for (prompt, text), value in scores
            )
            write_rows(files.of_round(number, "scores"), rows)

        asyncio.run(work())

    def _run_round(self, steps: Steps, number: int, *, last: bool) -> None:
        suffix = f"-{number}" if number else ""
        ppo = self.config.ppo
        steps.run(f"rank{suffix}", "labelers rank the policy's answers", lambda: self.rank(number))
        steps.run(
            f"reward_model{suffix}",
            f"training the reward model on {'all rankings so far' if number else 'the rankings'}",
            lambda: self.reward_model(number),
        )
        steps.run(
            f"ppo{suffix}",
            f"{method_of(ppo)}, {ppo.updates} updates × {ppo.batch_size} answers, by gRPC",
            lambda: self.ppo(number),
        )
        steps.run(
            f"evaluate{suffix}" if last else f"evaluate_and_sample{suffix}",
            "evaluating the tuned policy",
            lambda: self.evaluate(number, samples_next=not last),
        )

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
