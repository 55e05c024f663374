"""The sections of a reward that is combined from several terms: `[reward.combined]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from fairlead.config.base import Section

FUNCTION_PATTERN = r"^(|[^:\s]+:[A-Za-z_][A-Za-z0-9_.]*)$"
"""`file.py:name` or `module:name`, or empty."""


class RewardTerm(Section):
    """One term of a combined reward. Exactly one of `path`, `function`, `addresses` and `shape` says what it
    is.
    """

    weight: float = 1.0
    """Factor of its scores; a negative one for a cost. With the rule `constraint`, the constrained term has
    none."""
    path: str = ""
    """A reward model that the service loads: a local folder or Hugging Face id."""
    function: str = Field(default="", pattern=FUNCTION_PATTERN)
    """A function that the service calls, as `reward.function`."""
    addresses: tuple[str, ...] = ()
    """Addresses, `host:port` or `dns:///name:port`, of a reward service that scores it."""
    shape: Literal["", "length", "repetition"] = ""
    """A built-in score of the form of an answer: `length` is 0 up to `max_words` and falls by 1 with each
    `max_words` further words; `repetition` is minus the fraction of its sequences of three words that
    occurred in it before."""
    max_words: int = Field(default=50, ge=1)
    """With `shape = "length"`: number of words without a penalty."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        kinds = {name: getattr(self, name) for name in ("path", "function", "addresses", "shape")}
        given = [name for name, value in kinds.items() if value]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(kinds)}, not {' and '.join(given) or 'none'}")
        if _differs(self, "max_words") and self.shape != "length":
            raise ValueError(f"max_words {self.max_words} has no effect without shape = 'length': remove it")
        return self


TermName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class CombinedSection(Section):
    """Several terms that are one reward, with `reward.engine = "combined"`. The score of every term is kept
    with each rollout.
    """

    rule: Literal["weights", "min", "constraint"] = "weights"
    """How the scores of an answer are combined: `weights` adds them, each times its weight; `min` takes the
    smallest of these products; `constraint` adds those of all terms but `constrained`, and subtracts
    `multiplier` times the excess of that term over `limit`."""
    constrained: str = ""
    """With `constraint`: the name of the term that should not exceed `limit` on average, such as a cost."""
    limit: float = 0.0
    """With `constraint`: the limit of that term."""
    multiplier: float = Field(default=1.0, ge=0)
    """With `constraint`: λ, at the start if it is adapted."""
    multiplier_step: float = Field(default=0.0, ge=0)
    """With `constraint`: after each update of PPO, λ grows by this times the excess of the term's mean over
    `limit`, and never below 0 (a Lagrange multiplier). 0 keeps it fixed."""
    terms: dict[TermName, RewardTerm] = Field(default={})
    """The terms by name, as tables `[reward.combined.terms.NAME]`."""

    @model_validator(mode="after")
    def _check_constrained(self) -> Self:
        if (self.rule == "constraint") != bool(self.constrained):
            raise ValueError("`constrained` belongs to rule = 'constraint', which needs it")
        if self.constrained and self.constrained not in self.terms:
            raise ValueError(f"constrained = {self.constrained!r} is not one of {', '.join(self.terms)}")
        if self.constrained and len(self.terms) < 2:
            raise ValueError("rule = 'constraint' needs another term than the constrained one")
        for name in ("limit", "multiplier", "multiplier_step"):
            value = getattr(self, name)
            if _differs(self, name) and not self.constrained:
                raise ValueError(f"{name} {value} has no effect with rule = {self.rule!r}: remove it")
        if self.constrained and _differs(self.terms[self.constrained], "weight"):
            raise ValueError(
                f"the weight of {self.constrained!r} has no effect, because it is constrained: remove it, or "
                "set multiplier"
            )
        return self

    @property
    def is_adaptive(self) -> bool:
        """Whether PPO adapts the multiplier."""
        return self.rule == "constraint" and self.multiplier_step > 0

    def score(self, terms: Mapping[str, float], *, multiplier: float | None = None) -> float:
        """Return the reward of one answer.

        Args:
            terms: its score by term.
            multiplier: λ; None: the section's.
        """
        weighted = {name: term.weight * terms[name] for name, term in self.terms.items()}
        if self.rule == "min":
            return min(weighted.values())
        if self.rule == "constraint":
            factor = self.multiplier if multiplier is None else multiplier
            weighted[self.constrained] = -factor * (terms[self.constrained] - self.limit)
        return sum(weighted.values())

    def adapted(self, multiplier: float, *, mean: float) -> float:
        """Return λ after an update: one step of gradient ascent on the dual problem (Tessler et al. 2018).

        Args:
            multiplier: λ of the update.
            mean: mean of the constrained term over its answers.
        """
        return max(0.0, multiplier + self.multiplier_step * (mean - self.limit))


def _differs(section: Section, name: str) -> bool:
    return bool(getattr(section, name) != type(section).model_fields[name].default)
