"""Simulated labelers that label the answers of every update while PPO runs.

They run in a thread and read samples_ppo.jsonl as the trainer writes it. The trainer's guard reads their
labels.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.parcel_help import gold, labelers
from fairlead.rounds.fresh_pairs import FIRST_UPDATE, FreshPair, FreshPairs

_POLL_SECONDS = 0.2


@contextmanager
def labelling(samples: Path, rankings: Path, *, seed: int) -> Iterator[None]:
    """Label new answers in `samples` during the block, and once more at its end."""
    labeler = Labeler(samples, rankings, seed=seed)
    done = threading.Event()

    def work() -> None:
        while not done.wait(_POLL_SECONDS):
            labeler.label_new()
        labeler.label_new()

    thread = threading.Thread(target=work, name="labelers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Labeler:
    """Compares each answer with one of the first update to the same prompt."""

    def __init__(self, samples: Path, rankings: Path, *, seed: int) -> None:
        """Continue after the last update in the file of rankings."""
        self._rankings = rankings
        known = rankings.read_text(encoding="utf-8").splitlines() if rankings.exists() else []
        after = max((int(json.loads(line)["update"]) for line in known), default=FIRST_UPDATE)
        self._pairs = FreshPairs(samples, seed=seed, after_update=after)

    def label_new(self) -> None:
        """Label the answers written since the last call."""
        lines = [_label(pair) for pair in self._pairs.new()]
        if lines:
            self._rankings.parent.mkdir(parents=True, exist_ok=True)
            with self._rankings.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)


def _label(pair: FreshPair) -> dict[str, Any]:
    prompt, answers = pair.later["prompt"], (pair.later, pair.earlier)
    gold_rewards = [gold.reward(prompt, answer["text"], ended=answer["ended"]) for answer in answers]
    better, worse = labelers.rank(gold_rewards, rng=pair.rng)
    return {
        "update": pair.later["update"],
        "prompt": prompt,
        "chosen": answers[better]["text"],
        "rejected": answers[worse]["text"],
    }
