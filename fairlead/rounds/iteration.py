"""The rounds of `fairlead iterate` and of the quickstart: what `loop` does, judgments, a gate, and lineage.

sample → judgments → reward model → gate → PPO → evaluate, and again. Each step runs once; an interrupted one
runs again as a whole. Every model is registered at the feedback service with what it was made from, so that
forgetting a person finds it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fairlead.config import RunConfig
from fairlead.config.saving import replace_text
from fairlead.data.chat import question
from fairlead.data.judged import judged, newest
from fairlead.data.lines import Line
from fairlead.data.records import heldout_names, is_heldout
from fairlead.errors import ConfigError, CorruptData, FairleadError, StoppedByGate
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

STEPS_BEFORE = 2
"""Fine-tuning, and sampling for the first round."""
STEPS_OF_A_ROUND = 5
"""Judgments, reward model, gate, PPO, evaluate; all but the last evaluation sample for the next round too."""
_MATTERS = ("seed", "model", "data", "sft", "reward_model", "ppo", "sampling", "evaluation")
_MATTERS_OF_ITERATE = ("tasks", "answers", "repeat_prompts", "reward_model_start", "reward_model_epochs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """The steps of all rounds."""

    loop: Loop
    """Samples, trains and evaluates; its labelers are those below."""
    labelers: FeedbackLabelers
    """Who judges."""
    show: Callable[[str], None]
    """Shows a line about a result."""
    working: Callable[[], AbstractContextManager[None]] = nullcontext
    """Lets programs label during a block; people come by themselves."""

    def run(self, steps: Steps, *, num_rounds: int) -> None:
        """Run every step that is not done yet. More rounds than before continue an earlier run.

        Raises:
            ConfigError: the settings cannot have as many rounds.
            StoppedByGate: a round must not continue.
            FairleadError: a step failed; finished steps are kept.
        """
        loop, plan = self.loop, self.loop.plan
        if num_rounds > 1 and loop.config.reference.engine == "trainer":
            raise ConfigError(
                "reference.engine",
                got="trainer",
                allowed="local or vllm with several rounds, because a later round starts from the policy "
                "of the one before and is kept near the SFT model",
            )
        steps.run("sft", "fine-tuning on the demonstrations", lambda: loop.training.sft(loop.config))
        last = f"evaluate-{num_rounds - 1}"
        with nullcontext() if last in steps.seconds else self.working():
            title = f"generating answers, {plan.num_tasks} tasks × {plan.num_answers} answers"
            steps.run("sample", title, loop.sample)
            for number in range(num_rounds):
                self._round(steps, number, last=number + 1 == num_rounds)

    def judge(self, number: int) -> None:
        """Hand the tasks over, wait for judgments, and write snapshots of them.

        Those of earlier rounds are made again: without what was erased since, and with what came late. If the
        round was stopped before, more judgments than then are waited for.

        Raises:
            StoppedByGate: people agree too little.
            FairleadError: as `FeedbackLabelers`.
        """
        files = files_of(self.loop.config)
        self.labelers.give(number, read_answers(files.of_round(number, "tasks")))
        self._report(number, wanted=self.labelers.wanted(number))
        self.labelers.wait(number, beyond=self._stopped_at(number))
        for known in range(number + 1):
            rankings, digest = self.labelers.ranked(known)
            heldout, heldout_digest = self.labelers.ranked(known, cohort="heldout")
            write_rows(files.of_round(known, "heldout"), heldout)
            write_rows(files.of_round(known, "snapshot"), [{"train": digest, "heldout": heldout_digest}])
            write_rows(files.of_round(known, "rankings"), rankings)
        # Of this round.
        self._check_agreement(number, [*rankings, *heldout])
        self.labelers.close(number)

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
        """Compare the reward model with the one before on pairs of this round that neither has learnt from.

        They are those of held-out people; if these have none, those of held-out prompts.

        Raises:
            StoppedByGate: it is measurably worse, and `iterate.gate` is `stop`.
        """
        files = files_of(self.loop.config)
        every = [read_rows(files.of_round(known, "rankings")) for known in range(number + 1)]
        trained = [one for rankings in every for one in rankings if not self._is_heldout(one)]
        groups = gate.measuring_pairs(read_rows(files.of_round(number, "heldout")), trained)
        measured_on = "held-out people"
        if not groups:
            groups = gate.measuring_pairs(filter(self._is_heldout, every[-1]), trained)
            measured_on = "held-out prompts"
        new = self._scores(number, groups)
        before = self._scores(number - 1, groups) if number else None
        report = gate.compare(groups, new, before, seed=self.loop.config.seed, measured_on=measured_on)
        replace_text(
            files.of_round(number, "gate").with_suffix(".json"), json.dumps(report.as_json(), indent=1) + "\n"
        )
        self._report(number, gate=report.as_json())
        self._decide(number, report)
        self._stop_file(number).unlink(missing_ok=True)

    def ppo(self, number: int) -> None:
        """Tune the policy while people judge its answers, and register it."""
        self.loop.ppo(number)
        config = round_config(self.loop.config, number)
        made_from = [model_digest(config.folder.reward_model)]
        if number:
            made_from.append(model_digest(round_config(self.loop.config, number - 1).folder.policy_model))
        self._register("policy", config.folder.policy_model, made_from, number)

    def _round(self, steps: Steps, number: int, *, last: bool) -> None:
        if self._stopped_at(number) is not None:
            steps.forget(f"judgments-{number}", f"reward_model-{number}")
        ppo = self.loop.config.ppo
        learning = f"{method_of(ppo)}, {ppo.updates} updates × {ppo.batch_size} answers, by gRPC"
        bodies: tuple[tuple[str, str, Callable[[], None]], ...] = (
            ("judgments", "labelers rank the policy's answers", lambda: self.judge(number)),
            (
                "reward_model",
                "training the reward model on all rankings so far",
                lambda: self.reward_model(number),
            ),
            ("gate", "comparing the reward model with the one before", lambda: self.check(number)),
            ("ppo", learning, lambda: self.ppo(number)),
            (
                "evaluate" if last else "evaluate_and_sample",
                "evaluating the tuned policy" + ("" if last else ", which answers the next tasks"),
                lambda: self.loop.evaluate(number, samples_next=not last),
            ),
        )
        for name, title, body in bodies:
            steps.run(
                f"{name}-{number}", f"round {number}: {title}", partial(self._reported, number, name, body)
            )

    def _reported(self, number: int, step: str, body: Callable[[], None]) -> None:
        """Do a step of a round, and report it to the feedback service, which shows it to leads."""
        self._report(number, step=step, state="working", message="")
        try:
            body()
        except StoppedByGate as error:
            self._report(number, state="stopped", message=str(error))
            raise
        if step.startswith("evaluate"):
            self._report(number, state="done")

    def _report(self, number: int, **changes: object) -> None:
        try:
            with self.labelers.connect() as client:
                client.report_round(self.loop.config.name, number, project=self.labelers.project, **changes)
        except FairleadError as error:
            # Nothing depends on it.
            logger.warning("cannot report round %d to the feedback service: %s", number, error)

    def _is_heldout(self, ranking: Ranking) -> bool:
        """Return whether the prompt of a ranking is held out, so that reward models do not learn from it."""
        config = self.loop.config
        if heldout_names(config, "preferences"):
            return False
        return is_heldout(config, question(prompt_from_json(ranking["prompt"])))

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
                number,
                f"round {number}: {text}, iterate.min_agreement is {least:.1%}: look at guidelines and "
                "labelers; the same command asks for more judgments and decides again",
            )

    def _decide(self, number: int, report: GateReport) -> None:
        self.show(f"    {report}")
        if not report.passes:
            self._stop(
                number,
                f"round {number}: the reward model is worse than the one before: {report}; look at the "
                "judgments of this round; the same command asks for more of them and trains another one, "
                'iterate.gate="warn" continues with this one',
            )

    def _stop(self, number: int, message: str) -> None:
        if self.loop.config.iterate.gate != "stop":
            logger.warning("%s", message)
            return
        files = files_of(self.loop.config)
        known = sum(len(read_rows(files.of_round(number, name))) for name in ("rankings", "heldout"))
        stopped = {"judgments": self.labelers.judged.get(number, known), "why": message}
        replace_text(self._stop_file(number), json.dumps(stopped) + "\n")
        raise StoppedByGate(message)

    def _stop_file(self, number: int) -> Path:
        return files_of(self.loop.config).of_round(number, "stopped").with_suffix(".json")

    def _stopped_at(self, number: int) -> int | None:
        """Return the number of judgments with which a round was stopped; None if nothing stops it now."""
        file = self._stop_file(number)
        if self.loop.config.iterate.gate != "stop" or not file.exists():
            return None
        return int(json.loads(file.read_text(encoding="utf-8"))["judgments"])

    def _scores(self, number: int, groups: Sequence[Sequence[Pair]]) -> gate.Score:
        """Return how the reward model of a round scores the texts of pairs.

        Held-out answers have their scores of the model before already, from its evaluation.
        """
        config = round_config(self.loop.config, number)
        texts = list(
            dict.fromkeys((prompt, text) for group in groups for prompt, *both in group for text in both)
        )
        file = files_of(self.loop.config).of_round(number, "scores")
        rows = read_rows(file) if file.exists() else []
        known = {(json.dumps(row["prompt"]), row["text"]): float(row["score"]) for row in rows}
        if all(text in known for text in texts):
            return gate.scorer(known)

        async def work() -> list[float]:
            asked = [(prompt_from_json(json.loads(prompt)), text) for prompt, text in texts]
            models = {"reward": config.folder.reward_model}
            async with serving(config, models, standby=self.loop.training.standby) as addresses:
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
