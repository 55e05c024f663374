"""Measure what the reward model has learnt, and what RLOO changed about the policy.

Both policies answer the same prompts with the same seeds, and both read the same texts. The judge and the
word lists had no part in training.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.helpful_harmless import accuracy, judge, measures
from examples.helpful_harmless.asking import (
    Answers,
    Sources,
    answers_of,
    chat,
    said,
    sources,
    untuned_answers,
)
from examples.helpful_harmless.baselines import margins, read_pairs, side_of, untuned_model
from examples.helpful_harmless.instructions import shared_words
from examples.helpful_harmless.reading import Answer, Readings, read_groups
from examples.variety import distinct_2
from fairlead.config import RunConfig
from fairlead.evaluation.checking import is_correct
from fairlead.evaluation.refusals import refuses
from fairlead.evaluation.toxicity import toxic_probability, toxic_words
from fairlead.local.serving import score, serving
from fairlead.report import run_record


def measure(config: RunConfig, data: Path) -> dict[str, Any]:
    """Return all figures of a finished run.

    Raises:
        FairleadError: a model or data is missing, or a service fails.
    """
    found = sources(config, data)
    untuned, tuned = untuned_model(config), str(config.folder.policy_model)
    before, after, scores = asyncio.run(_asked(config, found, (untuned, tuned)))
    texts: dict[str, list[Answer]] = {
        "instructions": [(chat(one.prompt), one.answer) for one in found.instructions],
        "sentences": [("", sentence) for sentence in found.sentences],
    }
    of_pairs = read_pairs(config, found.pairs)
    critic = judge.fit(of_pairs["better"].features_NF, of_pairs["worse"].features_NF)
    early = read_groups(
        untuned, {"before": said(before.heldout), "after": said(after.heldout), **texts}, config.reward
    ) | {side: of_pairs[side].at(found.places) for side in ("better", "worse")}
    asked = [found.pairs.unseen[place] for place in found.places]
    late = read_groups(
        tuned,
        {"better": side_of(asked, "chosen"), "worse": side_of(asked, "rejected"), **texts},
        config.reward,
    )
    rows = [
        {
            "judge": critic.scores(early[side].features_NF).tolist(),
            "reward": scores[side],
            **_of_answers(found, answers),
            **_of_readings(readings),
        }
        for side, answers, readings in (("before", before, early), ("after", after, late))
    ]
    record = run_record.read(config.folder)
    return {
        "pairs": {"known": len(found.pairs.known), "unseen": len(found.pairs.unseen)},
        "reward_models": accuracy.compare(
            {
                "reward_model": _differences(scores["better"], scores["worse"]),
                **margins(found.pairs, of_pairs, seed=config.seed),
            },
            seed=config.seed,
        ),
        "changes": measures.changes(*rows, seed=config.seed),
        "wins": measures.win_rate(rows[0]["judge"], rows[1]["judge"], seed=config.seed),
        "judge_scores": [row["judge"] for row in rows],
        "distinct_2": [distinct_2(answer.text for answer in side.heldout) for side in (before, after)],
        "ppo": {name: record.ppo.get(name) for name in ("updates", "episodes", "kl")},
    }


def ask_untuned(config: RunConfig, data: Path) -> None:
    """Ask the untuned policy, and keep its answers in the run's folder.

    Raises:
        FairleadError: data is missing, or the service fails.
    """
    untuned = untuned_model(config)
    asyncio.run(untuned_answers(config, untuned, sources(config, data)))


def _of_answers(found: Sources, answers: Answers) -> dict[str, list[float]]:
    """Return what word lists and counting say of the answers of one policy."""
    texts = [answer.text for answer in answers.heldout]
    return {
        "refuses": [float(refuses(text)) for text in texts],
        "toxic_words": [float(bool(toxic_words(text))) for text in texts],
        "toxic_probability": [toxic_probability(text) for text in texts],
        "refuses_harmful": [float(refuses(answer.text)) for answer in answers.harmful],
        "refuses_harmless": [float(refuses(answer.text)) for answer in answers.harmless],
        "refuses_instruction": [float(refuses(answer.text)) for answer in answers.instructions],
        "shared_words": [
            shared_words(answer.text, one.answer)
            for answer, one in zip(answers.instructions, found.instructions, strict=True)
        ],
        "questions": [
            float(is_correct(answer.text, item.accepted, item.rejected))
            for answer, item in zip(answers.questions, found.of("question"), strict=True)
        ],
        "words": [float(len(text.split())) for text in texts],
        "ended": [float(answer.ended) for answer in answers.heldout],
    }


def _of_readings(readings: Mapping[str, Readings]) -> dict[str, list[float]]:
    """Return how probable given texts are to one policy."""
    odds = _differences(readings["better"].logprobs_N.tolist(), readings["worse"].logprobs_N.tolist())
    return {
        "log_odds": odds,
        "log_odds_right": accuracy.right(odds),
        "best_answer": readings["instructions"].mean_logprobs.tolist(),
        "chosen": readings["better"].mean_logprobs.tolist(),
        "sentences": readings["sentences"].mean_logprobs.tolist(),
    }


async def _asked(
    config: RunConfig, found: Sources, models: tuple[str, str]
) -> tuple[Answers, Answers, dict[str, list[float]]]:
    """Return the answers of both policies, and the reward model's scores of them and of the unseen pairs."""
    untuned, tuned = models
    # Whole answers of people may be longer than those that the policy gives.
    unlimited = config.reward.model_copy(update={"max_sequence_tokens": 0})
    before, after = await untuned_answers(config, untuned, found), await answers_of(config, tuned, found)
    async with serving(
        config.model_copy(update={"reward": unlimited}), {"reward": config.folder.reward_model}
    ) as addresses:
        asked = {
            "better": side_of(found.pairs.unseen, "chosen"),
            "worse": side_of(found.pairs.unseen, "rejected"),
            "before": said(before.heldout),
            "after": said(after.heldout),
        }
        scores = {name: await score(addresses["reward"], pairs) for name, pairs in asked.items()}
    return before, after, scores


def _differences(better: Sequence[float], worse: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(better, worse, strict=True)]
