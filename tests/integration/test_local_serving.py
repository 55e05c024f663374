"""Calls to services that run on given models: answers, scores, and the error if a service cannot start."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from fairlead.config import load
from fairlead.errors import ProcessFailed
from fairlead.local.serving import ask, score, serving
from fairlead.types import SamplingParams
from tests.service_process import own_processes
from tests.tiny import tiny_causal_lm, tiny_reward_model

# A busy machine may take minutes to start processes that import torch.
pytestmark = pytest.mark.timeout(300)


async def test_answers_and_scores_of_real_services(tmp_path: Path) -> None:
    models = {
        "policy": tiny_causal_lm(tmp_path / "policy"),
        "reward": tiny_reward_model(tmp_path / "reward"),
    }
    config = load(None, overrides={"runs": str(tmp_path), "name": "asked"})
    sampling = SamplingParams(max_new_tokens=5, seed=7)
    rng = random.Random(0)
    prompts = [" ".join(f"w{rng.randrange(56)}" for _ in range(4)) for _ in range(20)]

    before = own_processes()
    async with serving(config, models) as addresses:
        first = await ask(addresses["policy"], prompts, samples=3, sampling=sampling)
        again = await ask(addresses["policy"], prompts, samples=3, sampling=sampling)
        scores = await score(addresses["reward"], [(a.prompt, a.text) for group in first for a in group])
        empty = await score(addresses["reward"], [("w1", ""), ("w1", " ")])
        children = own_processes() - before

    assert first == again, "the same seed must give the same answers"
    assert [[a.prompt for a in group] for group in first] == [[prompt] * 3 for prompt in prompts]
    texts = {a.text for group in first for a in group}
    assert len(texts) > 30
    assert all(len(text.split()) <= 5 for text in texts)
    assert {a.ended for group in first for a in group} == {True, False}
    assert len(scores) == 60
    assert len(set(scores)) > 30
    assert empty[0] == empty[1]
    assert len(children) >= 2
    assert not any(child.is_running() for child in children)


async def test_error_of_a_service_that_cannot_start_quotes_its_log(tmp_path: Path) -> None:
    config = load(None, overrides={"runs": str(tmp_path), "name": "asked"})
    with pytest.raises(ProcessFailed, match=r"^policy-asked ended with exit code 2; last log line: .*absent"):
        async with asyncio.timeout(240), serving(config, {"policy": tmp_path / "absent"}):
            pass
