"""The rounds of `fairlead iterate`: those of `loop` with people who judge, a gate, and lineage.

sample → judgments → reward model → gate → PPO → evaluate. Each step runs once; an interrupted one runs again
as a whole. Every model is registered at the feedback service with what it was made from, so that forgetting a
person finds it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fairlead.config import RunConfig
from fairlead.config.saving import replace_text
from fairlead.data.judged import judged, newest
from fairlead.data.lines import Line
from fairlead.errors import CorruptData, StoppedByGate
from fairlead.judgments import Agreement, agreement
from fairlead.local.serving import score, serving
from fairlead.rounds import gate
from fairlead.rounds.configuration import files_of, round_config
from fairlead.rounds.feedback_labelers import FeedbackLabelers
from fairlead.rounds.files import prompt_from_json, read_answers, read_rows, write_rows
from fairlead.rounds.gate import GateReport, Pair
from fairlead.rounds.labelers import Ranking
from fairlead.rounds.loop import Loop, method_of
from fairlead.rounds.steps import Steps

logger = logging.getLogger(__name__)

STEPS_OF_A_ROUND = 6
"""Sample, judgments, reward model, gate, PPO, evaluate; fine-tuning is before all rounds."""
_MATTERS = ("seed", "model", "data", "sft", "reward_model", "ppo", "sampling", "evaluation")
_MATTERS_OF_ITERATE = ("tasks", "answers", "repeat_prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """The steps of all rounds."""

    loop: Loop
    """Samples, trains and evaluates; its labelers are those below."""
    labelers: FeedbackLabelers
    """Who judges."""
    show: Callable[[str], None]
    """Shows a line about a result."""

    def run(self, steps: Steps, *, num_rounds: int) -> None:
        """Run every step that is not done yet. More rounds than before continue an earlier run.

        Raises:
            StoppedByGate: a round must not continue.
            FairleadError: a step failed; finished steps are kept.
        """
        loop = self.loop
        steps.run("sft", "fine-tuning on the demonstrations", lambda: loop.training.sft(loop.config))
        for number in range(num_rounds):
            for name, title, body in self._steps(number):
                steps.run(f"{name}-{number}", f"round {number}: {title}", partial(body, number))

    def sample(self, number: int) -> None:
        """Let the newest policy answer the tasks of a round."""
        if number:
            self.loop.sample_again(number)
        else:
            self.loop.sample()

    def judge(self, number: int) -> None:
        """Hand the tasks over, wait for judgments, and write snapshots of them.

        Those of earlier rounds are made again: without what was erased since, and with what came late.

        Raises:
            StoppedByGate: people agree too little.
            FairleadError: as `FeedbackLabelers`.
        """
        files = files_of(self.loop.config)
        self.labelers.give(number, read_answers(files.of_round(number, "tasks")))
        self.labelers.wait(number)
        for known in range(number + 1):
            rankings, digest = self.labelers.ranked(known)
            heldout, heldout_digest = self.labelers.ranked(known, cohort="heldout")
            write_rows(files.of_round(known, "heldout"), heldout)
            write_rows(files.of_round(known, "snapshot"), [{"train": digest, "heldout": heldout_digest}])
            write_rows(files.of_round(known, "rankings"), rankings)
        # Of this round.
        self._check_agreement(number, [*rankings, *heldout])

    def reward_model(self, number: int) -> None:
        """Train a reward model on the snapshots of this round and all before, and register it."""
        self.loop.reward_model(number)
        config = self.loop.config
        snapshots = (
            read_rows(files_of(config).of_round(known, "snapshot"))[0] for known in range(number + 1)
        )
        made_from = [snapshot["train"] for snapshot in snapshots if snapshot["train"]]
        self._register("reward_model", round_config(config, number).folder.reward_model, made_from, number)

    def check(self, number: int) -> None:
        """Compare the reward model with the one before on pairs of this round's held-out people.

        Raises:
            StoppedByGate: it is measurably worse, and `iterate.gate` is `stop`.
        """
        config, files = self.loop.config, files_of(self.loop.config)
        trained: list[Ranking] = []
        for known in range(number + 1):
            trained += read_rows(files.of_round(known, "rankings"))
        groups = gate.measuring_pairs(read_rows(files.of_round(number, "heldout")), trained)
        new = self._scores(number, groups)
        before = self._scores(number - 1, groups) if number else None
        report = gate.compare(groups, new, before, seed=config.seed)
        replace_text(
            files.of_round(number, "gate").with_suffix(".json"), json.dumps(report.as_json(), indent=1) + "\n"
        )
        self._decide(number, report)

    def ppo(self, number: int) -> None:
        """Tune the policy while people judge its answers, and register it."""
        self.loop.ppo(number)
        config = round_config(self.loop.config, number)
        made_from = [model_digest(config.folder.reward_model)]
        if number:
            made_from.append(model_digest(round_config(self.loop.config, number - 1).folder.policy_model))
        self._register("policy", config.folder.policy_model, made_from, number)

    def evaluate(self, number: int) -> None:
        """Let the tuned policy answer, and the reward model score these answers and earlier ones."""
        self.loop.evaluate(number, samples_next=False)

    def _steps(self, number: int) -> Sequence[tuple[str, str, Callable[[int], None]]]:
        plan, ppo = self.loop.plan, self.loop.config.ppo
        return (
            ("sample", f"generating answers, {plan.num_tasks} tasks × {plan.num_answers}", self.sample),
            ("judgments", "people rank the answers", self.judge),
            ("reward_model", "training the reward model on all snapshots so far", self.reward_model),
            ("gate", "comparing the reward model with the one before", self.check),
            ("ppo", f"{method_of(ppo)}, {ppo.updates} updates × {ppo.batch_size} answers", self.ppo),
            ("evaluate", "evaluating the tuned policy", self.evaluate),
        )

    def _check_agreement(self, number: int, rankings: Sequence[Ranking]) -> None:
        found = agreement_of(rankings, seed=self.loop.config.seed)
        if found.rate is None:
            self.show(f"    no task of round {number} was judged by several people: agreement is unknown")
            return
        low, high = found.interval or (0.0, 1.0)
        text = f"people agree on {found.rate:.1%} of {found.compared} comparisons ({low:.1%} to {high:.1%})"
        self.show(f"    {text}")
        least = self.loop.config.iterate.min_agreement
        if high < least:
            self._stop(
                f"round {number}: {text}, iterate.min_agreement is {least:.1%}: look at guidelines and "
                "labelers; with more judgments the same command decides again"
            )

    def _decide(self, number: int, report: GateReport) -> None:
        self.show(f"    {report}")
        if not report.passes:
            self._stop(
                f"round {number}: the reward model is worse than the one before: {report}; look at the "
                f'judgments of this round, then iterate.gate="warn" continues with this model'
            )

    def _stop(self, message: str) -> None:
        if self.loop.config.iterate.gate == "stop":
            raise StoppedByGate(message)
        logger.warning("%s", message)

    def _scores(self, number: int, groups: Sequence[Sequence[Pair]]) -> gate.Score:
        """Return how the reward model of a round scores the texts of pairs."""
        config = round_config(self.loop.config, number)
        texts = list(
            dict.fromkeys((prompt, text) for group in groups for prompt, *both in group for text in both)
        )
        if not texts:
            return gate.scorer({})

        async def work() -> list[float]:
            asked = [(prompt_from_json(json.loads(prompt)), text) for prompt, text in texts]
            async with serving(config, {"reward": config.folder.reward_model}) as addresses:
                return await score(addresses["reward"], asked)

        return gate.scorer(dict(zip(texts, asyncio.run(work()), strict=True)))

    def _register(self, kind: str, place: Path, made_from: Sequence[str], number: int) -> None:
        with self.labelers.connect() as client:
            client.register(
                kind,
                model_digest(place),
                made_from,
                place=str(place.absolute()),
                details={"run": self.loop.config.name, "round": number},
            )


def agreement_of(rankings: Sequence[Ranking], *, seed: int) -> Agreement:
    """Return how far the people of rankings agree, who are in their key `labeler`."""
    lines = (judged(Line("rankings", place, dict(one))) for place, one in enumerate(rankings, start=1))
    return agreement([one.judgment for one in newest(lines)], seed=seed)


def model_digest(folder: Path) -> str:
    """Return the SHA-256 of the weights in a model folder, by which the feedback service knows the model.

    Raises:
        CorruptData: the folder has no weights.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CorruptData(f"{folder} has no weights: no file *.safetensors")
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def steps_key(config: RunConfig) -> str:
    """Return a hash of every setting that the outcome of the rounds depends on."""
    text = config.model_dump_json(include={*_MATTERS})
    own = config.iterate.model_dump_json(include={*_MATTERS_OF_ITERATE})
    return hashlib.sha256(f"{text}\0{own}".encode()).hexdigest()
