"""`fairlead feedback reach` and `forget`: from judgments to models, back, and without somebody."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from fairlead.cli.feedback_options import Address, client_of
from fairlead.cli.output import Json, fail, need, say, with_examples

if TYPE_CHECKING:
    from fairlead.feedback_client import FeedbackClient

REACH_HELP = with_examples(
    "Show which snapshots, reward models and policies were made of what a person said, of the prompts of an "
    "end user, of a prompt or of a judgment; or, with --model, of whose judgments a model was made.",
    "fairlead feedback reach --person anna --address 127.0.0.1:8400",
    "fairlead feedback reach --prompt 'my lamp arrived broken' --json --address 127.0.0.1:8400",
    "fairlead feedback reach --model runs/help/round-1/policy --address 127.0.0.1:8400",
)
FORGET_HELP = with_examples(
    "Erase what a person said and wrote, the prompts of an end user, or a prompt, with all that was said "
    "about it; models that were made of it are marked. It needs a key with the scope admin, "
    "or the service's own machine.\n\n"
    "--files are folders or files of exports, such as the folder of a run: lines of what is erased are "
    "removed from them, and files that still hold a text are listed, with exit code 1. --backup is a copy of "
    "the SQLite store that nothing else uses.",
    "fairlead feedback forget --person anna --address 127.0.0.1:8400",
    "fairlead feedback forget --user u-17 --files runs/help --files exports --backup feedback-backup.db "
    "--address 127.0.0.1:8400",
)
_WIDTH = 80
_INDENT = " " * 14

_PersonOption = Annotated[str, typer.Option("--person", help="Name or id of a person.")]
_UserOption = Annotated[
    str, typer.Option("--user", help="An end user, as requests to the policy named them.")
]
_PromptOption = Annotated[
    str, typer.Option("--prompt", help="Id of a prompt, or a text that exactly one prompt contains.")
]


@dataclass(frozen=True, slots=True)
class _Start:
    """Where lineage begins."""

    kind: str
    """`person`, `user`, `prompt` or `judgment`."""
    name: str
    """As the API takes it."""
    shown: str
    """For people."""

    @property
    def path(self) -> str:
        return f"/reach/{self.kind}/{quote(self.name, safe='')}"


def reach(
    address: Address,
    person: _PersonOption = "",
    user: _UserOption = "",
    prompt: _PromptOption = "",
    judgment: Annotated[str, typer.Option("--judgment", help="Id of a judgment, as in exports.")] = "",
    model: Annotated[
        str, typer.Option("--model", help="Id of a snapshot or model, or the folder of a model.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show lineage in one direction."""
    asked = {"person": person, "user": user, "prompt": prompt, "judgment": judgment, "model": model}
    kind, name = _only(asked)
    with client_of(address) as client:
        if kind == "model":
            query = {"judgments": True} if as_json else None
            found = client.call("GET", f"/artifacts/{quote(_artifact(name), safe='')}", query=query)
            lines = _backward(found)
        else:
            start = _start(client, kind, name)
            found = client.call("GET", start.path)
            lines = _forward(start.shown, found)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for line in lines:
        typer.echo(line)


def forget(
    address: Address,
    person: _PersonOption = "",
    user: _UserOption = "",
    prompt: _PromptOption = "",
    files: Annotated[
        list[Path] | None,
        typer.Option("--files", metavar="PATH", help="File or folder of exports; repeatable."),
    ] = None,
    backup: Annotated[
        list[Path] | None, typer.Option("--backup", metavar="FILE", help="Copy of the store; repeatable.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Show what would be erased, ask, and erase it."""
    from fairlead.feedback_client.exported import clean

    kind, name = _only({"person": person, "user": user, "prompt": prompt})
    if missing := next((one for one in (*(files or ()), *(backup or ())) if not one.exists()), None):
        fail(f"{missing}: no such file or folder")
    with client_of(address) as client:
        start = _start(client, kind, name)
        found = client.call("GET", start.path, query={"texts": True})
        for line in _forward(start.shown, found):
            say(line, err=True)
        if not yes:
            typer.confirm("Erase this for good?", abort=True, err=True)
        if backup:
            # First: afterwards nobody could find there what is erased here.
            _forget_in(backup, start)
        proof = client.call("POST", "/forget", {start.kind: start.name})
    typer.echo(
        f"erased: {_count(proof['entries'], 'entry', 'entries')} and what they were about; "
        f"{_count(len(proof['artifacts']), 'snapshot or model is', 'snapshots and models are')} marked"
    )
    typer.echo(f"proof in the log: {proof['id']}")
    if proof["scrubbed"] is None:
        say("the files of the store are not free of it yet; the service finishes that by itself", err=True)
    ids = {one for what in ("entries", "tasks", "answers", "prompts") for one in found[what]}
    ids |= {found["pseudonym"]} if found["pseudonym"] else set()
    left = False
    for one in clean(files or (), ids, found["texts"]):
        if one.removed:
            typer.echo(f"{one.path}: {_count(one.removed, 'line', 'lines')} removed")
        if one.left:
            left = True
            typer.echo(f"{one.path}: still holds {_count(one.left, 'text', 'texts')}; delete them yourself")
    if left:
        raise typer.Exit(1)


def _only(asked: Mapping[str, str]) -> tuple[str, str]:
    given = [(kind, name) for kind, name in asked.items() if name]
    if len(given) != 1:
        got = " and ".join(f"--{kind}" for kind, _ in given) or "nothing"
        fail(f"got {got}, allowed: one of {', '.join(f'--{kind}' for kind in asked)}")
    return given[0]


def _start(client: FeedbackClient, kind: str, name: str) -> _Start:
    """Return what a name means; exit if it is unknown or means several things."""
    if kind == "person":
        people = client.call("GET", "/people")["people"]
        known = next((one for one in people if name in (one["handle"], one["id"])), None)
        if known is None:
            fail(f"--person: got {name!r}, allowed: the name or id of a person, as in GET /people", code=1)
        return _Start(kind, known["id"], known["handle"] or known["id"])
    if kind == "prompt":
        several = client.call("GET", "/prompts", query={"contains": name, "limit": 5})["prompts"]
        if len(several) != 1:
            for one in several:
                say(f"{one['id']}  {_begin(one['prompt'])}", err=True)
            what = "no prompt" if not several else f"{len(several)} prompts or more"
            fail(f"--prompt: got {name!r}, of {what}, allowed: an id, or a text of one prompt", code=1)
        return _Start(kind, several[0]["id"], f"prompt {several[0]['id'][:12]}")
    return _Start(kind, name, f"{kind} {name[:12] if kind == 'judgment' else name}")


def _artifact(name: str) -> str:
    """Return the id of a snapshot or model; a folder is named by the digest of its weights."""
    if not Path(name).is_dir():
        return name
    from fairlead.rounds.iteration import model_digest

    return model_digest(Path(name))


def _forward(shown: str, found: Mapping[str, Any]) -> Iterator[str]:
    counts = [
        _count(len(found["entries"]), "entry", "entries") + " of the log",
        *(
            _count(len(found[what]), what[:-1], what)
            for what in ("prompts", "answers", "tasks")
            if found[what]
        ),
    ]
    yield f"{shown}: {', '.join(counts)}"
    yield from _lines(found["lineage"])
    if not found["lineage"]:
        yield "nothing was made of it"


def _backward(found: Mapping[str, Any]) -> Iterator[str]:
    yield from _lines(found["lineage"])
    people = found["people"]
    total, erased = (sum(one[what] for one in people) for what in ("judgments", "erased"))
    gone = f", {erased} of them erased" if erased else ""
    whose = _count(len(people), "person", "people")
    yield f"made of {_count(total, 'judgment', 'judgments')} of {whose}{gone}"
    for one in people:
        gone = f"  {one['erased']} erased" if one["erased"] else ""
        yield f"  {one['handle'] or 'forgotten':<30.30} {one['judgments']:>8}{gone}"
    for one in found["made_of_it"]:
        yield f"{one['kind'].replace('_', ' '):<13} {one['id'][:12]}  made of it"


def _lines(lineage: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield two or three lines for each artifact, of at most 80 columns."""
    known = {one["id"] for one in lineage}
    for one in lineage:
        line = f"{one['kind'].replace('_', ' '):<13} {one['id'][:12]}"
        if one["kind"] == "snapshot":
            of = f"{one['reached']} of " if one["reached"] else ""
            line += f"  {of}{_count(one['judgments'], 'judgment', 'judgments')}"
        sources = [source[:12] for source in one["made_from"] if source in known]
        others = len(one["made_from"]) - len(sources)
        shown = [*sources[:3], *([f"{len(sources) - 3 + others} more"] if len(sources) + others > 3 else [])]
        if shown:
            line += f"  from {', '.join(shown)}"
        yield line[:_WIDTH]
        about = [f"round {one['details']['round']}"] if "round" in one["details"] else []
        if one["place"]:
            about.append(_shortened(one["place"], _WIDTH - len(_INDENT) - 12))
        if about:
            yield f"{_INDENT}{', '.join(about)}"
        if one["tainted"] is not None:
            yield f"{_INDENT}learnt from something that was erased since: train it again"


def _forget_in(files: Sequence[Path], start: _Start) -> None:
    need("feedback")
    asked = {"kind": start.kind, "name": start.name, "actor": "local", "files": [str(one) for one in files]}
    command = [sys.executable, "-m", "services.feedback.backups"]
    done = subprocess.run(command, input=json.dumps(asked), text=True, capture_output=True, check=False)
    if done.returncode:
        fail(f"--backup: {done.stderr.strip()}; nothing was erased in the service", code=1)
    typer.echo(done.stdout, nl=False)


def _begin(prompt: object) -> str:
    text = (
        prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) if isinstance(prompt, list) else ""
    )
    return " ".join(text.split())[:60]


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[1 - width :]}"


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
