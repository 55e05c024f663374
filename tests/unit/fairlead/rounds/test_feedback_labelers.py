"""The labelers of a feedback service in a loop of rounds: real HTTP, programs that rank, an interruption."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest

from fairlead.config import load
from fairlead.data.chat import Chat
from fairlead.data.records import load_preferences
from fairlead.errors import ConfigError, ProcessFailed, Stalled
from fairlead.feedback_client import FeedbackClient
from fairlead.local.serving import GeneratedAnswer
from fairlead.rounds.feedback_labelers import FeedbackLabelers
from fairlead.rounds.files import write_rows
from fairlead.rounds.gate import measuring_pairs
from fairlead.rounds.simulated import labelling, load_cohorts
from fairlead.types import Message
from tests.feedback_service import feedback


@dataclass(frozen=True)
class ByText:
    """Prefers texts in alphabetical order."""

    name: str

    def ranks(self, prompt: str, texts: Sequence[str]) -> Sequence[int]:
        return [sorted(texts).index(text) + 1 for text in texts]


class Mistaken(ByText):
    """Its own code fails."""

    def ranks(self, prompt: str, texts: Sequence[str]) -> Sequence[int]:
        raise KeyError("no rule for this prompt")


CHAT = Chat((Message("user", "hello"),))


def _label(address: str, handle: str, count: int) -> None:
    with FeedbackClient(address, api_key="") as client:
        client.sign_in(handle=handle)
        for _ in range(count):
            task = client.next()
            assert task is not None
            order = sorted(task.answers, key=task.answers.__getitem__)
            client.rank(task.assignment, {answer: place for place, answer in enumerate(order, start=1)})


async def test_rankings_of_a_round_come_back_after_an_interruption(tmp_path: Path) -> None:
    tasks = [
        [GeneratedAnswer(CHAT, text, True) for text in ("b", "a", "b")],
        [GeneratedAnswer("plain", text, text != "cut") for text in ("y", "cut", "x")],
        [GeneratedAnswer("one", "only", True)] * 3,
    ]
    shown: list[str] = []
    async with feedback(tmp_path) as http:

        def labelers(**more: object) -> FeedbackLabelers:
            values = {"wanted_judgments": 10, "poll_seconds": 0.05, "show": shown.append} | more
            return FeedbackLabelers(
                connect=lambda: FeedbackClient(http.address, api_key=""),
                run="r",
                **values,  # type: ignore[arg-type]
            )

        first = labelers(longest_wait_seconds=0.2)
        await asyncio.to_thread(first.give, 1, tasks)
        await asyncio.to_thread(first.give, 2, [[GeneratedAnswer("other", text, True) for text in "ab"]])
        await asyncio.to_thread(_label, http.address, "ben", 1)
        with pytest.raises(Stalled, match="there are 1 of 2; the same command continues"):
            await asyncio.to_thread(first.wait, 1)

        again = labelers()
        await asyncio.to_thread(again.give, 1, tasks)
        assert shown[-1] == "2 tasks of round 1 are with the labelers, 0 of them new"
        waiting = asyncio.create_task(asyncio.to_thread(again.wait, 1))
        await asyncio.to_thread(_label, http.address, "ben", 2)
        await waiting
        rankings, digest = await asyncio.to_thread(again.ranked, 1)
        found = {json.dumps(one["prompt"]): one for one in rankings}
        assert found.keys() == {json.dumps([{"role": "user", "content": "hello"}]), '"plain"'}
        for one in rankings:
            ranks = {answer["text"]: answer["rank"] for answer in one["responses"]}
            assert ranks in ({"a": 1, "b": 2}, {"x": 1, "y": 2})
            assert one["round"] == 1
        assert len(digest) == 64
        assert again.judged == {1: 2}
        write_rows(tmp_path / "rankings.jsonl", rankings)
        read = load_preferences(load(overrides={"data.preferences": str(tmp_path / "rankings.jsonl")}))
        assert len(read.train) + len(read.heldout) == 2


async def test_round_ends_when_held_out_people_had_the_other_tasks(tmp_path: Path) -> None:
    tasks = [[GeneratedAnswer(f"p{n}", text, True) for text in ("b", "a")] for n in range(12)]
    people: dict[str, list[ByText]] = {"train": [ByText("t0")], "heldout": [ByText("h0"), ByText("h1")]}
    async with feedback(tmp_path) as http:

        def connect() -> FeedbackClient:
            return FeedbackClient(http.address, api_key="")

        labelers = FeedbackLabelers(
            connect=connect, run="r", wanted_judgments=12, longest_wait_seconds=30, poll_seconds=0.05
        )

        def work() -> int:
            labelers.give(0, tasks)
            with labelling(connect, people, project=None, failed=labelers.stop_waiting):
                labelers.wait(0)
            rankings, digest = labelers.ranked(0)
            heldout, other = labelers.ranked(0, cohort="heldout")
            assert digest != other
            prompts = [one["prompt"] for one in rankings]
            assert prompts == sorted(prompts)
            assert all(one["cohort"] == "heldout" for one in heldout)
            assert labelers.ranked(1) == ([], "")
            measuring = measuring_pairs(heldout, rankings)
            assert sorted(better for group in measuring for _, better, _ in group) == ["a"] * len(heldout)
            return len(rankings) + len(heldout)

        assert await asyncio.to_thread(work) == 12
        with pytest.raises(ConfigError, match="--with-simulated-labelers"):
            load_cohorts("examples.parcel_help.people:nobody", seed=0)
        assert set(load_cohorts("examples.parcel_help.people:people", seed=0)) == {"train", "heldout"}


async def test_mistake_of_a_simulated_labeler_ends_the_wait(tmp_path: Path) -> None:
    async with feedback(tmp_path) as http:

        def connect() -> FeedbackClient:
            return FeedbackClient(http.address, api_key="")

        labelers = FeedbackLabelers(connect=connect, run="r", wanted_judgments=1, poll_seconds=0.05)

        def work() -> None:
            labelers.give(0, [[GeneratedAnswer("p", text, True) for text in ("b", "a")]])
            people = {"train": [Mistaken("t0")]}
            with labelling(connect, people, project=None, failed=labelers.stop_waiting):
                labelers.wait(0)

        with pytest.raises(ProcessFailed, match=r"labeler t0 failed \(KeyError: 'no rule for this prompt'\)"):
            await asyncio.to_thread(work)


async def test_more_judgments_are_asked_for_after_a_stop_until_the_round_is_closed(tmp_path: Path) -> None:
    tasks = [[GeneratedAnswer(f"p{n}", text, True) for text in ("b", "a")] for n in range(5)]
    async with feedback(tmp_path) as http:
        labelers = FeedbackLabelers(
            connect=lambda: FeedbackClient(http.address, api_key=""),
            run="r",
            wanted_judgments=3,
            longest_wait_seconds=30,
            poll_seconds=0.05,
        )

        def states() -> list[tuple[str, int]]:
            with labelers.connect() as client:
                return [(task["state"], task["overlap"]) for task in client.call("GET", "/tasks")["tasks"]]

        def work() -> None:
            labelers.give(0, tasks)
            _label(http.address, "ben", 3)
            labelers.wait(0)
            assert labelers.judged == {0: 3}
            assert [state for state, _ in states()] == ["closed"] * 3 + ["open"] * 2  # more may come
            labelers.close(0)
            assert [state for state, _ in states()] == ["closed"] * 3 + ["withdrawn"] * 2

            stopped = Thread(target=labelers.wait, args=(0,), kwargs={"beyond": 3})
            stopped.start()
            while states()[-1][0] != "open":
                pass
            _label(http.address, "ben", 1)
            stopped.join()
            assert labelers.judged == {0: 4}
            _label(http.address, "ben", 1)
            # Nothing is open: everything is asked about once more.
            stopped = Thread(target=labelers.wait, args=(0,), kwargs={"beyond": 5})
            stopped.start()
            while states() != [("open", 2)] * 5:
                pass
            _label(http.address, "eva", 1)
            stopped.join()
            assert labelers.judged == {0: 6}

        await asyncio.to_thread(work)


async def test_answers_of_updates_are_compared_while_ppo_runs(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.jsonl"
    config = load(overrides={"runs": str(tmp_path), "name": "r", "data.fresh_rankings": str(fresh)})
    samples = config.folder.rollout_samples
    samples.parent.mkdir(parents=True)
    rows = [
        {"update": update, "task": place, "prompt": "p", "text": f"{update} {place}", "ended": True}
        for update in (1, 2, 3)
        for place in range(4)
    ]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with feedback(tmp_path) as http:
        labelers = FeedbackLabelers(
            connect=lambda: FeedbackClient(http.address, api_key=""),
            run="r",
            wanted_judgments=1,
            fresh_per_update=2,
            poll_seconds=0.05,
        )

        def work() -> None:
            with labelers.following(config), FeedbackClient(http.address, api_key="") as client:
                client.sign_in(handle="ben")
                done = 0
                while done < 4:
                    if (task := client.next()) is not None:
                        client.rank(task.assignment, dict.fromkeys(task.answers, 1))
                        done += 1

        await asyncio.to_thread(work)
        lines = [json.loads(line) for line in fresh.read_text().splitlines()]
        assert [line["why"] for line in lines] == ["fresh"] * 4
        updates = sorted(max(answer["text"].split()[0] for answer in line["responses"]) for line in lines)
        assert updates == ["2", "2", "3", "3"]
