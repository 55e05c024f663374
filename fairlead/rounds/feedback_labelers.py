"""The labelers of a feedback service: tasks go there over HTTP, rankings come back when there are enough."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
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
_SHOWN_SECONDS = 5.0
"""Time between two lines of progress."""
_OF_A_ROUND = ("random", "uncertain")
"""Why a task of a round was chosen."""
_MORE = 10
"""After a stop a round continues with this share more judgments, one in ten."""
_FRESH_PRIORITY = 10
"""Above that of the tasks of a round: they are of use only while PPO runs."""


@dataclass(slots=True)
class _Judged:
    """The judgments of a round that count, as the log grows."""

    number: int
    project: str | None
    every: set[str] = field(default_factory=set)
    """Of everybody but judges."""
    counting: set[str] = field(default_factory=set)
    """Those that may be trained on."""
    _after: int = 0

    def read(self, client: FeedbackClient) -> None:
        for one in client.judgments(after=self._after, project=self.project):
            self._after = int(one["seq"])
            self.every.discard(one["replaces"])
            self.counting.discard(one["replaces"])
            line = one.get("line", {})
            if line.get("round") != self.number or line["why"] not in _OF_A_ROUND or line["kind"] == "judge":
                continue
            self.every.add(one["judgment"])
            if line["cohort"] == "train":
                self.counting.add(one["judgment"])


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
    fresh_labels: Callable[[RunConfig], AbstractContextManager[None]] | None = None
    """Ranks answers while PPO runs in place of the people of the service."""
    poll_seconds: float = _POLL_SECONDS
    """Time between two looks at the service."""
    judged: dict[int, int] = field(default_factory=dict)
    """Judgments of each round when `wait` returned, with those of held-out people."""
    _given: dict[int, int] = field(default_factory=dict)
    _failure: FairleadError | None = None

    def give(self, number: int, tasks: Sequence[Task]) -> None:
        """Add the tasks of a round; those that are there already stay as they are.

        Answers that were cut off are left out, and equal ones are asked about once.
        """
        if number in self._given:
            return
        found = [task for answers in tasks if (task := self._task(number, answers)) is not None]
        with self.connect() as client:
            new = sum(client.add_tasks(found, project=self.project))
        self._given[number] = len(found)
        self.show(f"{len(found)} tasks of round {number} are with the labelers, {new} of them new")

    def wanted(self, number: int) -> int:
        """Return how many judgments of a round, without those of held-out people, are waited for."""
        return min(self.wanted_judgments, self._given.get(number, self.wanted_judgments))

    def stop_waiting(self, error: FairleadError) -> None:
        """Let `wait` raise an error: somebody who labels cannot continue. May be called in any thread."""
        self._failure = error

    def wait(self, number: int, *, beyond: int | None = None) -> None:
        """Wait until there are enough judgments of a round. Its tasks stay open, see `close`.

        Args:
            number: number of the round, from 0.
            beyond: judgments, with those of held-out people, that were not good enough: more are asked for.

        Raises:
            Stalled: nobody judged anything for `longest_wait_seconds`.
            FairleadError: that of `stop_waiting`, or as the client says.
        """
        wanted = self.wanted(number)
        least = 0 if beyond is None else beyond + max(1, beyond // _MORE)
        judged = _Judged(number, self.project)
        known, changed, shown, asked = 0, time.monotonic(), 0.0, beyond is None
        with self.connect() as client:
            while True:
                judged.read(client)
                enough = len(judged.counting) >= wanted and len(judged.every) >= least
                if len(judged.every) != known:
                    known, changed = len(judged.every), time.monotonic()
                    if enough or changed - shown > _SHOWN_SECONDS:
                        shown = changed
                        self.show(f"    {len(judged.counting)} of {wanted} judgments of round {number}")
                if enough:
                    break
                if self._failure is not None:
                    raise self._failure
                if not asked:
                    self._ask_again(client, number)
                    asked = True
                # Held-out people may have had the tasks that are missing.
                elif client.figures("progress", project=self.project)["wanted"] == 0:
                    judged.read(client)  # what came between the two requests
                    break
                if time.monotonic() - changed > self.longest_wait_seconds:
                    raise Stalled(
                        f"no new judgment of round {number} for {self.longest_wait_seconds:.0f} s: there are "
                        f"{len(judged.counting)} of {wanted}; the same command continues"
                    )
                time.sleep(self.poll_seconds)
        self.judged[number] = len(judged.every)

    def close(self, number: int) -> None:
        """Withdraw the tasks of a round that are still open; work in progress on them is kept.

        Raises:
            FairleadError: as the client says.
        """
        with self.connect() as client:
            for task in self._tasks(client, state="open"):
                if _is_of(number, task):
                    client.call("PATCH", f"/tasks/{task['id']}", {"state": "withdrawn"})

    def ranked(self, number: int, *, cohort: str = "train") -> tuple[Sequence[Ranking], str]:
        """Return what people of a cohort have ranked of a round until now, and the digest of that snapshot.

        The order is that of the content: it does not depend on who was faster.

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
        if self.fresh_labels is not None:
            with self.fresh_labels(config):
                yield
            return
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
                for task in self._tasks(client, state="open"):
                    if task["why"] == "fresh":
                        client.call("PATCH", f"/tasks/{task['id']}", {"state": "withdrawn"})

    def _ask_again(self, client: FeedbackClient, number: int) -> None:
        """Open the tasks of a round that were withdrawn; if none is open then, ask for one more judgment of
        each.
        """
        mine = [task for task in self._tasks(client) if _is_of(number, task)]
        for task in mine:
            if task["state"] == "withdrawn":
                with suppress(InvalidInput):  # its texts are erased
                    task.update(client.call("PATCH", f"/tasks/{task['id']}", {"state": "open"}))
        if all(task["state"] != "open" for task in mine):
            for task in mine:
                client.call("PATCH", f"/tasks/{task['id']}", {"overlap": task["overlap"] + 1})

    def _tasks(self, client: FeedbackClient, *, state: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the tasks of the project, all or those of a state."""
        after: int | None = 0
        while after is not None:
            query = {"project": self.project, "after": after, "state": state}
            page = client.call("GET", "/tasks", query=query)
            yield from page["tasks"]
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
        rankings = [json.loads(line) for line in client.export(digest).splitlines()]
        return sorted(rankings, key=_content), digest

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


def _is_of(number: int, task: Mapping[str, Any]) -> bool:
    return task["round"] == number and task["why"] in _OF_A_ROUND


def _content(ranking: Mapping[str, Any]) -> str:
    said = [[answer["text"], answer["rank"]] for answer in ranking["responses"]]
    return json.dumps([ranking["prompt"], said])
