"""Who labels pairs besides people: judges of a known accuracy, and judges whose accuracy is measured.

A judge of known accuracy reverses people's labels at random. The others decide by themselves, and err alike
on alike pairs; so each has a control, which is wrong as often, but about pairs drawn at random.

Shapes: P pairs, L learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.helpful_harmless import judge
from examples.helpful_harmless.ai_feedback.questions import Asked, Split
from examples.helpful_harmless.judge import Array
from fairlead.evaluation.toxicity import toxic_probability
from trainer.reward_model import baselines

RANDOM = "random"
"""The judge that knows nothing."""
KNOWN = {"right80": 0.8, "right70": 0.7, "right60": 0.6, RANDOM: 0.5}
"""Probability that a judge's label is that of people."""
TRAINED = ("words", "head")
"""Judges that have learnt from labels of people of other pairs."""
TITLES = {
    "right80": "judge right in 80%",
    "right70": "judge right in 70%",
    "right60": "judge right in 60%",
    RANDOM: "labels at random",
    "likelihood": "log-likelihood of the answer, untuned model",
    "shorter": "the shorter answer wins",
    "toxicity": "the less toxic answer, by a classifier of words",
    "prompted": "the untuned model, asked which is less harmful",
    "words": "bag of words, trained on other pairs",
    "head": "linear head, trained on other pairs",
}
_CONTROL = "errors of "

Labels = NDArray[np.bool_]
"""Whether each label orders its pair as people did."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Pairs, and what is known of them before any label is used."""

    asked: Asked
    """Pairs with their questions."""
    better_PF: Array
    """Features of the answers that people preferred."""
    worse_PF: Array
    """Features of the others."""
    margins: Mapping[str, Array]
    """Of each untrained judge: its score of the answer that people preferred minus that of the other, [P]."""

    @property
    def real(self) -> tuple[str, ...]:
        """Names of the judges that decide by themselves."""
        return (*self.margins, *TRAINED)


def control(name: str) -> str:
    """Return the name of the control of a judge: as many errors, but about pairs drawn at random."""
    return f"{_CONTROL}{name}"


def title(name: str) -> str:
    """Return what a judge is, for a table."""
    known = name.removeprefix(_CONTROL)
    return TITLES[name] if known == name else f"as many errors as: {TITLES[known]}"


def margins_of_texts(asked: Asked) -> dict[str, Array]:
    """Return the margins of the untrained judges that read the texts only."""
    texts = [(pair.chosen, pair.rejected) for pair in asked.pairs]
    return {
        "shorter": -np.array(baselines.longer_wins(texts)),
        "toxicity": np.array(
            [toxic_probability(rejected) - toxic_probability(chosen) for chosen, rejected in texts]
        ),
    }


def labels(evidence: Evidence, split: Split, *, rng: np.random.Generator) -> dict[str, Labels]:
    """Return the labels of every judge for the pairs to learn from; a judge that ties draws."""
    drawn_L = rng.random(len(split.learnt_L))
    found = {name: drawn_L < accuracy for name, accuracy in KNOWN.items()}
    for name, margins_L in _margins(evidence, split).items():
        coins_L = rng.random(len(margins_L)) < KNOWN[RANDOM]
        found[name] = np.where(margins_L == 0, coins_L, margins_L > 0)
        found[control(name)] = rng.permutation(found[name])
    return found


def _margins(evidence: Evidence, split: Split) -> dict[str, Array]:
    """Return the margins [L] of the judges that decide by themselves."""
    pairs, learnt, known = evidence.asked.pairs, split.learnt_L, split.judges_J
    texts, of_judges = ([(pairs[p].chosen, pairs[p].rejected) for p in places] for places in (learnt, known))
    head = judge.fit(evidence.better_PF[known], evidence.worse_PF[known])
    return {
        **{name: margins_P[learnt] for name, margins_P in evidence.margins.items()},
        "words": np.array(baselines.bag_of_words(of_judges, texts)),
        "head": head.scores(evidence.better_PF[learnt]) - head.scores(evidence.worse_PF[learnt]),
    }
