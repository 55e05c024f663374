"""The figures of an evaluation as Markdown, for a terminal and for docs/results-real-text.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from examples.helpful_harmless import accuracy, measures


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the table of the reward model, the table before and after, and what else was measured.

    No answer is quoted: prompts and answers of this data may be offensive.
    """
    wins, pairs, ppo = (figures[name] for name in ("wins", "pairs", "ppo"))
    judge = figures["reward_models"]["judge"]
    before, after = figures["distinct_2"]
    return "\n".join(
        [
            accuracy.table(figures["reward_models"]),
            "",
            f"Trained on {pairs['known']} pairs, measured on {pairs['unseen']} that it has not seen.",
            "",
            measures.table(figures["changes"]),
            "",
            f"The judge finds the later answer better for {wins['share']:.1%} of {wins['n']} prompts, 95% "
            f"interval {wins['interval'][0]:.1%} to {wins['interval'][1]:.1%}; it is right on "
            f"{judge['accuracy']:.1%} of pairs of people that it has not seen ({judge['interval'][0]:.1%} to "
            f"{judge['interval'][1]:.1%}). Distinct-2 of the answers {before:.3f} before and {after:.3f} "
            f"after; KL to the reference {ppo['kl']:.1f} nats per answer.",
        ]
    )
