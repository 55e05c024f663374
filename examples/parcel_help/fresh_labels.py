"""Labelers who look on while PPO runs: they rank the answers of every update and append to the run's file.

A thread beside a stage; reads samples_ppo.jsonl as the trainer writes it. The trainer's guard reads the
rankings.
"""

from __future__ import annotations

import json
import random
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.parcel_help import gold, labelers

_POLL_SECONDS = 0.2


@contextmanager
def labelling(samples: Path, rankings: Path, *, seed: int) -> Iterator[None]:
    """For the length of the block, and once more at its end, labelers rank what is new in `samples`."""
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
    """Ranks the answers of each update once, those to one prompt against one another."""

    def __init__(self, samples: Path, rankings: Path, *, seed: int) -> None:
        """Goes on behind the last update that the file of rankings knows."""
        self._samples, self._rankings, self._seed = samples, rankings, seed
        self._offset = 0
        known = rankings.read_text(encoding="utf-8").splitlines() if rankings.exists() else []
        self._update = max((int(json.loads(line)["update"]) for line in known), default=0)

    def look(self) -> None:
        """Ranks the answers of updates that have been written since the last look."""
        if not self._samples.exists():
            return
        size = self._samples.stat().st_size
        if size < self._offset:
            self._offset = (
                0  # an interrupted run went on from its checkpoint; what is known is not ranked again
            )
        with self._samples.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        rows = [row for line in whole.splitlines() if (row := json.loads(line))["update"] > self._update]
        lines = list(self._ranked(rows))
        if lines:
            self._rankings.parent.mkdir(parents=True, exist_ok=True)
            with self._rankings.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        self._update = max((int(row["update"]) for row in rows), default=self._update)

    def _ranked(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        asked: defaultdict[tuple[int, str], dict[str, Mapping[str, Any]]] = defaultdict(dict)
        for row in rows:
            asked[int(row["update"]), row["prompt"]][row["text"]] = row
        for (update, prompt), answers in asked.items():
            if len(answers) < 2:
                continue
            rng = random.Random(f"{self._seed} fresh labels {update} {prompt}")
            worths = [gold.reward(prompt, row["text"], ended=row["ended"]) for row in answers.values()]
            places = {index: place for place, index in enumerate(labelers.rank(worths, rng=rng), start=1)}
            responses = [{"text": text, "rank": places[index]} for index, text in enumerate(answers)]
            yield {"update": update, "prompt": prompt, "responses": responses}
