"""Train the classifier of toxic words: `python -m examples.toxicity TWEETS.csv HATECHECK.csv ANSWERS.gz`.

The data are not part of the project:

- TWEETS.csv: `data/labeled_data.csv` of github.com/t-davidson/hate-speech-and-offensive-language (MIT;
  Davidson et al. 2017), 24,783 tweets that people called hate speech, offensive or neither.
- HATECHECK.csv: `test_suite_cases.csv` of github.com/paul-rottger/hatecheck-data (CC BY 4.0; Röttger
  et al. 2021), 3,728 sentences that test classifiers. Only measured, never trained on.
- ANSWERS.gz: answers of assistants to the instructions of AlpacaEval (Apache-2.0), taken for not toxic.

The weights are written into the package; the same files give the same weights.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.evaluation.toxicity import CLASSIFIER
from fairlead.evaluation.words import WordClassifier, plain_words, train

OUT = Path(__file__).parents[2] / "fairlead" / "evaluation" / "items" / CLASSIFIER
MIN_TEXTS = 5
"""Words and pairs of fewer texts are left out: 13,000 terms remain of 200,000."""
ANSWER_CHARACTERS = 400
"""Of an answer of an assistant that are read: about as many as the answers of a card have."""
ANSWERS_PER_PROMPT = 2
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Text:
    """A labelled text."""

    text: str
    """The text."""
    toxic: int
    """1 for toxic."""
    key: str
    """Texts of one key are on one side of the split."""

    @property
    def is_held_out(self) -> bool:
        """Whether it is in the fifth that is only measured."""
        return int(hashlib.sha256(self.key.encode()).hexdigest()[:8], 16) % _FOLDS == 0


def tweets(file: Path) -> Iterator[Text]:
    """Yield the tweets; hate speech and offensive language are toxic."""
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield Text(row["tweet"], int(row["class"] != "2"), row["tweet"])


def hatecheck(file: Path) -> Iterator[Text]:
    """Yield the cases of HateCheck; hateful ones are toxic."""
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield Text(row["test_case"], int(row["label_gold"] == "hateful"), row["templ_id"])


def answers(file: Path) -> Iterator[Text]:
    """Yield answers of assistants, taken for not toxic."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            for answer in row["responses"][:ANSWERS_PER_PROMPT]:
                yield Text(answer["text"][:ANSWER_CHARACTERS], 0, row["prompt"])


def figures(classifier: WordClassifier, texts: Sequence[Text], what: str) -> dict[str, object]:
    """Return the accuracy on texts, with the share of the toxic and of the other ones that it finds."""
    said = [(classifier.probability(one.text) > 0.5) == (one.toxic == 1) for one in texts]
    parts = []
    for label, name in ((1, "toxic"), (0, "other")):
        right = [found for found, one in zip(said, texts, strict=True) if one.toxic == label]
        if right:
            parts.append(f"{sum(right) / len(right):.1%} of the {len(right):,} {name} ones")
    return {
        "accuracy": round(sum(said) / len(said), 4),
        "n": len(said),
        "note": f"{what}: {' and '.join(parts)}",
    }


def main() -> int:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(prog="python -m examples.toxicity", description=__doc__)
    parser.add_argument("tweets", type=Path)
    parser.add_argument("hatecheck", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    labelled, said = list(tweets(options.tweets)), list(answers(options.answers))
    known = [one for one in (*labelled, *said) if not one.is_held_out]
    toxic = sum(one.toxic for one in known)
    # Both labels count the same, although five of six tweets are toxic.
    weights = [len(known) / 2 / (toxic if one.toxic else len(known) - toxic) for one in known]
    classifier = train(
        [one.text for one in known],
        [one.toxic for one in known],
        words_of=plain_words,
        min_texts=MIN_TEXTS,
        example_weights=weights,
    )
    held_out = {
        "tweets": figures(classifier, [one for one in labelled if one.is_held_out], "of the same data set"),
        "HateCheck": figures(
            classifier, list(hatecheck(options.hatecheck)), "hard cases of another data set"
        ),
        "answers of assistants": figures(
            classifier, [one for one in said if one.is_held_out], "taken for not toxic"
        ),
    }
    about = {
        "trained_on": f"{len(known):,} texts: tweets labelled by people (Davidson et al. 2017, MIT) and "
        "answers of assistants (AlpacaEval, Apache-2.0), which count as not toxic.",
        "held_out": held_out,
    }
    classifier.save(options.out, about)
    print(json.dumps({"terms": len(classifier.terms), **about}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
