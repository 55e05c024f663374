"""Judges of two answers: rewards with ties, AI judges in both orders, an OpenAI endpoint, people's files."""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fairlead.cli.judges import (
    AIJudge,
    OpenAISpeaker,
    RewardJudge,
    instruction_of,
    order_dependence,
    read_verdicts,
)
from fairlead.cli.named_models import FunctionScorer, addresses_of, is_function
from fairlead.errors import ConfigError, DataError, FairleadError
from tests.chat_endpoint import chat_endpoint


@dataclass
class Scripted:
    """A speaker that decides by the text between the marks of the two answers."""

    decide: Callable[[str, str], str]
    read: list[str] = field(default_factory=list)
    version: str = "scripted"

    async def reply(self, message: str) -> str:
        self.read.append(message)
        first, second = message.split("|")[1:3]
        return self.decide(first, second)


def verdicts(decide: Callable[[str, str], str], pairs: list[tuple[str, str]]) -> list[dict]:
    judge = AIJudge(Scripted(decide), "{prompt}|{first}|{second}|")
    return [asyncio.run(judge.compare("say", first, second)) for first, second in pairs]


def test_ai_judge_reads_both_orders_and_its_position_bias_becomes_ties():
    def longer(first: str, second: str) -> str:
        return "TIE" if len(first) == len(second) else "A" if len(first) > len(second) else "B"

    pairs = [("aaa", "b"), ("a", "bbb"), ("a", "b")]
    fair = verdicts(longer, pairs)
    assert [one["verdict"] for one in fair] == [1.0, 0.0, 0.5]
    assert order_dependence(fair) == {"first_preferred": 0.5, "inconsistent": 0.0, "unreadable": 0.0}
    biased = verdicts(lambda first, second: "A", pairs)
    assert [one["verdict"] for one in biased] == [0.5] * 3
    assert order_dependence(biased) == {"first_preferred": 1.0, "inconsistent": 1.0, "unreadable": 0.0}
    silent = verdicts(lambda first, second: "I cannot say.", pairs)
    assert [one["verdict"] for one in silent] == [0.5] * 3
    assert order_dependence(silent)["unreadable"] == 1.0
    # A tie in one order only: what the other order says.
    half = verdicts(lambda first, second: "A" if first == "aaa" else "TIE", pairs[:1])
    assert half == [{"verdict": 1.0, "orders": [1.0, 0.5]}]
    # Braces in an answer are text, and a reply with both letters says nothing.
    assert verdicts(lambda first, second: "A" if first == "{second}" else "B", [("{second}", "x")])[0] == {
        "verdict": 1.0,
        "orders": [1.0, 1.0],
    }
    assert verdicts(lambda first, second: "A or B", pairs[:1])[0]["orders"] == [None, None]


OWN = """
    async def length(prompts, answers):
        return [len(answer) for answer in answers]

    def nan(prompts, answers):
        return [float("nan")] * len(answers)

    def fails(prompts, answers):
        return [answer[9] for answer in answers]

    def single(prompt, answer):
        return 7

    def one(prompts):
        return []
"""


def test_reward_judge_and_functions(tmp_path: Path):
    (tmp_path / "own.py").write_text(textwrap.dedent(OWN))
    with closing(FunctionScorer(f"{tmp_path}/own.py:length", field="--reward")) as scorer:
        judge = RewardJudge(scorer, tie_margin=2.0)
        pairs = (("aaaa", "a"), ("a", "aa"), ("", "aaa"))
        compared = [asyncio.run(judge.compare("p", *pair)) for pair in pairs]
    assert [one["verdict"] for one in compared] == [1.0, 0.5, 0.0]
    for name, message in (
        ("nan", "own.py:nan returned nan, which is not finite, for the answer 'a'"),
        ("fails", r"own.py:fails raised IndexError: .* \(own.py:\d+\), for the answer 'a'"),
        ("single", r"own.py:single returned 7 in place of a list: it gets a list of prompts"),
    ):
        with closing(FunctionScorer(f"{tmp_path}/own.py:{name}", field="--reward")) as scorer:
            with pytest.raises(FairleadError, match=message):
                asyncio.run(scorer.scores("p", ["a"]))
    for named, message in (
        ("no_such.py:f", "there is no file"),
        ("no_such_module:f", "No module named"),
        ("math:no_such", "no attribute 'no_such'"),
        ("math:pi", "pi is not a function but float"),
        (f"{tmp_path}/own.py:one", r"one\(prompts\) cannot be called with prompts and responses"),
    ):
        with pytest.raises(ConfigError, match=f"--reward.*{message}"):
            FunctionScorer(named, field="--reward")
    assert addresses_of("a:5001, [::1]:5002") == ["a:5001", "[::1]:5002"]
    assert addresses_of("runs/x/sft") == addresses_of("judge:gold") == []
    assert is_function("judge.rules:gold")
    assert is_function("rules/own.py:gold")
    assert not is_function("localhost:5001")


@contextmanager
def endpoint(answers: list[tuple[int, object]]) -> Iterator[tuple[str, list[dict]]]:
    """Serve chat completions: a status and body for each request, the last one for the rest."""
    asked: list[dict] = []

    def answer(request: dict) -> tuple[int, object]:
        asked.append(request)
        return answers[min(len(asked), len(answers)) - 1]

    with chat_endpoint(answer) as url:
        yield url, asked


def test_openai_endpoint_is_asked_again_when_busy(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    said = {"choices": [{"message": {"content": "B"}}]}
    with endpoint([(429, {}), (200, said)]) as (url, asked):
        assert asyncio.run(OpenAISpeaker(url, "judge", 20.0).reply("which?")) == "B"
        assert [one["model"] for one in asked] == ["judge", "judge"]
        assert asked[0]["key"] == "Bearer secret"
        assert asked[0]["messages"] == [{"role": "user", "content": "which?"}]
    with endpoint([(401, {"error": "no key"})]) as (url, asked):
        with pytest.raises(FairleadError, match="judge at .* answered 401.*no key"):
            asyncio.run(OpenAISpeaker(url, "judge", 20.0).reply("which?"))
        assert len(asked) == 1
    with endpoint([(200, {"error": "odd"})]) as (url, _):
        with pytest.raises(FairleadError, match="answered without a message"):
            asyncio.run(OpenAISpeaker(url, "judge", 20.0).reply("which?"))


def test_files_of_people_and_instructions(tmp_path: Path):
    file = tmp_path / "v.jsonl"
    pair = {"prompt": "p", "first": "a", "second": "b"}
    lines = [pair | {"better": "first"}, pair | {"better": "tie"}, pair | {"first": "c"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_verdicts(file) == {("p", "a", "b"): 0.75}
    file.write_text(json.dumps(pair | {"better": "A"}) + "\n")
    with pytest.raises(DataError, match="v.jsonl:1.*first, second or tie"):
        read_verdicts(file)
    file.write_text(json.dumps(pair) + "\n")
    with pytest.raises(ConfigError, match="without a verdict"):
        read_verdicts(file)
    file.write_text("{prompt} {first}")
    with pytest.raises(ConfigError, match="without {second}"):
        instruction_of(file)
    assert "{second}" in instruction_of(None)
