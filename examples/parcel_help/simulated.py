"""Simulated labelers as the loop of rounds calls them: they rank each round's tasks at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import fmean

from examples.parcel_help import gold, labelers
from examples.parcel_help.fresh_labels import labelling
from fairlead.config import RunConfig
from fairlead.local.serving import GeneratedAnswer
from fairlead.rounds.labelers import Ranking, Task

NUM_TASKS = 800
"""Number of prompts whose answers are ranked in a round."""


class SimulatedLabelers:
    """Rank by the gold reward, with noise."""

    def __init__(self, *, seed: int) -> None:
        self._seed = seed
        self._tasks: dict[int, Sequence[Task]] = {}

    def give(self, number: int, tasks: Sequence[Task]) -> None:
        """Take the tasks of a round."""
        self._tasks[number] = tasks

    def wait(self, number: int) -> Sequence[Ranking]:
        """Rank the answers to every task.

        Answers that were cut off are left out, since the reward model reads whole ones. If an answer occurs
        more than once its ranks are averaged, which may result in a tie.
        """
        rng = random.Random(f"{self._seed} labelers {number}")
        ranked = [_ranked([a for a in answers if a.ended], rng) for answers in self._tasks[number]]
        return [ranking for ranking in ranked if len(ranking["responses"]) > 1]

    def following(self, config: RunConfig) -> AbstractContextManager[None]:
        """Label the answers of every update while PPO runs."""
        rankings = Path(config.data.fresh_rankings)
        return labelling(config.folder.rollout_samples, rankings, seed=config.seed)


def _ranked(answers: Sequence[GeneratedAnswer], rng: random.Random) -> Ranking:
    gold_rewards = [gold.reward(str(answer.prompt), answer.text, ended=True) for answer in answers]
    places: dict[str, list[int]] = {}
    for place, index in enumerate(labelers.rank(gold_rewards, rng=rng), start=1):
        places.setdefault(answers[index].text, []).append(place)
    responses = [{"text": text, "rank": fmean(found)} for text, found in places.items()]
    return {"prompt": str(answers[0].prompt) if answers else "", "responses": responses}
