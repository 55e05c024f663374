"""A reward of several terms: rules, the scores of every term, other services, versions and refusals."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fairlead import codec, metrics
from fairlead.config import load
from fairlead.config.rewards import CombinedSection, RewardTerm
from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError, InternalError, InvalidInput
from fairlead.types import TextPair, TokenPair
from services.reward.combined import CombinedScoring
from services.reward.scorer import RewardScorer
from services.reward.scoring import ScoreCall
from services.reward.shapes import shape_score
from tests.tiny import tiny_reward_model
from tests.unit.services.reward.reward_world import reward_service

SOURCE = """
def good(prompts, responses):
    return [float(len(response)) for response in responses]

def cost(prompts, responses):
    return [float(response.count("a")) for response in responses]

def broken(prompts, responses):
    raise ValueError("no")
"""
CALL = ScoreCall(deadline=None)
ITEMS = [TextPair("a prompt", "bbbb"), TextPair("a prompt", "aaaaaa")]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(SOURCE)
    return path


@asynccontextmanager
async def combined(terms: dict[str, dict[str, object]], **settings: object):
    registry = CollectorRegistry()
    section = RewardSection.model_validate(
        {"engine": "combined", "device": "cpu", "combined": {"terms": terms, **settings}}
    )
    async with CombinedScoring(
        section,
        batcher_metrics=metrics.BatcherMetrics(registry),
        reward_metrics=metrics.RewardMetrics(registry),
    ) as scoring:
        yield scoring


async def test_terms_of_functions_shapes_and_another_service_are_scored_and_kept(source: Path):
    named = f"{source}:good"
    async with reward_service(named, engine="function", function=named) as world:
        terms = {
            "good": {"addresses": [world.address], "weight": 0.5},
            "cost": {"function": f"{source}:cost", "weight": -1.0},
            "brief": {"shape": "length", "max_words": 1},
        }
        async with combined(terms) as scoring:
            found = await scoring.score([*ITEMS, TextPair("", "a b c")], CALL)
            assert found.terms == {"good": (4, 6, 5), "cost": (0, 6, 1), "brief": (0, 0, -2)}
            assert found.scores == (2, -3, 2.5 - 1 - 2)
            assert found.model_version == scoring.info.model_version
            assert codec.scores_from_pb(codec.scores_to_pb(found)) == found
            with pytest.raises(InvalidInput, match=r"items.tokens.*the reward has several terms"):
                await scoring.score([TokenPair((1,), (2,))], CALL)
        other = terms | {"brief": {"shape": "length", "max_words": 2}}
        async with combined(other) as scoring:
            assert scoring.info.model_version != found.model_version


async def test_model_is_a_term_with_the_scores_that_it_has_by_itself(tmp_path: Path):
    path = str(tiny_reward_model(tmp_path))
    own = await asyncio.to_thread(RewardScorer, path, RewardSection(device="cpu"))
    items = [TextPair("w5 w6", "w7"), TextPair("w5", "w8 w9")]
    expected = own.score(own.encode(items))
    async with combined({"model": {"path": path, "weight": -1.0}, "brief": {"shape": "length"}}) as scoring:
        found = await scoring.score(items, CALL)
    assert found.terms["model"] == pytest.approx(expected)
    assert found.scores == pytest.approx([-score for score in expected])


async def test_a_term_that_fails_fails_the_request(source: Path):
    terms = {
        "good": {"function": f"{source}:good"},
        "broken": {"function": f"{source}:broken"},
    }
    async with combined(terms) as scoring:
        with pytest.raises(InternalError, match="broken raised ValueError: no"):
            await scoring.score(ITEMS, CALL)


def test_rules():
    terms = {"good": RewardTerm(path="a", weight=2.0), "cost": RewardTerm(path="b", weight=9.0)}
    scores = {"good": 3.0, "cost": 0.5}
    assert CombinedSection(terms=terms).score(scores) == 2 * 3 + 9 * 0.5
    assert CombinedSection(terms=terms, rule="min").score(scores) == 4.5
    constraint = CombinedSection(
        terms=terms | {"cost": RewardTerm(path="b")},
        rule="constraint",
        constrained="cost",
        limit=0.25,
        multiplier=4.0,
        multiplier_step=2.0,
    )
    assert constraint.score(scores) == 6 - 4 * 0.25
    assert constraint.score(scores, multiplier=0.0) == 6
    assert constraint.adapted(4.0, mean=0.75) == 5.0
    assert constraint.adapted(0.5, mean=-1.0) == 0.0
    assert constraint.is_adaptive


@pytest.mark.parametrize(
    ("shape", "answer", "score"),
    [
        ("length", "a b c d", 0.0),
        ("length", "a b c d e f", -0.5),
        ("repetition", "a b", 0.0),
        ("repetition", "a b c d", 0.0),
        ("repetition", "a b c a b c a b c", -4 / 7),  # abc bca cab abc bca cab abc
    ],
)
def test_shapes(shape: str, answer: str, score: float):
    limit = {"max_words": 4} if shape == "length" else {}
    assert shape_score(RewardTerm(shape=shape, **limit), answer) == pytest.approx(score)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward.engine": "combined"}, "reward.combined.terms: got .*NAME"),
        ({"reward.engine": "function"}, "reward.function: got 'no function'"),
        (
            {"reward.function": "rewards.py:score"},
            "reward.function: .* together with reward.engine",
        ),
        ({"reward.combined": {"terms": {"a": {}}}}, "reward.combined.terms.a: .*exactly one of .* not none"),
        (
            {"reward.combined": {"terms": {"a": {"path": "x", "shape": "length"}}}},
            "exactly one of .* not path and shape",
        ),
        (
            {"reward.combined": {"rule": "constraint", "terms": {"a": {"path": "x"}}}},
            "`constrained` belongs to rule = 'constraint'",
        ),
        (
            {
                "ppo": {"dynamic_sampling": True, "num_samples": 2, "estimator": "group"},
                "reward.engine": "combined",
                "reward.combined": {
                    "rule": "constraint",
                    "constrained": "a",
                    "multiplier_step": 0.1,
                    "terms": {"a": {"path": "x"}, "b": {"path": "y"}},
                },
            },
            "ppo.dynamic_sampling: got True, allowed: false with reward.combined.multiplier_step above 0",
        ),
        (
            {
                "reward.combined": {
                    "rule": "constraint",
                    "constrained": "b",
                    "terms": {"a": {"path": "x"}},
                }
            },
            "constrained = 'b' is not one of a",
        ),
        (
            {"reward.combined": {"multiplier_step": 0.5, "terms": {"a": {"path": "x"}}}},
            "multiplier_step 0.5 has no effect with rule = 'weights'",
        ),
        (
            {"reward.combined": {"terms": {"a": {"path": "x", "max_words": 9}}}},
            "max_words 9 has no effect without shape = 'length'",
        ),
        (
            {
                "reward.combined": {
                    "rule": "constraint",
                    "constrained": "b",
                    "terms": {"a": {"path": "x"}, "b": {"path": "y", "weight": 2.0}},
                }
            },
            "the weight of 'b' has no effect, because it is constrained",
        ),
    ],
)
def test_invalid_combinations_are_refused(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        load(overrides=settings)
