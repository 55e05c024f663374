"""Measure with the judge what PPO changed about continuations of held-out prompts.

Generates with the SFT policy and the tuned one, through the policy service, with the same prompts and seeds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from examples.rotten_tomatoes import judge
from examples.variety import distinct_2
from fairlead.config import RunConfig
from fairlead.data.records import load_prompts
from fairlead.data.sentences import load_parts
from fairlead.evaluation.words import WordClassifier
from fairlead.judgments.resampling import mean_interval
from fairlead.local.serving import GeneratedAnswer, ask, serving
from fairlead.report import run_record
from fairlead.types import SamplingParams

NUM_CONTINUATIONS = 1_000
"""Continuations of each policy, spread over the held-out prompts."""
NUM_SAMPLES = 10
"""Number of continuations shown side by side."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The continuations of one prompt, evaluated by the judge."""

    prompt: str
    """The first words of the sentence."""
    texts: tuple[str, ...]
    """The whole sentences, including the prompt."""
    probabilities: tuple[float, ...]
    """Probability of each being positive, by the judge."""
    ended: tuple[bool, ...]
    """Whether each ended, as opposed to being cut off."""

    @property
    def share_positive(self) -> float:
        """Share of the continuations that the judge finds positive."""
        return fmean(probability > 0.5 for probability in self.probabilities)


def measure(config: RunConfig) -> dict[str, Any]:
    """Generate continuations, evaluate them and return the figures.

    Raises:
        FairleadError: the policy of PPO or the data is missing, or a service fails.
    """
    parts = load_parts(
        config.data_path(config.data.sentences), prompt_words=config.data.prompt_words, seed=config.seed
    )
    critic = judge.train(parts.judge)
    before, after = asyncio.run(_answers(config, [str(prompt) for prompt in load_prompts(config).heldout]))
    # Byte-pair tokens contain the spaces between words; a tokenizer of words has none.
    words = not config.model.path and config.model.scratch.tokenizer == "words"
    gap = " " if words else ""
    figures = summary(_judged(critic, before, gap), _judged(critic, after, gap), seed=config.seed)
    record = run_record.read(config.folder)
    return {
        **figures,
        "judge": {
            "trained_on": len(parts.judge),
            "accuracy": judge.accuracy(critic, [*parts.demonstrations, *parts.preferences]),
        },
        "reward_model": {"accuracy": record.reward_model.get("accuracy")},
        "ppo": {
            name: record.ppo.get(name) for name in ("updates", "episodes", "kl", "proxy_first", "proxy_last")
        },
        "seconds": {stage: getattr(record, stage).get("seconds") for stage in ("sft", "reward_model", "ppo")},
    }


def summary(before: Sequence[Judged], after: Sequence[Judged], *, seed: int) -> dict[str, Any]:
    """Return the figures of both sides and the interval of the gain, by resampling prompts in pairs."""
    gains = [late.share_positive - early.share_positive for early, late in zip(before, after, strict=True)]
    shown = random.Random(f"{seed} samples").sample(range(len(before)), k=min(NUM_SAMPLES, len(before)))
    return {
        "prompts": len(before),
        "continuations": sum(len(found.texts) for found in before),
        "positive_before": fmean(found.share_positive for found in before),
        "positive_after": fmean(found.share_positive for found in after),
        "gain": fmean(gains),
        "gain_interval": mean_interval(gains, seed=seed),
        "probability_before": fmean(p for found in before for p in found.probabilities),
        "probability_after": fmean(p for found in after for p in found.probabilities),
        "words_before": _words(before),
        "words_after": _words(after),
        "distinct_2_before": distinct_2(_all_texts(before)),
        "distinct_2_after": distinct_2(_all_texts(after)),
        "ended_before": fmean(flag for found in before for flag in found.ended),
        "ended_after": fmean(flag for found in after for flag in found.ended),
        "probabilities_before": [p for found in before for p in found.probabilities],
        "probabilities_after": [p for found in after for p in found.probabilities],
        "samples": [
            {
                "prompt": before[place].prompt,
                "before": before[place].texts[0],
                "score_before": before[place].probabilities[0],
                "after": after[place].texts[0],
                "score_after": after[place].probabilities[0],
            }
            for place in shown
        ],
    }


def table(figures: Mapping[str, Any]) -> str:
    """Format the figures as Markdown, for a terminal and for docs/results-real-text.md."""
    low, high = figures["gain_interval"]
    rows = [
        ("judged positive", "positive", "{:.1%}"),
        ("probability of positive, mean", "probability", "{:.3f}"),
        ("words in a sentence, mean", "words", "{:.1f}"),
        ("distinct-2: distinct pairs of words ÷ all pairs", "distinct_2", "{:.3f}"),
        ("continuations that ended", "ended", "{:.1%}"),
    ]
    lines = ["| held-out continuations | SFT | after PPO |", "|---|---:|---:|"]
    for title, name, form in rows:
        cells = (form.format(figures[f"{name}_{side}"]) for side in ("before", "after"))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Gain in the share judged positive: {figures['gain']:+.1%}, 95% interval {low:+.1%} to {high:+.1%} "
        f"({figures['continuations']} continuations each of {figures['prompts']} held-out prompts; the judge "
        f"is right on {figures['judge']['accuracy']:.1%} of unseen sentences). Distinct-2 is "
        f"{figures['distinct_2_after'] / figures['distinct_2_before']:.2f} of its value before; KL to the "
        f"reference {figures['ppo']['kl']:.1f} nats per answer.",
        "",
        "| before | after |",
        "|---|---|",
    ]
    for sample in figures["samples"]:
        sides = (
            f"{_cell(sample['prompt'], sample[side])} ({sample[f'score_{side}']:.2f})"
            for side in ("before", "after")
        )
        lines.append(f"| {' | '.join(sides)} |")
    return "\n".join(lines)


def _cell(prompt: str, text: str) -> str:
    escaped = text.removeprefix(prompt).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
    return f"**{prompt}**{escaped}"


async def _answers(
    config: RunConfig, prompts: Sequence[str]
) -> tuple[list[list[GeneratedAnswer]], list[list[GeneratedAnswer]]]:
    samples = max(1, min(round(NUM_CONTINUATIONS / len(prompts)), config.policy.max_samples))
    sampling = SamplingParams(
        temperature=config.evaluation.temperature,
        max_new_tokens=config.sampling.max_new_tokens,
        seed=random.Random(f"{config.seed} outcome").getrandbits(62),
    )

    async def of(model: Path) -> list[list[GeneratedAnswer]]:
        async with serving(config, {"policy": model}) as addresses:
            return await ask(addresses["policy"], prompts, samples=samples, sampling=sampling)

    return await of(config.folder.sft_model), await of(config.folder.policy_model)


def _judged(critic: WordClassifier, groups: Sequence[Sequence[GeneratedAnswer]], gap: str) -> list[Judged]:
    found = []
    for group in groups:
        prompt = str(group[0].prompt)
        texts = tuple(" ".join(f"{prompt}{gap}{answer.text}".split()) for answer in group)
        probabilities = tuple(critic.probabilities(texts))
        found.append(Judged(prompt, texts, probabilities, tuple(answer.ended for answer in group)))
    return found


def _words(groups: Sequence[Judged]) -> float:
    return fmean(len(text.split()) for text in _all_texts(groups))


def _all_texts(groups: Sequence[Judged]) -> list[str]:
    return [text for found in groups for text in found.texts]
