"""Labelers who look on while PPO runs: they label the answers of every update.

A thread beside a stage; reads samples_ppo.jsonl as the trainer writes it. The trainer's guard reads the
rankings.
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
    """For the length of the block, and once more at its end, labelers judge what is new in `samples`."""
    labeler = Labeler(samples, rankings, seed=seed)
    done = threading.Event()

    def work() -> None:
        while not done.wait(_POLL_SECONDS):
            labeler.look()
        labeler.look()

    thread = threading.Thread(target=work, name="labelers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Labeler:
    """Compares each answer with one that the run's first update held to the same prompt.

    Such a pair shows what training has changed: a reward that is earned is seen by labelers too. Answers of
    one update say less, as they grow alike.
    """

    def __init__(self, samples: Path, rankings: Path, *, seed: int) -> None:
        """Goes on behind the last update that the file of rankings knows."""
        self._tail, self._rankings, self._seed = Tail(samples), rankings, seed
        self._first = defaultdict[str, list[Mapping[str, Any]]](list)
        known = rankings.read_text(encoding="utf-8").splitlines() if rankings.exists() else []
        self._update = max((int(json.loads(line)["update"]) for line in known), default=FIRST_UPDATE)

    def look(self) -> None:
        """Labels the answers that have been written since the last look."""
        rows = []
        for number, line in self._tail.appended():
            if number == 1:  # from the start; an interrupted run, too, goes on with a file of its own
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
        """The pair of an answer; none if it stood there from the start, or its prompt did not."""
        prompt, text = row["prompt"], row["text"]
        others = [other for other in self._first[prompt] if other["text"] != text]
        if not others:
            return
        rng = random.Random(f"{self._seed} fresh labels {row['update']} {row['task']}")
        pair = (row, rng.choice(others))
        worths = [gold.reward(prompt, answer["text"], ended=answer["ended"]) for answer in pair]
        better, worse = labelers.rank(worths, rng=rng)
        yield {
            "update": row["update"],
            "prompt": prompt,
            "chosen": pair[better]["text"],
            "rejected": pair[worse]["text"],
        }
