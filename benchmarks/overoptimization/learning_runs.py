"""Runs of RLOO against reward models of several sizes and label counts, without a guard and with one."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.one_process import Loop
from benchmarks.overoptimization import proxies
from benchmarks.overoptimization.proxies import GUARDED_TASKS, GridRun
from benchmarks.parcel_task import learning, reward_models, store
from benchmarks.parcel_task.answers import Answer
from benchmarks.parcel_task.lab import POLICY, Lab, Size
from benchmarks.parcel_task.learning import Curve
from fairlead.config import RunConfig
from fairlead.nn.loading import load_tokenizer
from fairlead.types import FinishReason, Outcome

UPDATES = 40
SETTINGS: Mapping[str, object] = {
    "ppo.estimator": "rloo",
    "ppo.num_samples": 4,
    "ppo.batch_size": 128,
    # As many steps as in the quickstart, of half as many answers.
    "ppo.mini_batch_size": 32,
    "ppo.kl_coefficient": 0.0,
    "policy.max_slots": 128,
    "guard.action": "warn",
    # About four updates: a third of the prompts of an update was in the first one, and only those have pairs.
    "guard.fresh_label_pairs": 150,
}
PLAIN = "no guard"
KL = "KL penalty, β = 0.1"
ENSEMBLE = "ensemble, mean − std"
LENGTH = "length control"
FRESH = "half of the labels fresh"
GUARDS = (KL, ENSEMBLE, LENGTH, FRESH)
FRESH_UPDATES = (8, 16, 24, 32)
"""Updates after which answers are labelled and the reward model is trained again."""


@dataclass(frozen=True)
class LearningRun:
    """A run with one reward model, guard and seed."""

    lab: Lab
    size: Size
    tasks: int
    guard: str
    seed: int

    def __str__(self) -> str:
        return f"RLOO, reward model {self.size}, {self.tasks} tasks, {self.guard}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Name of its file."""
        guard = "".join(letter for letter in self.guard.lower() if letter.isalnum())
        return f"rloo-{self.size.name}-{self.tasks}-{guard}-seed{self.seed}"

    @property
    def kind(self) -> tuple[str, int, str]:
        """What fails for every seed if it fails for one."""
        return self.size.name, self.tasks, self.guard

    def key(self) -> str:
        """Return the digest of what its figures depend on, but not of our code."""
        return store.key({"run": self.name, "settings": dict(SETTINGS), "updates": updates(self.lab)})

    def measure(self) -> Curve:
        """Train the reward model and run."""
        model = self._reward_model()
        with configured(self.lab, model, self.seed, self._changed()) as config:
            if self.guard == LENGTH:
                return learning.learn(config, change=_length_control(self.lab, model))
            if self.guard == FRESH:
                return learning.learn(config, watch=_Fresh(self.lab, self.seed, config.folder.root.parent))
            return learning.learn(config, guarded=self.guard == PLAIN)

    def _reward_model(self) -> Path:
        if self.guard == ENSEMBLE:
            return proxies.ensemble(self.lab, self.tasks, self.seed)
        tasks = self.tasks // 2 if self.guard == FRESH else self.tasks
        return proxies.labelled(self.lab, GridRun(self.lab, self.size, tasks, self.seed))

    def _changed(self) -> Mapping[str, object]:
        changed: dict[str, Mapping[str, object]] = {
            KL: {"ppo.kl_coefficient": 0.1},
            ENSEMBLE: {"reward.ensemble": "mean_minus_std"},
        }
        return changed.get(self.guard, {})


def runs(lab: Lab, sizes: Sequence[Size], tasks: Sequence[int], seed: int) -> list[LearningRun]:
    """Return the runs of a seed: every size and label count without a guard, then the guards."""
    return [
        *(LearningRun(lab, size, count, PLAIN, seed) for size in sizes for count in tasks),
        *(LearningRun(lab, POLICY, GUARDED_TASKS, guard, seed) for guard in GUARDS),
    ]


def updates(lab: Lab) -> int:
    """Return the number of updates of a run."""
    return 4 if lab.quick else UPDATES


@contextmanager
def configured(lab: Lab, reward_model: Path, seed: int, changed: Mapping[str, object]) -> Iterator[RunConfig]:
    """Yield the configuration of a run in a temporary folder; a quick lab changes sizes and updates."""
    tiny = {"ppo.batch_size": 16, "ppo.mini_batch_size": 8, "ppo.updates": updates(lab)} if lab.quick else {}
    with tempfile.TemporaryDirectory() as folder:
        yield lab.config(
            {
                "name": "run",
                "runs": folder,
                "seed": seed,
                "policy.path": lab.policy(),
                "reference.path": lab.policy(),
                "reward.path": reward_model,
                "data.prompts": lab.prompts(),
                # None of them is held out: those that are, are not in the file.
                "data.heldout_fraction": 1e-9,
                "data.fresh_rankings": Path(folder) / "fresh.jsonl",
                "ppo.updates": updates(lab),
                **SETTINGS,
                **changed,
                **tiny,
            }
        )


def _length_control(lab: Lab, model: Path) -> learning.Change:
    """Return a change of scores: without what length explains of those of the policy at the start."""
    answers = proxies.heldout(lab)
    words = proxies.lengths(answers)
    slope = proxies.slope_of_length(reward_models.scores(model, answers), words)
    tokenizer = load_tokenizer(str(lab.policy()))

    def change(outcomes: list[Outcome], update: int) -> list[Outcome]:
        found = []
        for outcome in outcomes:
            rollouts = []
            for each in outcome.rollouts:
                words = _words(tokenizer, each.completion.token_ids)
                rollouts.append(dataclasses.replace(each, score=each.score - slope * words))
            found.append(dataclasses.replace(outcome, result=tuple(rollouts)))
        return found

    return change


def _words(tokenizer: Any, ids: Sequence[int]) -> int:  # noqa: ANN401 - of transformers
    return len(str(tokenizer.decode(ids, skip_special_tokens=True)).split())


class _Fresh:
    """Lets people label answers of the moment, and trains the reward model again."""

    def __init__(self, lab: Lab, seed: int, folder: Path) -> None:
        self._lab, self._seed, self._folder = lab, seed, folder
        self._rows = proxies.people_labels(lab, GUARDED_TASKS // 2, seed)
        self._rng = random.Random(f"{seed} fresh people")

    def __call__(self, loop: Loop, outcomes: Sequence[Outcome], number: int) -> None:
        update = number + 1
        if update not in FRESH_UPDATES:
            return
        done = FRESH_UPDATES.index(update) + 1
        wanted = GUARDED_TASKS // 2 + round(done / len(FRESH_UPDATES) * (GUARDED_TASKS - GUARDED_TASKS // 2))
        for outcome in outcomes:
            answers = {
                Answer(
                    loop.text(rollout.completion.token_ids),
                    rollout.completion.finish_reason is FinishReason.STOP,
                )
                for rollout in outcome.rollouts
            }
            if len(self._rows) < wanted and len({answer.text for answer in answers}) == len(answers) > 1:
                ordered = sorted(answers, key=lambda answer: answer.text)
                self._rows.append(reward_models.ranking(outcome.task.prompt_text, ordered, rng=self._rng))
        model = reward_models.trained(
            self._rows, self._lab.policy(), self._folder / f"reward-{update}", seed=self._seed
        )
        loop.use_reward_model(str(model))
