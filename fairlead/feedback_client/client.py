"""The calls of the feedback service by name."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from fairlead.feedback_client.connection import Connection
from fairlead.types import Message

_API = "/v1/feedback"
_TASKS_AT_ONCE = 200
_FOREIGN_AT_ONCE = 100
"""Each judgment is a commit of its own, so that many take seconds."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task, as it is given to one labeler."""

    assignment: str
    """Names the labeler's work on this task."""
    kind: str
    """`rank`, `pair`, `write`, `edit` or `prompt`."""
    prompt: tuple[Message, ...]
    """The conversation to answer; a single message of the role `text` is plain text."""
    answers: Mapping[str, str]
    """Text of each answer by its id, in the order shown."""
    guideline: int
    """Version of the guidelines; 0 if there are none."""
    seconds: float
    """Length of the lease that is left."""
    draft: Mapping[str, Any] | None
    """What was saved before."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was handed in."""

    id: str
    """Names the judgment."""
    late: bool
    """Whether its place had been given to somebody else."""
    repeated: bool
    """Whether it had been handed in before."""


class FeedbackClient(Connection):
    """A connection with the calls of the service by name, for one thread.

    Requests are repeated while the service is away; none is counted twice.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(
        self, method: str, path: str, body: object = None, *, query: Mapping[str, object] | None = None
    ) -> Any:  # noqa: ANN401 - the JSON of any route
        """Call a route of the API and return its JSON; None if it has none.

        Args:
            method: HTTP method.
            path: after `/v1/feedback`.
            body: sent as JSON.
            query: parameters; those that are None are left out.

        Raises:
            FairleadError: see `Connection.request`.
        """
        given = {name: value for name, value in (query or {}).items() if value is not None}
        where = f"{_API}{path}" + (f"?{urlencode(given, doseq=True)}" if given else "")
        reply = self.request(method, where, body)
        return reply.json if reply.body else None

    def sign_in(self, *, handle: str = "", kind: str = "simulated", invitation: str = "") -> None:
        """Start a session for later calls: with a handle on the service's own machine, or an invitation.

        Raises:
            PermissionDenied: the service needs an invitation.
            FairleadError: see `Connection.request`.
        """
        body = {"invitation": invitation} if invitation else {"handle": handle, "kind": kind}
        reply = self.request("POST", f"{_API}/sessions", body)
        self.headers["cookie"] = reply.headers["set-cookie"].partition(";")[0]

    def add_tasks(self, tasks: Iterable[Mapping[str, Any]], *, project: str | None = None) -> Iterator[bool]:
        """Add tasks, as lines that `fairlead generate` writes; yield for each whether it is new.

        Raises:
            InvalidInput: names the field of the task, counted within 200 of them.
            FairleadError: see `Connection.request`.
        """
        left = iter(tasks)
        while part := list(islice(left, _TASKS_AT_ONCE)):
            body = {"tasks": [dict(task) for task in part]} | ({"project": project} if project else {})
            for added in self.call("POST", "/tasks", body)["tasks"]:
                yield bool(added["new"])

    def hand_in_exchanges(self, exchanges: Sequence[Mapping[str, Any]], *, key: str) -> None:
        """Hand in exchanges of the deployed policy whose users agreed, at most 100.

        Args:
            exchanges: as in the API.
            key: random; a batch of the same key counts once.

        Raises:
            InvalidInput: names the field of the exchange.
            FairleadError: see `Connection.request`.
        """
        headers = {"idempotency-key": key}
        self.request("POST", f"{_API}/exchanges", {"exchanges": exchanges}, headers=headers)

    def next(self, *, project: str | None = None, kinds: Sequence[str] | None = None) -> Task | None:
        """Return the task that this labeler works on, or a new one; None if there is nothing to do now.

        Raises:
            FairleadError: see `Connection.request`.
        """
        body = {name: value for name, value in (("project", project), ("kinds", kinds)) if value is not None}
        found = self.call("POST", "/next", body)
        return None if found is None else _task(found)

    def next_tasks(
        self, count: int, *, project: str | None = None, kinds: Sequence[str] | None = None
    ) -> list[Task]:
        """Return at most `count` tasks: those that this labeler works on, and new ones.

        Raises:
            FairleadError: see `Connection.request`.
        """
        body: dict[str, object] = {"count": count}
        body |= {name: value for name, value in (("project", project), ("kinds", kinds)) if value is not None}
        return [_task(one) for one in self.call("POST", "/assignments", body)["assignments"]]

    def renew(self, assignment: str) -> float:
        """Let a lease begin again; return its length in seconds.

        Raises:
            Conflict: its place has been given to somebody else.
            FairleadError: see `Connection.request`.
        """
        return float(self.call("PUT", f"/assignments/{quote(assignment)}/lease")["seconds"])

    def rank(self, assignment: str, ranks: Mapping[str, int], **more: object) -> Receipt:
        """Hand in a ranking: 1 for the best, equal ranks for ties.

        Args:
            assignment: of the task.
            ranks: rank of every answer by its id.
            **more: `ratings`, `flags`, `strength`, `note`, `seconds` and `details` of the API.

        Raises:
            FairleadError: see `Connection.request`.
        """
        return self._hand_in(assignment, {"ranks": dict(ranks), **more})

    def rank_many(self, rankings: Sequence[tuple[str, Mapping[str, int]]]) -> list[Receipt]:
        """Hand in several rankings, at most 100, all or none; each is an assignment with its ranks.

        Raises:
            FairleadError: see `Connection.request`.
        """
        judgments = [{"assignment": assignment, "ranks": dict(ranks)} for assignment, ranks in rankings]
        return list(map(_receipt, self.call("POST", "/judgments", {"judgments": judgments})["receipts"]))

    def write(self, assignment: str, text: str, **more: object) -> Receipt:
        """Hand in a text, of a task of another kind than `rank` and `pair`.

        Args:
            assignment: of the task.
            text: what was written.
            **more: `base`, `note`, `seconds` and `details` of the API.

        Raises:
            FairleadError: see `Connection.request`.
        """
        return self._hand_in(assignment, {"text": text, **more})

    def skip(self, assignment: str, reason: str, *, note: str = "") -> None:
        """Give a task back for good.

        Raises:
            FairleadError: see `Connection.request`.
        """
        self.call("POST", f"/assignments/{quote(assignment)}/skip", {"reason": reason, "note": note})

    def judgments(self, *, after: int = 0, project: str | None = None) -> Iterator[Mapping[str, Any]]:
        """Yield what was said after an entry of the log, to its present end; `seq` is where to continue.

        Raises:
            FairleadError: see `Connection.request`.
        """
        while True:
            page = self.call("GET", "/judgments", query={"after": after, "project": project})
            yield from page["judgments"]
            if page["after"] == after:
                return
            after = int(page["after"])

    def figures(self, name: str, *, project: str | None = None) -> dict[str, Any]:
        """Return figures of a project: `progress`, `agreement`, `labelers`, `judges` or `bias`.

        Raises:
            FairleadError: see `Connection.request`.
        """
        found = self.call("GET", f"/figures/{quote(name)}", query={"project": project})
        assert isinstance(found, dict)
        return found

    def snapshot(self, **wanted: object) -> dict[str, Any]:
        """Make a snapshot of the judgments that a filter selects now.

        Args:
            **wanted: `project`, `kinds`, `cohorts`, `rounds` and so on, as in the API.

        Raises:
            InvalidInput: no judgment matches.
            FairleadError: see `Connection.request`.
        """
        found = self.call("POST", "/snapshots", wanted)
        assert isinstance(found, dict)
        return found

    def export(self, digest: str, form: str = "rankings") -> bytes:
        """Return the judgments of a snapshot as JSON lines.

        Args:
            digest: of the snapshot.
            form: `rankings`, `pairs`, `demonstrations`, `prompts`, `argilla` or `label-studio`.

        Raises:
            Conflict: some were erased.
            FairleadError: see `Connection.request`.
        """
        return self.request("GET", f"{_API}/snapshots/{quote(digest)}.{quote(form)}").body

    def folder(self, digest: str, **about: object) -> bytes:
        """Return a snapshot as a folder with a dataset card, in a ZIP file.

        Args:
            digest: of the snapshot.
            **about: `license`, `title`, `languages`, `consent` and `withdrawal` of the API.

        Raises:
            Conflict: some of its judgments were erased.
            FairleadError: see `Connection.request`.
        """
        return self.request("POST", f"{_API}/snapshots/{quote(digest)}/folder", about).body

    def bring_in(
        self, tool: str, items: Iterable[Mapping[str, Any]], *, project: str | None = None
    ) -> dict[str, int]:
        """Add tasks and rankings of another tool; return how many `tasks` and `judgments` are new, and how
        many judgments are `repeated`.

        Args:
            tool: `argilla` or `label-studio`.
            items: records of Argilla, or tasks of Label Studio.
            project: name of the project.

        Raises:
            InvalidInput: names the record or task, counted within 100 of them.
            FairleadError: see `Connection.request`.
        """
        name = "records" if tool == "argilla" else "tasks"
        counts = {"tasks": 0, "judgments": 0, "repeated": 0}
        left = iter(items)
        while part := list(islice(left, _FOREIGN_AT_ONCE)):
            body = {name: [dict(item) for item in part]} | ({"project": project} if project else {})
            for count, number in self.call("POST", f"/imports/{quote(tool)}", body).items():
                counts[count] += number
        return counts

    def register(
        self,
        kind: str,
        artifact: str,
        made_from: Sequence[str],
        *,
        place: str = "",
        details: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        """Register a model with what it was made from; the same again changes nothing.

        Args:
            kind: `reward_model` or `policy`.
            artifact: its id, such as a digest.
            made_from: ids of snapshots and models.
            place: where it is.
            details: more about it.

        Raises:
            Conflict: there is another artifact of this id.
            FairleadError: see `Connection.request`.
        """
        body = {"id": artifact, "kind": kind, "made_from": list(made_from)}
        found = self.call("POST", "/artifacts", body | {"place": place, "details": dict(details or {})})
        assert isinstance(found, dict)
        return found

    def report_round(
        self, run: str, number: int, *, project: str | None = None, **changes: object
    ) -> dict[str, Any]:
        """Report how far a run is with a round, which the page *Rounds* shows.

        Args:
            run: name of the run.
            number: of the round.
            project: name of the project.
            **changes: `step`, `state`, `message`, `wanted` and `gate` of the API; others stay.

        Raises:
            FairleadError: see `Connection.request`.
        """
        body = changes | ({"project": project} if project else {})
        found = self.call("PUT", f"/rounds/{quote(run, safe='')}/{number}", body)
        assert isinstance(found, dict)
        return found

    def _hand_in(self, assignment: str, body: Mapping[str, object]) -> Receipt:
        headers = {"idempotency-key": secrets.token_hex(16)}
        path = f"{_API}/assignments/{quote(assignment)}/judgment"
        return _receipt(self.request("POST", path, body, headers=headers).json)


def _receipt(found: Mapping[str, Any]) -> Receipt:
    return Receipt(id=found["id"], late=found["late"], repeated=found["repeated"])


def _task(found: Mapping[str, Any]) -> Task:
    return Task(
        assignment=found["assignment"],
        kind=found["kind"],
        prompt=tuple(Message(turn["role"], turn["content"]) for turn in found["prompt"]),
        answers={answer["id"]: answer["text"] for answer in found["answers"]},
        guideline=found["guideline"],
        seconds=found["seconds"],
        draft=found["draft"],
    )
