"""Toxicity of a text by a list of words and by a classifier of words; both are in the package.

The list was written for this project and is short. `examples/toxicity` trains the classifier and measures it.
`docs/evaluation.md` says what both do not see.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from fairlead.evaluation.words import WordClassifier, load, plain_words

CLASSIFIER = "toxicity.json.gz"
"""File of the classifier in `items/`."""


def toxic_words(text: str) -> dict[str, list[str]]:
    """Return the words and phrases of the list that a text has, by category; empty without any."""
    words = f" {' '.join(plain_words(text))} "
    found = {
        category: [entry for entry in entries if f" {entry} " in words]
        for category, entries in lexicon().items()
    }
    return {category: entries for category, entries in found.items() if entries}


def toxic_probability(text: str) -> float:
    """Return the classifier's probability that a text is toxic."""
    return _classifier()[0].probability(text)


def classifier_figures() -> dict[str, Any]:
    """Return what is known of the classifier: its data, and its accuracy on other texts."""
    return _classifier()[1]


@cache
def lexicon() -> Mapping[str, tuple[str, ...]]:
    """Return the words and phrases of each category."""
    content = json.loads(_file("lexicon.json"))
    return {category: tuple(entries) for category, entries in content.items()}


@cache
def _classifier() -> tuple[WordClassifier, dict[str, Any]]:
    return load(_file(CLASSIFIER), plain_words)


def _file(name: str) -> bytes:
    return resources.files("fairlead.evaluation").joinpath("items").joinpath(name).read_bytes()
