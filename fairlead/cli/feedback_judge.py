"""`fairlead feedback judge`: a language model labels tasks through the API of the feedback service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fairlead.cli.feedback_options import Address, Project, client_of
from fairlead.cli.output import TimeoutSeconds, fail, say, with_examples

if TYPE_CHECKING:
    from fairlead.cli.judges import Speaker
    from fairlead.cli.judging import Judged, TaskJudge
    from fairlead.cli.revising import TaskReviser
    from fairlead.feedback_client import FeedbackClient
    from fairlead.feedback_client.client import Task

Found = TypeVar("Found")

HELP = with_examples(
    "Let a language model rank the answers of tasks, as a labeler of the kind judge. It reads every two "
    "answers in both orders (from five answers on it sorts them): orders that contradict one another are a "
    "tie, and a task with a reply that cannot be read is skipped. Each judgment records the model, the "
    "digest of the rubric, the principle that was drawn, and all replies. It ends when there is nothing to "
    "do.\n\n"
    "With --revise it writes demonstrations in place of rankings, for tasks of the kinds write and edit: a "
    "critique of an answer by the principle, and a revision, which is handed in with both.\n\n"
    "The key of a judge is in FAIRLEAD_API_KEY, that of the endpoint in OPENAI_API_KEY. A share of its tasks "
    "goes to people, too, and the service pauses a judge that agrees with them too little "
    "(docs/feedback.md).",
    "fairlead feedback judge rubric.md --address h:8400 --endpoint https://api.openai.com/v1 --model gpt-5",
    "fairlead feedback judge rubric.md --address 127.0.0.1:8400 --policy 127.0.0.1:5001 --handle judge-1 "
    "--constitution principles.txt --limit 100",
    "fairlead feedback judge rubric.md --address h:8400 --policy h:5001 --constitution c.txt --revise",
)
_SHOWN_EVERY_SECONDS = 5.0
_QUOTED = 300


@dataclass(slots=True)
class Summary:
    """What a judge did."""

    judged: int = 0
    """Rankings handed in."""
    revised: int = 0
    """Demonstrations handed in."""
    skipped: int = 0
    """Tasks skipped, since a reply could not be read."""
    late: int = 0
    """Rankings that came after their place was given away."""
    comparisons: int = 0
    """Pairs of answers whose replies could be read in both orders."""
    consistent: int = 0
    """Those with the same verdict in both."""
    ties: int = 0
    """Those that are ties, contradictions included."""
    first: int = 0
    """Replies that prefer the answer shown first."""
    decided: int = 0
    """Replies that prefer an answer."""

    def add(self, found: Judged) -> None:
        """Count what a model said about a task."""
        for one in found.comparisons:
            if one.verdict is None:
                continue
            self.comparisons += 1
            self.consistent += one.verdicts[0] == one.verdicts[1]
            self.ties += one.verdict == 0.5
            for verdict, of_first in zip(one.verdicts, (1.0, 0.0), strict=True):
                self.decided += verdict != 0.5
                self.first += verdict == of_first

    def __str__(self) -> str:
        late = f", {self.late} of them late" if self.late else ""
        done = f"{self.revised} revised" if self.revised else f"{self.judged} judged"
        found = f"{done}{late}, {self.skipped} skipped"
        if self.comparisons:
            found += (
                f"; of {self.comparisons} pairs {self.consistent / self.comparisons:.1%} the same in both "
                f"orders, {self.ties / self.comparisons:.1%} ties"
            )
        if self.decided:
            found += f"; the first place preferred in {self.first / self.decided:.1%}"
        return found


def judge(  # noqa: PLR0913, PLR0917 - a flag each
    rubric: Annotated[
        Path, typer.Argument(metavar="RUBRIC", help="Text file that says what makes an answer better.")
    ],
    address: Address,
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="URL", help="Endpoint with OpenAI's chat completions.")
    ] = "",
    model: Annotated[str, typer.Option("--model", help="Name of the model at --endpoint.")] = "",
    policy: Annotated[
        str, typer.Option("--policy", metavar="HOST:PORT", help="A policy service in place of --endpoint.")
    ] = "",
    constitution: Annotated[
        Path | None,
        typer.Option(
            "--constitution", metavar="FILE", help="Principles, a line each; one is drawn for each task."
        ),
    ] = None,
    revise: Annotated[
        bool, typer.Option("--revise", help="Write demonstrations; needs --constitution.")
    ] = False,
    handle: Annotated[
        str,
        typer.Option("--handle", help="Name to work under, on the service's own machine without API keys."),
    ] = "",
    project: Project = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Tasks after which it ends.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Longest reply of the model.")
    ] = 512,
    timeout_seconds: TimeoutSeconds = 300.0,
) -> None:
    """Work until there is nothing to do."""
    from fairlead.cli.judging import rubric_of

    if bool(endpoint) == bool(policy):
        fail(
            "--endpoint: got " + ("--policy as well" if policy else "nothing") + ", allowed: it, or --policy"
        )
    if bool(model) != bool(endpoint):
        fail("--model: allowed with, and needed for, --endpoint")
    if revise and constitution is None:
        fail("--revise: allowed with --constitution, by which answers are criticised")
    read = rubric_of(rubric, constitution)
    with client_of(address) as client:
        _sign_in(client, handle)

        async def work() -> None:
            from fairlead.cli.judging import TaskJudge
            from fairlead.cli.revising import TaskReviser

            async with _speaker(endpoint, model, policy, (max_new_tokens, timeout_seconds)) as speaker:
                worker = TaskReviser(speaker, read) if revise else TaskJudge(speaker, read)
                await run(client, worker, project=project, limit=limit)

        asyncio.run(work())


async def run(
    client: FeedbackClient,
    judge: TaskJudge | TaskReviser,
    *,
    project: str | None,
    limit: int | None,
    show: Callable[[str], None] = typer.echo,
) -> Summary:
    """Judge or revise until there is nothing to do; show progress and, however it ends, a summary.

    Raises:
        PermissionDenied: the judge is paused.
        FairleadError: the model or the service cannot be asked.
    """
    from fairlead.cli.judging import TaskJudge

    summary = Summary()
    kinds = ("rank", "pair") if isinstance(judge, TaskJudge) else ("write", "edit")
    shown = time.monotonic()
    try:
        while limit is None or summary.judged + summary.revised + summary.skipped < limit:
            task = client.next(project=project, kinds=kinds)
            if task is None:
                break
            if isinstance(judge, TaskJudge):
                await _one(client, judge, task, summary)
            else:
                await _revision(client, judge, task, summary)
            if time.monotonic() - shown > _SHOWN_EVERY_SECONDS:
                say(str(summary), err=True, dim=True)
                shown = time.monotonic()
    finally:
        show(str(summary))
    return summary


async def _one(client: FeedbackClient, judge: TaskJudge, task: Task, summary: Summary) -> None:
    started = time.monotonic()
    asked = judge.judge(task.assignment, _prompt_of(task), task.answers)
    found = await _while_renewing(client, task, asked)
    summary.add(found)
    if found.ranks is None:
        unreadable = [
            reply
            for one in found.comparisons
            for reply, verdict in zip(one.replies, one.verdicts, strict=True)
            if verdict is None
        ]
        note = f"{judge.speaker.version}: no verdict at the end of {len(unreadable)} replies, such as "
        client.skip(task.assignment, "other", note=note + repr(unreadable[0][-_QUOTED:]))
        summary.skipped += 1
        return
    seconds = time.monotonic() - started
    receipt = client.rank(task.assignment, found.ranks, details=judge.details(found), seconds=seconds)
    summary.judged += 1
    summary.late += receipt.late


async def _revision(client: FeedbackClient, reviser: TaskReviser, task: Task, summary: Summary) -> None:
    started = time.monotonic()
    asked = reviser.revise(task.assignment, _prompt_of(task), task.answers)
    found = await _while_renewing(client, task, asked)
    if found.revision is None:
        note = f"{reviser.speaker.version}: nothing to revise, or no answer in {found.reply[-_QUOTED:]!r}"
        client.skip(task.assignment, "other", note=note)
        summary.skipped += 1
        return
    seconds, details = time.monotonic() - started, reviser.details(found)
    receipt = client.write(task.assignment, found.revision, base=found.base, details=details, seconds=seconds)
    summary.revised += 1
    summary.late += receipt.late


def _prompt_of(task: Task) -> str:
    """Return a conversation as lines of `role: content`; plain text is a single turn."""
    plain = len(task.prompt) == 1 and task.prompt[0].role == "text"
    return "\n".join(turn.content if plain else f"{turn.role}: {turn.content}" for turn in task.prompt)


async def _while_renewing(client: FeedbackClient, task: Task, asked: Coroutine[Any, Any, Found]) -> Found:
    """Return what the model says, and keep the lease meanwhile."""
    from fairlead.errors import Conflict

    working = asyncio.create_task(asked)
    seconds = max(0.1, task.seconds)
    try:
        while not (await asyncio.wait([working], timeout=seconds / 3))[0]:
            try:
                seconds = client.renew(task.assignment)
            except Conflict:
                # The place is given away; what comes is handed in as late.
                return await working
        return await working
    finally:
        working.cancel()


def _sign_in(client: FeedbackClient, handle: str) -> None:
    from fairlead.errors import ConfigError

    if handle:
        client.sign_in(handle=handle, kind="judge")
    me = client.call("GET", "/me")
    if me["kind"] != "judge":
        raise ConfigError(
            "--handle" if handle else "FAIRLEAD_API_KEY",
            got=f"{me['handle']}, of the kind {me['kind']}",
            allowed="somebody of the kind judge",
        )


@asynccontextmanager
async def _speaker(
    endpoint: str, model: str, policy: str, limits: tuple[int, float]
) -> AsyncIterator[Speaker]:
    """Yield the model; `limits` are tokens of a reply and seconds of a request."""
    from fairlead.cli.judges import OpenAISpeaker, PolicySpeaker
    from fairlead.cli.named_models import addresses_of, policy_at

    max_tokens, timeout_seconds = limits
    if endpoint:
        yield OpenAISpeaker(endpoint, model, timeout_seconds, max_tokens)
        return
    at = addresses_of(policy)
    if not at:
        fail(f"--policy: got {policy!r}, allowed: HOST:PORT of a policy service")
    async with policy_at(at, timeout_seconds=timeout_seconds) as found:
        yield PolicySpeaker(found, max_tokens)
