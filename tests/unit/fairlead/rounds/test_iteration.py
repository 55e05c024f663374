"""Rounds with people: what decides that an earlier run continues, names of models, and the agreement."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from examples.parcel_help import corpus
from examples.parcel_help.habits import HabitualLabeler
from fairlead.config import RunConfig, load
from fairlead.errors import ConfigError, CorruptData, StoppedByGate, exit_code
from fairlead.feedback_client import FeedbackClient
from fairlead.local.serving import GeneratedAnswer
from fairlead.local.standby import Standby
from fairlead.rounds.configuration import files_of
from fairlead.rounds.embedded import is_embedded
from fairlead.rounds.feedback_labelers import FeedbackLabelers
from fairlead.rounds.files import read_rows, write_answers
from fairlead.rounds.iteration import Iteration, agreement_of, model_digest, steps_key
from fairlead.rounds.loop import Loop
from fairlead.rounds.sampling import TaskPlan
from fairlead.rounds.simulated import labelling
from fairlead.rounds.steps import Steps
from fairlead.rounds.training import Training
from tests.feedback_service import feedback


def test_only_settings_of_the_outcome_start_other_rounds() -> None:
    first = steps_key(load())
    same = {"iterate.gate": "warn", "iterate.rounds": 9, "iterate.min_agreement": 0.1, "feedback.replicas": 1}
    assert steps_key(load(overrides=same)) == first
    for name, value in (("iterate.tasks", 7), ("iterate.answers", 5), ("seed", 1), ("ppo.updates", 3)):
        assert steps_key(load(overrides={name: value})) != first, name


def test_service_is_embedded_without_a_port() -> None:
    assert is_embedded(load())
    assert not is_embedded(load(overrides={"feedback.addresses": ["feedback.example.com:443"]}))


def test_digest_of_a_model_is_that_of_its_weights(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match="no weights"):
        model_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = model_digest(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert model_digest(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert model_digest(tmp_path) != first


def test_reference_inside_the_trainer_is_refused_before_the_first_of_several_rounds(tmp_path: Path) -> None:
    config = load(overrides={"runs": str(tmp_path), "reference.engine": "trainer", "ppo.lora.rank": 4})
    labelers = FeedbackLabelers(
        connect=lambda: FeedbackClient("unused:1", api_key=""), run="r", wanted_judgments=1
    )
    training = Training(Console(), Standby())
    loop = Loop(config=config, prompts=[], plan=TaskPlan(num_tasks=1), labelers=labelers, training=training)
    steps = Steps(tmp_path / "r" / "steps.json", key="", verb="iterate", total=9, show=print)
    with pytest.raises(ConfigError, match=r"reference.engine.*several rounds"):
        Iteration(loop=loop, labelers=labelers, show=print).run(steps, num_rounds=2)
    assert not steps.seconds


async def test_round_stops_before_its_tasks_are_withdrawn_and_continues_with_more_judgments(
    tmp_path: Path,
) -> None:
    people = {"train": [HabitualLabeler(f"p{n}", noise=2.0) for n in range(5)]}
    config = load(overrides={"runs": str(tmp_path), "name": "r", "iterate.min_agreement": 1.0})
    pool: dict[str, list[GeneratedAnswer]] = {}
    for prompt, text in corpus.demonstrations(2_000, seed=1):
        pool.setdefault(prompt, []).append(GeneratedAnswer(prompt, text, True))
    tasks = [group[:4] for group in list(pool.values())[:12]]
    files = files_of(config)
    write_answers(files.of_round(0, "tasks"), tasks)
    shown: list[str] = []
    async with feedback(tmp_path, project__overlap=3, project__shared_share=1.0) as http:

        def iteration(config: RunConfig) -> Iteration:
            labelers = FeedbackLabelers(
                connect=lambda: FeedbackClient(http.address, api_key=""),
                run="r",
                wanted_judgments=6,
                longest_wait_seconds=30,
                poll_seconds=0.02,
            )
            training = Training(Console(), Standby())
            plan = TaskPlan(num_tasks=12)
            loop = Loop(config=config, prompts=[], plan=plan, labelers=labelers, training=training)
            return Iteration(loop=loop, labelers=labelers, show=shown.append)

        def open_tasks() -> int:
            with FeedbackClient(http.address, api_key="") as client:
                return len(client.call("GET", "/tasks", query={"state": "open"})["tasks"])

        def judged() -> int:
            return len(read_rows(files.of_round(0, "rankings")))

        def work() -> None:
            first = iteration(config)
            with labelling(first.labelers.connect, people, project=None, failed=first.labelers.stop_waiting):
                with pytest.raises(StoppedByGate, match=r"iterate.min_agreement is 100.0%"):
                    first.judge(0)
            before = judged()
            assert before >= 6
            stopped = json.loads(files.of_round(0, "stopped").with_suffix(".json").read_text())
            assert stopped["judgments"] <= before

            # The same settings ask for more judgments first, and stop again.
            again = iteration(config)
            with labelling(again.labelers.connect, people, project=None, failed=again.labelers.stop_waiting):
                with pytest.raises(StoppedByGate):
                    again.judge(0)
            assert judged() > stopped["judgments"]
            assert again.labelers.judged[0] > stopped["judgments"]

            warned = iteration(
                config.model_copy(update={"iterate": config.iterate.model_copy(update={"gate": "warn"})})
            )
            warned.judge(0)
            assert open_tasks() == 0

        await asyncio.to_thread(work)


def test_agreement_of_exported_rankings() -> None:
    def said(labeler: str, order: str) -> dict[str, Any]:
        responses = [{"text": text, "rank": place, "answer": text} for place, text in enumerate(order, 1)]
        return {"prompt": "p", "task": "t", "labeler": labeler, "responses": responses}

    found = agreement_of([said("a", "xyz"), said("b", "xzy")], seed=0)
    assert found.rate == pytest.approx(2 / 3)
    assert agreement_of([said("a", "xyz")], seed=0).rate is None
    assert exit_code(StoppedByGate("")) == 6
