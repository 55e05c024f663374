"""The service flags a random and a backwards labeler among twenty, from what they hand in over HTTP."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from examples.parcel_help.habits import Habit, HabitualLabeler, noise_for
from tests.feedback_service import Feedback, feedback

AGREEMENT = 0.726
"""Of honest labelers, as InstructGPT's."""
HABITS: list[Habit] = [*(["honest"] * 18), "random", "backwards"]
TASKS, ANSWERS, OVERLAP = 200, 4, 3
"""Twenty labelers share them, three to a task: thirty each."""


async def work(http: Feedback, labeler: HabitualLabeler, *, tasks: int) -> None:
    person = await http.program(labeler.name)
    for _ in range(tasks):
        if (shown := await person.next()) is None:
            return
        ranks = labeler.ranks(shown["prompt"][-1]["content"], [one["text"] for one in shown["answers"]])
        said = {one["id"]: rank for one, rank in zip(shown["answers"], ranks, strict=True)}
        await person.post(f"/assignments/{shown['assignment']}/judgment", {"ranks": said})


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_random_and_backwards_labelers_are_flagged_and_honest_ones_are_not(tmp_path: Path) -> None:
    rng = random.Random(3)
    worths = [[rng.gauss(0, 1) for _ in range(ANSWERS)] for _ in range(TASKS)]
    noise = noise_for(AGREEMENT, worths[:100])
    known = [
        HabitualLabeler(f"{habit}-{number}", 3, habit, noise, worth=lambda _, text: float(text))
        for number, habit in enumerate(HABITS)
    ]
    async with feedback(tmp_path, project__overlap=OVERLAP, project__shared_share=1) as http:
        new = [
            {"prompt": f"question {task}", "responses": [repr(worth) for worth in own]}
            for task, own in enumerate(worths)
        ]
        await http.local.post("/tasks", {"tasks": new})
        # Small portions, so that everybody shares tasks with everybody.
        for _ in range(TASKS * OVERLAP // len(known) // 3):
            await asyncio.gather(*(work(http, one, tasks=3) for one in rng.sample(known, len(known))))
        found = {
            one["handle"]: one["agreement"] for one in (await http.local.get("/figures/labelers"))["labelers"]
        }
        assert {one["tasks"] for one in found.values()} == {TASKS * OVERLAP // len(known)}
        flagged = {handle for handle, one in found.items() if one["flagged"]}
        assert flagged == {"random-18", "backwards-19"}, found
        progress = await http.local.get("/figures/progress")
        assert (progress["done"], progress["tasks"]) == (TASKS * OVERLAP, {"closed": TASKS})
