"""The labelers of a feedback service: tasks go there over HTTP, rankings come back when there are enough."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from fairlead.config import RunConfig
from fairlead.errors import FairleadError, InvalidInput, Stalled
from fairlead.feedback_client import FeedbackClient
from fairlead.feedback_client.follow import RankingsFile
from fairlead.rounds.files import prompt_json
from fairlead.rounds.fresh_pairs import FreshPairs
from fairlead.rounds.labelers import Ranking, Task

logger = logging.getLogger(__name__)

_POLL_SECONDS = 2.0
_OF_A_ROUND = ("random", "uncertain")
"""Why a task of a round was chosen."""
_FRESH_PRIORITY = 10
"""Above that of the tasks of a round: they are of use only while PPO runs."""


@dataclass(slots=True, kw_only=True)
class FeedbackLabelers:
    """Those who work on the tasks of one project."""

    connect: Callable[[], FeedbackClient]
    """Opens a connection of a caller who may add tasks and export; each thread has its own."""
    run: str
    """Name of the run, which exports show and labelers do not."""
    project: str | None = None
    """Name of the project; that of the service's configuration by default."""
    wanted_judgments: int
    """Judgments of a round, without those of held-out people, that are waited for; at most one for each of
    its tasks. A round also ends when the project wants nothing more."""
    longest_wait_seconds: float = float("inf")
    """How long to wait without any new judgment."""
    fresh_per_update: int = 0
    """Answers of each PPO update that labelers compare with earlier ones."""
    show: Callable[[str], None] = logger.info
    """Shows progress while waiting."""
    poll_seconds: float = _POLL_SECONDS
    """Time between two looks at the service."""
    digests: dict[int, str] = field(default_factory=dict)
    """Digest of the snapshot of each round whose rankings were returned."""
    _given: dict[int, int] = field(default_factory=dict)

    def give(self, number: int, tasks: Sequence[Task]) -> None:
        """Add the tasks of a round; those that are there already stay as they are.

        Answers that were cut off are left out, and equal ones are asked about once.
        """
        found = [task for answers in tasks if (task := self._task(number, answers)) is not None]
        with self.connect() as client:
            new = sum(client.add_tasks(found, project=self.project))
        self._given[number] = len(found)
        self.show(f"{len(found)} tasks of round {number} are with the labelers, {new} of them new")

    def wait(self, number: int) -> Sequence[Ranking]:
        """Wait until there are enough judgments of a round; return those that may be trained on.

        Raises:
            Stalled: nobody judged anything for `longest_wait_seconds`.
            FairleadError: as the client says.
        """
        wanted = min(self.wanted_judgments, self._given.get(number, self.wanted_judgments))
        counting: set[str] = set()
        after, changed = 0, time.monotonic()
        with self.connect() as client:
            while True:
                before = len(counting)
                for one in client.judgments(after=after, project=self.project):
                    after = int(one["seq"])
                    counting.discard(one["replaces"])
                    line = one.get("line", {})
                    if line.get("round") == number and line["cohort"] == "train" and line["kind"] != "judge":
                        counting.add(one["judgment"])
                if len(counting) != before:
                    changed = time.monotonic()
                    self.show(f"{len(counting)} of {wanted} judgments of round {number}")
                # Held-out people may have had the tasks that are missing.
                if len(counting) >= wanted or client.figures("progress", project=self.project)["wanted"] == 0:
                    break
                if time.monotonic() - changed > self.longest_wait_seconds:
                    raise Stalled(
                        f"no new judgment of round {number} for {self.longest_wait_seconds:.0f} s: there are "
                        f"{len(counting)} of {wanted}; the same command continues"
                    )
                time.sleep(self.poll_seconds)
            self._withdraw_open(client, lambda task: task["round"] == number and task["why"] in _OF_A_ROUND)
            rankings, self.digests[number] = self._rankings(client, number, "train")
            return rankings

    def ranked(self, number: int, *, cohort: str = "train") -> tuple[Sequence[Ranking], str]:
        """Return what people of a cohort have ranked of a round until now, and the digest of that snapshot.

        Args:
            number: number of the round.
            cohort: `train`, or `heldout` for people who only measure.

        Returns:
            Rankings and digest; nothing and an empty text if there are none.

        Raises:
            FairleadError: as the client says.
        """
        with self.connect() as client:
            try:
                return self._rankings(client, number, cohort)
            except InvalidInput:  # no judgment matches
                return [], ""

    @contextmanager
    def following(self, config: RunConfig) -> Iterator[None]:
        """Let labelers compare answers of each update while PPO runs, if `fresh_per_update` is not 0."""
        if not self.fresh_per_update:
            yield
            return
        done = threading.Event()
        pairs = FreshPairs(config.folder.rollout_samples, seed=config.seed)
        file = RankingsFile(
            Path(config.data.fresh_rankings), project=self.project, keep=lambda line: line["why"] == "fresh"
        )

        def work() -> None:
            with self.connect() as client:
                ended = False
                while not ended:
                    ended = done.wait(self.poll_seconds)
                    try:
                        self._add_fresh(client, pairs)
                        file.append_new(client)
                    except FairleadError as error:
                        logger.warning("cannot follow the labelers for now: %s", error)

        thread = threading.Thread(target=work, name="labelers", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            # They would come before the tasks of the next round.
            with self.connect() as client:
                self._withdraw_open(client, lambda task: task["why"] == "fresh")

    def _withdraw_open(self, client: FeedbackClient, chosen: Callable[[Mapping[str, Any]], bool]) -> None:
        """Withdraw open tasks that nothing waits for any more; work in progress on them is kept."""
        after: int | None = 0
        while after is not None:
            query = {"project": self.project, "after": after, "state": "open"}
            page = client.call("GET", "/tasks", query=query)
            for task in filter(chosen, page["tasks"]):
                client.call("PATCH", f"/tasks/{task['id']}", {"state": "withdrawn"})
            after = page["next"]

    def _task(self, number: int, answers: Task) -> dict[str, Any] | None:
        texts = dict.fromkeys(answer.text for answer in answers if answer.ended)
        if len(texts) < 2:
            return None
        responses = [{"text": text, "run": self.run} for text in texts]
        return {"prompt": prompt_json(answers[0].prompt), "responses": responses, "round": number}

    def _rankings(self, client: FeedbackClient, number: int, cohort: str) -> tuple[list[dict[str, Any]], str]:
        """Return the rankings of a cohort in a round, and the digest of their snapshot."""
        more = {} if self.project is None else {"project": self.project}
        snapshot = client.snapshot(rounds=[number], whys=_OF_A_ROUND, cohorts=[cohort], **more)
        digest = snapshot["digest"]
        return [json.loads(line) for line in client.export(digest).splitlines()], digest

    def _add_fresh(self, client: FeedbackClient, pairs: FreshPairs) -> None:
        new = []
        for _, of_update in groupby(pairs.new(), key=lambda pair: pair.later["update"]):
            for pair in list(of_update)[: self.fresh_per_update]:
                rows = (pair.later, pair.earlier)
                responses = [{"text": row["text"], "run": self.run} for row in rows]
                task = {"prompt": pair.later["prompt"], "responses": responses, "why": "fresh"}
                new.append(task | {"priority": _FRESH_PRIORITY})
        for _ in client.add_tasks(new, project=self.project):
            pass
