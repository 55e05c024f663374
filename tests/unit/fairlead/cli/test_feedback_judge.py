"""`fairlead feedback judge` against a real service and a real endpoint with a scripted model; its audit."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fairlead.cli.judging import Rubric, TaskJudge, verdict_of
from fairlead.cli.main import app
from fairlead.errors import FairleadError
from tests.chat_endpoint import chat_endpoint
from tests.feedback_service import Caller, Feedback, feedback, ranks_by_text, task

_READ = re.compile(r"\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\n", re.DOTALL)

Decide = Callable[[str, str], str]


def by_text(first: str, second: str) -> str:
    """Prefer the answer that comes first in the alphabet, after some thought."""
    return f"Answer B is longer, A is kinder.\n\n**{'A' if first < second else 'B'}**."


def always_first(first: str, second: str) -> str:
    return "A"


def nonsense(first: str, second: str) -> str:
    return "A good question, and both B and A are good."


@contextmanager
def endpoint(decide: Decide) -> Iterator[tuple[str, list[str]]]:
    """Serve chat completions of a scripted model; yield the URL and the messages that it read."""
    read: list[str] = []

    def answer(request: dict) -> tuple[int, object]:
        read.append(request["messages"][0]["content"])
        found = _READ.search(read[-1])
        assert found is not None
        return 200, {"choices": [{"message": {"content": decide(*found.groups())}}]}

    with chat_endpoint(answer) as url:
        yield url, read


async def judged(service: Feedback, handle: str, decide: Decide, folder: Path, *more: str) -> Result:
    """Let a judge work until nothing is left."""
    rubric = folder / "rubric.md"
    rubric.write_text("# Rubric\n\nPrefer the kinder answer. {first}\n")
    with endpoint(decide) as (url, _):
        command = ["feedback", "judge", str(rubric), "--address", service.address, "--handle", handle]
        command += ["--endpoint", url, "--model", "scripted-1", *more]
        return await asyncio.to_thread(CliRunner().invoke, app, command)


async def rank_all(person: Caller) -> int:
    """Let a person rank what there is by text; return how many tasks that were."""
    count = 0
    while shown := await person.next():
        body = {"ranks": ranks_by_text(shown)}
        await person.post(f"/assignments/{shown['assignment']}/judgment", body)
        count += 1
    return count


async def test_judges_read_both_orders_and_never_guess(tmp_path: Path) -> None:
    async with feedback(
        tmp_path, project__overlap=3, project__shared_share=1, project__judges="train"
    ) as http:
        await http.local.post("/tasks", {"tasks": [task(1, k=2), task(2, k=4), task(3, k=6)]})
        principles = tmp_path / "principles.txt"
        principles.write_text("# Constitution\n\n- Be kind.\n2. Be brief.\n")
        fair = await judged(http, "fair", by_text, tmp_path, "--constitution", str(principles))
        assert fair.exit_code == 0, fair.output
        assert "3 judged, 0 skipped; of " in fair.stdout
        assert "100.0% the same in both orders, 0.0% ties; the first place preferred in 50.0%" in fair.stdout
        biased = await judged(http, "biased", always_first, tmp_path)
        assert (
            "0.0% the same in both orders, 100.0% ties; the first place preferred in 100.0%" in biased.stdout
        )
        silent = await judged(http, "silent", nonsense, tmp_path)
        assert silent.stdout == "0 judged, 3 skipped\n"
        assert (await http.local.get("/figures/progress"))["skipped"] == {"other": 3}

        entries = http.service.store.log.entries(after=0, limit=100)
        bodies = [entry.body or {} for entry in entries]
        rubric = hashlib.sha256((tmp_path / "rubric.md").read_bytes()).hexdigest()
        for body, k in zip(bodies[:3], (2, 4, 6), strict=True):
            details = body["details"]
            assert details["rubric_sha256"] == rubric
            assert details["model"].startswith("scripted-1 at http://127.0.0.1")
            assert details["principle"] in (
                {"number": 1, "text": "Be kind."},
                {"number": 2, "text": "Be brief."},
            )
            assert sorted(body["ranks"].values()) == list(range(1, k + 1))
            assert all(one["consistent"] and len(one["replies"]) == 2 for one in details["comparisons"])
        sizes = [len(body["details"]["comparisons"]) for body in bodies[:3]]
        assert sizes[:2] == [1, 6]
        assert 5 <= sizes[2] < 15, "six answers are sorted"
        assert all(set(body["ranks"].values()) == {1} for body in bodies[3:6])
        assert "'A good question" in bodies[6]["note"]

        # Judges are in files and figures of their own, and nobody can hold one out.
        assert (await http.local.ask("POST", "/snapshots", {})).status == 400
        assert (await http.local.post("/snapshots", {"people": ["judge"]}))["entries"] == 6
        mixed = await http.local.ask("POST", "/snapshots", {"people": ["labeler", "judge"]})
        assert (mixed.status, "only judges" in mixed.json["error"]["message"]) == (400, True)
        await http.local.ask("PATCH", "/projects/default", {"judges": "none"})
        assert (await http.local.ask("POST", "/snapshots", {"people": ["judge"]})).status == 400
        held = await http.local.ask("POST", "/people", {"handle": "j", "kind": "judge", "cohort": "heldout"})
        assert held.status == 400
        assert (await http.local.get("/figures/agreement"))["agreement"]["judgments"] == 0
        found = (await http.local.get("/figures/judges"))["judges"]
        assert [(one["handle"], one["tied"], one["consistent"]) for one in found] == [
            ("fair", 0.0, 1.0),
            ("biased", 1.0, 0.0),
        ]
        person = await judged(http, "fair", by_text, tmp_path, "--limit", "1", "--policy", "a:1")
        assert (person.exit_code, "allowed: it, or --policy" in person.stderr) == (2, True)


async def test_a_judge_below_people_is_paused_and_a_good_one_is_not(tmp_path: Path) -> None:
    tasks = 31
    async with feedback(tmp_path, project__audit_share=1) as http:
        await http.local.post("/tasks", {"tasks": [task(n, k=2, overlap=1) for n in range(tasks)]})
        anna, ben = await http.signed_in(handle="anna"), await http.signed_in(handle="ben")
        # A second judge does not take the places of people either.
        assert f"{tasks} judged" in (await judged(http, "fair", by_text, tmp_path)).stdout
        assert f"{tasks} judged" in (await judged(http, "biased", always_first, tmp_path)).stdout
        shown = json.dumps(await anna.next())
        assert not any(word in shown for word in ("judge", "overlap", "audit"))
        assert (await rank_all(anna), await rank_all(ben)) == (tasks, tasks)
        assert (await http.local.get("/figures/progress"))["tasks"] == {"closed": tasks}
        table = {one["handle"]: one for one in (await http.local.get("/figures/judges"))["judges"]}
        good, bad = table["fair"]["audit"], table["biased"]["audit"]
        assert (good["tasks"], good["with_people"]["alike"], good["people"]["alike"]) == (tasks, 1.0, 1.0)
        assert (good["below"], table["fair"]["state"]) == (False, "active")
        assert (bad["with_people"]["alike"], bad["with_people"]["rate"]) == (0.5, None)
        assert (bad["below"], table["biased"]["state"]) == (True, "paused")
        agreement = (await http.local.get("/figures/agreement"))["agreement"]
        assert (agreement["judgments"], agreement["rate"]) == (2 * tasks, 1.0)
        stopped = await judged(http, "biased", always_first, tmp_path)
        assert stopped.exit_code == 1
        assert "this person is paused" in stopped.stderr


class Scripted:
    """A speaker that decides by the answers' texts, and fails if it is asked to."""

    version = "scripted"

    def __init__(self, decide: Decide) -> None:
        self._decide = decide

    async def reply(self, message: str) -> str:
        found = _READ.search(message)
        assert found is not None
        said = self._decide(*found.groups())
        if said == "fail":
            raise FairleadError("the endpoint is gone")
        return said


def test_rankings_of_any_size_and_replies() -> None:
    chance = random.Random(3)

    def worse(first: str, second: str) -> str:
        # Equal worths tie with any texts.
        one, other = int(first.partition(" ")[0]), int(second.partition(" ")[0])
        return "TIE" if one == other else "A" if one > other else "B"

    judge = TaskJudge(Scripted(worse), Rubric("by worth"))
    for size in (2, 3, 4, 5, 9):
        answers = {f"a{place}": f"{chance.randrange(4)} {place}" for place in range(size)}
        found = asyncio.run(judge.judge("t", "p", answers))
        assert found.ranks is not None
        for one, other in combinations(answers, 2):
            gap = int(answers[one].split()[0]) - int(answers[other].split()[0])
            ranked = found.ranks[other] - found.ranks[one]
            assert (gap > 0, gap < 0) == (ranked > 0, ranked < 0)
    contradiction = TaskJudge(Scripted(lambda first, second: "TIE" if first < second else "A"), Rubric("r"))
    assert asyncio.run(contradiction.judge("t", "p", {"x": "1", "y": "2"})).ranks == {"x": 1, "y": 1}
    # A model that is gone is no reason to skip, even when another reply is unreadable.
    gone = TaskJudge(Scripted(lambda first, second: "fail" if "3" in first else "?"), Rubric("r"))
    with pytest.raises(FairleadError, match="endpoint is gone"):
        asyncio.run(gone.judge("t", "p", {"x": "1", "y": "2", "z": "3"}))
    readable = {"A": 1.0, "because.\n\n**B**\n": 0.0, "Verdict: tie.": 0.5, "Final answer: A": 1.0}
    unreadable = ("", "a", "A or B", "I cannot say.", "A\nbut I am not sure", "A better one is B", "C")
    assert {reply: verdict_of(reply) for reply in readable} == readable
    assert [verdict_of(reply) for reply in unreadable] == [None] * len(unreadable)
