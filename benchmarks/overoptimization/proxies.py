"""Best-of-n by reward models of several sizes, label counts and seeds, and by guarded ones.

One sample of answers of the policy at the start serves all of them. Labels of people come from answers to
other prompts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parcel_task import reward_models, store
from benchmarks.parcel_task.answers import Answer, Answers, golds
from benchmarks.parcel_task.best_of import BestOf, best_of
from benchmarks.parcel_task.lab import POLICY, Lab, Size
from fairlead.nn.ensemble import member_paths

TASK_ANSWERS = 4
"""Answers that a person ranks together."""
MEMBERS = 4
"""Reward models of an ensemble."""
FRESH_N = 16
"""Fresh labels compare answers that are the best of as many by the first reward model."""
GUARDED_TASKS = 100
"""Labelled tasks of reward models with guards."""
SINGLE, TWICE, MEAN, MIN, MEAN_MINUS_STD, LENGTH, FRESH = (
    *("one model", "twice the labels", "ensemble, mean", "ensemble, min"),
    *("ensemble, mean − std", "length control", "half of the labels fresh"),
)
Scores = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Curves:
    """What best-of-n gives by one or more proxies."""

    curves: Mapping[str, BestOf]
    """By the name of the proxy."""
    accuracy: Mapping[str, float]
    """Share of pairs of answers to held-out prompts that the proxy orders as gold does."""

    @staticmethod
    def of(kept: Mapping[str, Any]) -> Curves:
        """Return what a file holds."""
        return Curves({name: BestOf.of(one) for name, one in kept["curves"].items()}, kept["accuracy"])

    def __str__(self) -> str:
        return "; ".join(
            f"{name}: accuracy {self.accuracy[name]:.3f}, gold "
            + " → ".join(f"{gain:+.2f}" for gain in one.gold_gains.mean(axis=0)[[4, -1]])
            for name, one in self.curves.items()
        )


@dataclass(frozen=True)
class GridRun:
    """A reward model of a size, trained on a number of labelled tasks."""

    lab: Lab
    size: Size
    tasks: int
    seed: int

    def __str__(self) -> str:
        return f"reward model {self.size}, {self.tasks} tasks, seed {self.seed}"

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"grid-{self.size.name}-{self.tasks}-seed{self.seed}"

    @property
    def kind(self) -> tuple[str, int]:
        """What fails for every seed if it fails for one."""
        return self.size.name, self.tasks

    def key(self) -> str:
        """Return the digest of what its figures depend on, but not of our code."""
        return store.key({"run": self.name, "samples": samples(self.lab)})

    def measure(self) -> Curves:
        """Train and score."""
        return compared(self.lab, {SINGLE: scores(self.lab, labelled(self.lab, self))})


@dataclass(frozen=True)
class GuardRun:
    """Ways to make best-of-n safer with the same labels; and twice as many."""

    lab: Lab
    seed: int

    def __str__(self) -> str:
        return f"guards, seed {self.seed}"

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"guards-seed{self.seed}"

    @property
    def kind(self) -> str:
        """What fails for every seed if it fails for one."""
        return "guards"

    def key(self) -> str:
        """Return the digest of what its figures depend on, but not of our code."""
        return store.key({"run": self.name, "samples": samples(self.lab), "tasks": GUARDED_TASKS})

    def measure(self) -> Curves:
        """Train and score."""
        lab = self.lab
        paths = member_paths(str(ensemble(lab, GUARDED_TASKS, self.seed)))
        members = [centred(scores(lab, Path(path))) for path in paths]
        twice = GridRun(lab, POLICY, 2 * GUARDED_TASKS, self.seed)
        return compared(
            lab,
            {
                SINGLE: members[0],
                TWICE: scores(lab, labelled(lab, twice)),
                MEAN: combined(members, lambda found: found.mean(axis=0)),
                MIN: combined(members, lambda found: found.min(axis=0)),
                MEAN_MINUS_STD: combined(members, lambda found: found.mean(axis=0) - found.std(axis=0)),
                LENGTH: without_length(members[0], lengths(heldout(lab))),
                FRESH: scores(lab, fresh(lab, self.seed)),
            },
        )


def samples(lab: Lab) -> int:
    """Return how many answers to each held-out prompt are drawn."""
    return 32 if lab.quick else 512


def heldout(lab: Lab) -> Answers:
    """Return the answers that best-of-n chooses from."""
    return lab.heldout_answers(samples(lab))


def known(lab: Lab) -> Answers:
    """Return the answers that people label."""
    return lab.known_answers(8 if lab.quick else 64)


def scores(lab: Lab, model: Path) -> dict[str, list[float]]:
    """Return the scores of all answers that best-of-n chooses from."""
    return reward_models.scores(model, heldout(lab))


def people_labels(lab: Lab, tasks: int, seed: int) -> list[dict[str, Any]]:
    """Return rankings of people; those of fewer tasks are the first of those of more."""
    rng = random.Random(f"{seed} labels")
    drawn = reward_models.tasks(known(lab), tasks, size=TASK_ANSWERS, rng=rng)
    judge = random.Random(f"{seed} people")
    return [reward_models.ranking(prompt, answers, rng=judge) for prompt, answers in drawn]


def labelled(lab: Lab, run: GridRun) -> Path:
    """Return the reward model of a run."""
    return reward_models.trained(
        people_labels(lab, run.tasks, run.seed),
        lab.policy(run.size),
        lab.folder / "models" / run.name,
        seed=run.seed,
    )


def ensemble(lab: Lab, tasks: int, seed: int) -> Path:
    """Return an ensemble of the policy's size, whose members differ in head and order of the data."""
    return reward_models.trained(
        people_labels(lab, tasks, seed),
        lab.policy(),
        lab.folder / "models" / f"ensemble-{tasks}-seed{seed}",
        seed=seed,
        members=MEMBERS,
        demonstrations=lab.demonstrations(),
    )


def fresh(lab: Lab, seed: int) -> Path:
    """Return a reward model half of whose labels compare answers that it chose with the other half."""
    half = GridRun(lab, POLICY, GUARDED_TASKS // 2, seed)
    rows = people_labels(lab, half.tasks, seed)
    drawn = known(lab)
    found = reward_models.scores(labelled(lab, half), drawn)
    rng = random.Random(f"{seed} fresh")
    judge = random.Random(f"{seed} fresh people")
    while len(rows) < GUARDED_TASKS:
        prompt = rng.choice(list(drawn))
        size = 2 if lab.quick else FRESH_N
        places = rng.sample(range(len(drawn[prompt])), k=size * TASK_ANSWERS)
        groups = [places[start : start + size] for start in range(0, len(places), size)]
        best = {_best(group, found[prompt], drawn[prompt]) for group in groups}
        if len(best) > 1:
            rows.append(reward_models.ranking(prompt, sorted(best, key=str), rng=judge))
    folder = lab.folder / "models" / f"fresh-{GUARDED_TASKS}-seed{seed}"
    return reward_models.trained(rows, lab.policy(), folder, seed=seed)


def _best(places: Sequence[int], found: Sequence[float], answers: Sequence[Answer]) -> Answer:
    return answers[max(places, key=found.__getitem__)]


def compared(lab: Lab, proxies: Mapping[str, Scores]) -> Curves:
    """Return what best-of-n gives by each of some proxies."""
    answers = heldout(lab)
    gold, words = golds(answers), lengths(answers)
    return Curves(
        {name: best_of(found, gold, words) for name, found in proxies.items()},
        {name: ordered_as_gold(found, gold) for name, found in proxies.items()},
    )


def ordered_as_gold(found: Scores, gold: Scores) -> float:
    """Return the share of neighbouring answers with different gold that the proxy orders as gold does."""
    right, total = 0.0, 0
    for prompt, own in found.items():
        gap = np.diff(np.asarray(own))
        worth = np.diff(np.asarray(gold[prompt]))
        counts = worth != 0
        agrees = np.sign(gap[counts]) * np.sign(worth[counts])
        right += float(((agrees + 1) / 2).sum())
        total += int(counts.sum())
    return right / total


def lengths(answers: Answers) -> dict[str, list[float]]:
    """Return the number of words of each answer."""
    return {prompt: [float(len(each.text.split())) for each in own] for prompt, own in answers.items()}


def centred(found: Scores) -> Scores:
    """Return scores minus their mean over all answers, so that those of several models compare."""
    middle = float(np.mean([np.mean(own) for own in found.values()]))
    return {prompt: [score - middle for score in own] for prompt, own in found.items()}


def combined(members: Sequence[Scores], rule: Any) -> Scores:  # noqa: ANN401 - a function of arrays
    """Return one score for those of several models, by a rule over [M, N]."""
    return {
        prompt: [float(score) for score in rule(np.asarray([member[prompt] for member in members]))]
        for prompt in members[0]
    }


def slope_of_length(found: Scores, words: Scores) -> float:
    """Return the score per word, by a regression over all answers of a single one each."""
    x = np.concatenate([np.asarray(words[prompt]) - np.mean(words[prompt]) for prompt in found])
    y = np.concatenate([np.asarray(own) - np.mean(own) for own in found.values()])
    return float(x @ y / (x @ x))


def without_length(found: Scores, words: Scores) -> Scores:
    """Return scores without what length explains of them, by a line."""
    slope = slope_of_length(found, words)
    return {
        prompt: [
            score - slope * (count - float(np.mean(words[prompt])))
            for score, count in zip(own, words[prompt], strict=True)
        ]
        for prompt, own in found.items()
    }
