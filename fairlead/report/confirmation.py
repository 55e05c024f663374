"""How much of the gain in reward a second reward model confirms, one that PPO does not maximise.

Reads the evaluations of a run with `evaluation.reward_model`; empty without them.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.report import charts
from fairlead.report.charts import Curve
from fairlead.report.page import PageSection, Picture
from fairlead.report.run_record import RunRecord

PROXY, JUDGE = "eval_reward", "eval_heldout_reward"
_MEASURED = "docs/results.md, Reward hacking, measured"
"""The section of the documents that says how much to expect; a page refers to no other file."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Gains on held-out prompts from the first evaluation to the last, each in its model's own unit."""

    proxy_gain: float
    """By the reward model that PPO maximises."""
    judge_gain: float
    """By the second one."""

    @property
    def share(self) -> float | None:
        """Judge's gain ÷ proxy's gain; None if the proxy did not rise."""
        return self.judge_gain / self.proxy_gain if self.proxy_gain > 0 else None


def confirmation(record: RunRecord) -> Confirmation | None:
    """Return both gains; None without two evaluations by both reward models."""
    proxy, judge = (dict(zip(*record.curve(name), strict=True)) for name in (PROXY, JUDGE))
    both = sorted(proxy.keys() & judge.keys())
    if len(both) < 2:
        return None
    first, last = both[0], both[-1]
    return Confirmation(proxy[last] - proxy[first], judge[last] - judge[first])


def section(record: RunRecord) -> list[PageSection]:
    """Return the section with both gains over updates; empty without two evaluations."""
    found = confirmation(record)
    if found is None:
        return []
    proxy, judge = record.curve(PROXY), record.curve(JUDGE)
    first = min(set(proxy[0]) & set(judge[0]))
    curves = {"reward model": _gains(proxy, first), "second reward model": _gains(judge, first)}
    picture = Picture(
        title="Gain on held-out prompts",
        chart=charts.lines(curves, x_label="update", wide=True),
        caption="Mean scores of answers to held-out prompts since the first evaluation, in each model's own "
        "unit. Where the curves part, the policy finds what only the first model likes.",
        wide=True,
    )
    text = (
        f"{sentence(found)} Reward models that share mistakes confirm them to each other: read the share as "
        f"an upper bound. How it falls with distance, and which guards help: {_MEASURED}."
    )
    return [PageSection(title="What a second reward model confirms", text=text, pictures=(picture,))]


def sentence(found: Confirmation) -> str:
    """Return the finding as a sentence."""
    if found.share is None:
        return f"The reward did not rise on held-out prompts ({found.proxy_gain:+.2f})."
    return (
        f"The reward rose by {found.proxy_gain:.2f} on held-out prompts, the second reward model's by "
        f"{found.judge_gain:+.2f}: {found.share:.0%} of the gain is confirmed."
    )


def _gains(curve: Curve, first: float) -> Curve:
    """Return a curve from an update on, minus its value there."""
    known = {x: y for x, y in zip(*curve, strict=True) if x >= first}
    return list(known), [y - known[first] for y in known.values()]
