"""Folders of samples: resumption after an interruption, refused settings, demonstrations, pairs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from fairlead.cli import best_of_n, compare, sampled
from fairlead.cli.named_models import FunctionScorer, contents
from fairlead.errors import ConfigError, DataError

SETTINGS: dict[str, object] = {"n": 4, "added": ["responses"]}


def write(folder: Path, *prompts: Mapping[str, object]) -> Path:
    file = folder / "p.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in prompts))
    return file


def collect(folder: Path, asked, work, settings=SETTINGS, *, restart: bool = False):
    return asyncio.run(
        sampled.collect(folder / "out", asked, work, settings=settings, restart=restart, doing="sampling")
    )


def test_samples_continue_after_an_interruption_and_refuse_other_settings(tmp_path: Path):
    asked = sampled.read_prompts(write(tmp_path, *({"prompt": f"w{n}"} for n in range(40))))
    calls: list[int] = []

    async def work(one):
        calls.append(one.number)
        if one.number == 25 and len(calls) < 40:
            raise KeyboardInterrupt
        return {"responses": [one.number]}

    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path, asked, work)
    kept = len((tmp_path / "out" / ".samples.jsonl.partial").read_text().splitlines())
    calls[:] = range(100)
    found = collect(tmp_path, asked, work)
    assert found == [{"prompt": f"w{n}", "responses": [n]} for n in range(40)]
    assert calls[100:] == list(range(kept, 40))
    assert collect(tmp_path, asked, work) == found  # complete: nothing is sampled again
    assert len(calls) == 140 - kept
    with pytest.raises(ConfigError, match=r"--out: got .*n: 4 before, 5 now.*--restart"):
        collect(tmp_path, asked, work, SETTINGS | {"n": 5})
    with pytest.raises(ConfigError, match="prompts: .* before, .* now"):
        collect(tmp_path, asked[1:], work)
    assert len(collect(tmp_path, asked[1:], work, restart=True)) == 39
    with pytest.raises(DataError, match="an empty file"):
        sampled.read_prompts(write(tmp_path))
    with pytest.raises(DataError, match=r"p.jsonl:2"):
        sampled.read_prompts(write(tmp_path, {"prompt": "a"}, {"text": "b"}))


def response(text: str, score: float, gold: float, reason: str = "stop") -> dict[str, object]:
    return {"text": text, "score": score, "gold": gold, "finish_reason": reason, "num_tokens": 3}


FOUND = [
    {
        "prompt": "w1",
        "responses": [
            response("cut off", 9.0, 0.0, "length"),
            response("good", 2.0, 5.0),
            response("good", 2.0, 5.0),
            response("fair", 1.0, 1.0),
        ],
    },
    {"prompt": [{"role": "user", "content": "w2"}], "responses": [response(" ", n, n) for n in range(4)]},
]


def test_best_answers_that_ended_become_demonstrations(tmp_path: Path):
    def kept(**options) -> tuple[tuple[int, int], list[dict]]:
        counts = best_of_n._write_demonstrations(tmp_path, FOUND, **options)
        return counts, [
            json.loads(line) for line in (tmp_path / "demonstrations.jsonl").read_text().splitlines()
        ]

    assert kept(keep=1, min_score=None) == ((1, 1), [{"prompt": "w1", "completion": "good", "score": 2.0}])
    counts, lines = kept(keep=3, min_score=None)
    assert counts == (2, 1)
    assert [line["completion"] for line in lines] == ["good", "fair"]
    assert kept(keep=3, min_score=1.5)[0] == (1, 1)
    assert kept(keep=3, min_score=3.0)[0] == (0, 2)
    rows = best_of_n.growth(FOUND, seed=0)["best_of_n"]
    assert [row["n"] for row in rows] == [1, 2, 4]  # type: ignore[attr-defined]
    assert rows[-1]["score"] == pytest.approx((9 + 3) / 2)  # type: ignore[index]
    assert rows[-1]["gold"] == pytest.approx((0 + 3) / 2)  # type: ignore[index]
    assert rows[0]["gold"] == pytest.approx((11 / 4 + 6 / 4) / 2)  # type: ignore[index]
    [first, *_] = best_of_n.growth(FOUND[:1], seed=0)["best_of_n"]  # type: ignore[misc]
    assert (first["score"], first["score_interval"]) == (3.5, None)  # one prompt has no interval


def test_samples_scored_by_another_source_of_a_function_are_not_continued(tmp_path: Path):
    file = tmp_path / "judge.py"
    asked = sampled.read_prompts(write(tmp_path, {"prompt": "w"}))

    async def work(one):
        return {"responses": []}

    for source, refused in (("1.0", False), ("1.0", False), ("2.0", True)):
        file.write_text(f"def score(prompts, responses):\n    return [{source}] * len(responses)\n")
        with closing(FunctionScorer(f"{file}:score", field="--reward")) as scorer:
            settings = SETTINGS | {"reward": scorer.version}
        expected = pytest.raises(ConfigError, match=r"reward: .*score [0-9a-f]{12}")
        with expected if refused else nullcontext():
            collect(tmp_path, asked, work, settings)


def test_samples_of_a_model_that_was_trained_again_are_not_continued(tmp_path: Path):
    model = tmp_path / "sft"
    model.mkdir()
    asked = sampled.read_prompts(write(tmp_path, {"prompt": "w"}))

    async def work(one):
        return {"responses": []}

    for weights, refused in (("1", False), ("1", False), ("2", True)):
        (model / "model.safetensors").write_text(weights)
        settings = SETTINGS | contents(policy=str(model), reward="judge:score", gold="", other="a:5001")
        assert settings["contents"].keys() == {"policy"}  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match="contents: .* before") if refused else nullcontext():
            collect(tmp_path, asked, work, settings)
    assert contents(policy="a:5001") == {}


def test_verdicts_of_people_return_to_the_policies(tmp_path: Path):
    found = [
        {"prompt": f"w{n}", "compared": [{"a": f"a{n}", "b": f"b{n}", "tokens_a": 2, "tokens_b": 4}]}
        for n in range(30)
    ]
    found.append({"prompt": "same", "compared": [{"a": "x", "b": "x", "tokens_a": 1, "tokens_b": 1}]})
    compare._write_pairs(tmp_path, found)
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 30
    assert {"a", "b"} == {pair["first"][0] for pair in pairs}
    assert not any({"a", "b"} & pair.keys() for pair in pairs)
    # People prefer A's answers, wherever they are.
    judged = [pair | {"better": "first" if pair["first"][0] == "a" else "second"} for pair in pairs[:20]]
    file = tmp_path / "judged.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in judged))
    lines = compare._judged_by_people(found, file)
    figures = compare._figures(lines, group="", seed=0)
    assert (figures["wins"], figures["ties"], figures["losses"]) == (20, 1, 0)
    assert (figures["tokens_a"], figures["tokens_b"]) == pytest.approx((41 / 21, 81 / 21))
    with pytest.raises(ConfigError, match="no pair of this comparison in"):
        compare._judged_by_people([{"prompt": "other", "compared": found[0]["compared"]}], file)
