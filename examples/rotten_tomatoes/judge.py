"""A judge of sentiment that is independent of the reward model: another kind of model, other labels.

It is trained on the part of the sentences that neither fine-tuning nor the reward model sees.
"""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.data.sentences import Sentence
from fairlead.evaluation import words
from fairlead.evaluation.words import WordClassifier


def train(sentences: Sequence[Sentence]) -> WordClassifier:
    """Fit the judge. The same sentences give the same judge."""
    return words.train([sentence.text for sentence in sentences], [sentence.label for sentence in sentences])


def accuracy(judge: WordClassifier, sentences: Sequence[Sentence]) -> float:
    """Return the share of labelled sentences whose label it predicts."""
    return judge.accuracy([one.text for one in sentences], [one.label for one in sentences])
