"""Simulated labelers that label the answers of every update while PPO runs.

They run in a thread and read samples_ppo.jsonl as the trainer writes it. The trainer's guard reads their
labels.
"""

from __future__ import annotations

import json
import random
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.parcel_help import gold, labelers
from fairlead.data.tail import Tail

FIRST_UPDATE = 1
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
    """Compares each answer with one of the first update to the same prompt.

    Such a pair shows what training changed: if the reward was earned, labelers prefer the later answer. Pairs
    of answers of one update say less, since these become similar.
    """

    def __init__(self, samples: Path, rankings: Path, *, seed: int) -> None:
        """Continue after the last update in the file of rankings."""
        self._tail = Tail(samples)
        self._rankings = rankings
        self._seed = seed
        self._first = defaultdict[str, list[Mapping[str, Any]]](list)
        known = rankings.read_text(encoding="utf-8").splitlines() if rankings.exists() else []
        self._update = max((int(json.loads(line)["update"]) for line in known), default=FIRST_UPDATE)

    def label_new(self) -> None:
        """Label the answers written since the last call."""
        rows = []
        for number, line in self._tail.appended():
            if number == 1:  # The file was started again, as after an interruption.
                self._first.clear()
            rows.append(json.loads(line))
        for row in rows:
            if row["update"] == FIRST_UPDATE:
                self._first[row["prompt"]].append(row)
        lines = [line for row in rows if row["update"] > self._update for line in self._label(row)]
        if lines:
            self._rankings.parent.mkdir(parents=True, exist_ok=True)
            with self._rankings.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        self._update = max([self._update, *(int(row["update"]) for row in rows)])

    def _label(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the labelled pair of an answer, if the first update has another answer to its prompt."""
        prompt, text = row["prompt"], row["text"]
        others = [other for other in self._first[prompt] if other["text"] != text]
        if not others:
            return
        rng = random.Random(f"{self._seed} fresh labels {row['update']} {row['task']}")
        pair = (row, rng.choice(others))
        gold_rewards = [gold.reward(prompt, answer["text"], ended=answer["ended"]) for answer in pair]
        better, worse = labelers.rank(gold_rewards, rng=rng)
        yield {
            "update": row["update"],
            "prompt": prompt,
            "chosen": pair[better]["text"],
            "rejected": pair[worse]["text"],
        }
