"""A reward function served as the reward service: scores, errors of single items, versions and reload."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

from fairlead.clients import AsyncRewardAdminClient, AsyncRewardClient
from fairlead.config.serving import RewardSection
from fairlead.errors import EngineFailed, InternalError, InvalidInput, ModelLoadError, Unavailable
from fairlead.reward_function import digest
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import Message, TextPair, TokenPair
from services.reward.function.scorer import FunctionScorer
from tests.unit.services.reward.reward_world import reward_service

SOURCE = """
    import asyncio, multiprocessing, os, time
    from points import FACTOR

    def score(prompts, responses):
        print("a function prints")
        return [one(prompt, response) for prompt, response in zip(prompts, responses)]

    async def later(prompts, responses):
        await asyncio.sleep(0)
        return score(prompts, responses)

    def one(prompt, response):
        if response == "hang":
            time.sleep(1000)
        if response == "end":
            os._exit(3)
        if not isinstance(prompt, str):
            return FACTOR * sum(len(turn["content"]) for turn in prompt)
        return {"nan": float("nan"), "text": "1", "none": None}.get(response) or FACTOR * int(response)

    def lazy(prompts, responses):
        for response in responses:
            yield float(response)

    def as_set(prompts, responses):
        return {float(response) for response in responses}

    def bare(prompts, responses):
        class Bare:
            def __iter__(self):
                raise TypeError("no numbers within")
        return Bare() if len(responses) == 1 else [10 ** 400, *range(1, len(responses))]

    def forking(prompts, responses):
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        process.start()
        with open(prompts[0], "a") as file:
            file.write(f"{process.pid} ")
        if responses[0] == "hang":
            process.join()
        return [1.0] * len(responses)

    def wrong(prompts, responses):
        return [1.0]

    def one_argument(prompts):
        return []
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "points.py").write_text("FACTOR = 2\n")
    path = tmp_path / "rewards.py"
    path.write_text(textwrap.dedent(SOURCE))
    return path


def section(**settings: object) -> RewardSection:
    return RewardSection(**({"engine": "function", "function": "x:y"} | settings))  # type: ignore[arg-type]


def pairs(*responses: str) -> list[TextPair]:
    return [TextPair("a prompt", response) for response in responses]


def results(scorer: FunctionScorer, *responses: str) -> list[float | str]:
    found = scorer.score(scorer.encode(pairs(*responses)))
    return [str(one) if isinstance(one, Exception) else one for one in found]


async def test_service_scores_with_the_function_and_reloads_its_source(source: Path):
    named = f"{source}:later"
    async with (
        reward_service(named, engine="function", function=named, allow_reload="always") as world,
        AsyncRewardClient(world.address, retry=RetryPolicy(max_attempts=1)) as client,
        AsyncRewardAdminClient(world.address) as admin,
    ):
        chat = TextPair("", "3", (Message("user", "abc"), Message("assistant", "d"), Message("user", "e")))
        found = await client.score([*pairs("3", "4"), chat])
        assert found.scores == (6, 8, 10)
        first = found.model_version
        with pytest.raises(InvalidInput, match="items.tokens.*texts: the reward is a function"):
            await client.score([TokenPair((1,), (2,))])
        with pytest.raises(InternalError, match=r"raised ValueError: invalid literal .* \(rewards.py:\d+\)"):
            await client.score(pairs("3", "x"))
        assert [each.info.model_version for each in await admin.load(named)] == [first]
        helper = source.parent / "points.py"  # imported by the function's file
        changed = helper.stat().st_mtime_ns
        helper.write_text("FACTOR = 5\n")
        os.utime(helper, ns=(changed, changed))  # bytecode of the old source would look valid
        assert (await client.score(pairs("3"))).scores == (6,)
        [served] = await admin.load(named)
        assert served.info.model_version != first
        found = await client.score(pairs("3"))
        assert (found.scores, found.model_version) == ((15,), served.info.model_version)


def test_failures_are_those_of_single_items(source: Path):
    scorer = FunctionScorer(f"{source}:score", section(function_timeout_seconds=2.0))
    try:
        found = results(scorer, "1", "x", "nan", "text", "none", "2")
        assert (found[0], found[5]) == (2, 4)
        for text, wanted in zip(
            found[1:5],
            (
                "raised ValueError: invalid literal for int() with base 10: 'x' (rewards.py:",
                "returned nan, which is not finite",
                "returned '1' in place of a number",
                "raised ValueError: invalid literal for int() with base 10: 'none' (rewards.py:",
            ),
            strict=True,
        ):
            assert f"reward.function {source}:score {wanted}" in str(text)
        ended, fine, hung = results(scorer, "end", "7", "hang")
        assert str(ended).endswith("its process has ended: exit code 3")
        assert fine == 14
        assert "did not return within 2 s (reward.function_timeout_seconds)" in str(hung)
    finally:
        scorer.close()


def test_function_that_changed_is_not_restarted_under_the_old_version(source: Path):
    scorer = FunctionScorer(f"{source}:score", section())
    try:
        (source.parent / "points.py").write_text("FACTOR = 5\n")
        with pytest.raises(Unavailable, match="has changed"):
            scorer.score(scorer.encode(pairs("end")))
        with pytest.raises(EngineFailed, match="its source has changed"):
            scorer.failure.result(timeout=0)
    finally:
        scorer.close()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("no_such_module:score", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("{folder}/none.py:score", "FileNotFoundError: there is no file .*none.py"),
        ("{folder}/rewards.py:none", "AttributeError: module 'rewards' has no attribute 'none'"),
        (
            "{folder}/rewards.py:one_argument",
            r"one_argument\(prompts\) cannot be called with prompts",
        ),
        ("{folder}/rewards.py:FACTOR", "FACTOR is not a function but int"),
    ],
)
async def test_function_that_cannot_be_used_is_refused(source: Path, named: str, message: str):
    with pytest.raises(ModelLoadError, match=f"reward.function .* cannot be used: .*{message}"):
        await asyncio.to_thread(FunctionScorer, named.format(folder=source.parent), section())


def test_a_wrong_number_of_scores_is_an_error_of_every_item(source: Path):
    scorer = FunctionScorer(f"{source}:wrong", section())
    try:
        assert results(scorer, "1") == [1.0]
        assert all("returned 1 scores for 2 responses" in str(one) for one in results(scorer, "1", "2"))
    finally:
        scorer.close()


def test_what_a_function_returns_is_read_where_its_errors_are_caught(source: Path):
    """A generator runs while it is read, and a number of any class may refuse to be one."""
    named = {name: FunctionScorer(f"{source}:{name}", section()) for name in ("lazy", "as_set", "bare")}
    try:
        pids = [scorer._process._process.pid for scorer in named.values()]
        assert results(named["lazy"], "1", "2") == [1.0, 2.0]
        first, second = results(named["lazy"], "1", "x")
        assert first == 1.0
        assert "raised ValueError: could not convert string to float: 'x'" in str(second)
        for found in results(named["as_set"], "2", "1"):  # a set has its own order
            assert "returned {1.0, 2.0} in place of a list" in str(found)
        first, second = results(named["bare"], "1", "2")
        assert "in place of a number" in str(first)
        assert second == 1.0
        assert "raised TypeError: no numbers within" in str(results(named["bare"], "1")[0])
        assert pids == [scorer._process._process.pid for scorer in named.values()]  # none has ended
    finally:
        for scorer in named.values():
            scorer.close()


def test_version_ignores_modules_whose_file_does_not_exist(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Such as `torch.classes`, whose file is `_classes.py` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "no_file", types.ModuleType("no_file"))
    sys.modules["no_file"].__file__ = "_no_file.py"
    module = types.ModuleType("rewards")
    module.__file__ = str(source)
    assert digest(module, "rewards.py:one") == digest(module, "rewards.py:one")


def test_processes_that_a_function_forks_neither_delay_the_service_nor_stay(source: Path, tmp_path: Path):
    file = str(tmp_path / "pids")
    scorer = FunctionScorer(f"{source}:forking", section(function_timeout_seconds=1.5))

    def forked() -> list[int]:
        return [int(pid) for pid in Path(file).read_text().split()]

    try:
        [score] = scorer.score(scorer.encode([TextPair(file, "fine")]))
        assert score == 1.0
        assert len(forked()) == 1
        os.kill(forked()[0], 0)
        [hung] = scorer.score(scorer.encode([TextPair(file, "hang")]))
        assert "did not return within 1.5 s" in str(hung)
        [score] = scorer.score(scorer.encode([TextPair(file, "fine")]))
        assert score == 1.0
    finally:
        scorer.close()
    deadline = time.monotonic() + 20
    while any(map(_runs, forked())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """Return whether a process exists and is no zombie, as one whose parent has ended may stay."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
