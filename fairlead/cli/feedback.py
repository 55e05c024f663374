"""`fairlead feedback`: start the feedback service, invite people, add tasks, and get what they said."""

from __future__ import annotations

import io
import json
import os
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli import feedback_judge, feedback_lineage
from fairlead.cli.feedback_options import Address, Project, client_of
from fairlead.cli.feedback_sample import sample
from fairlead.cli.output import (
    ConfigFile,
    ConfigOption,
    Json,
    Overrides,
    check_out,
    fail,
    say,
    with_examples,
)
from fairlead.cli.serve import Service
from fairlead.cli.serve import serve as serve_service

if TYPE_CHECKING:
    from fairlead.feedback_client import FeedbackClient

_POLL_SECONDS = 2.0

app = typer.Typer(
    name="feedback",
    no_args_is_help=True,
    help="People in the loop: rank answers, write demonstrations, agree, export (docs/feedback.md).",
)


class Role(StrEnum):
    """What a person may do."""

    LABELER = "labeler"
    REVIEWER = "reviewer"
    LEAD = "lead"
    AUDITOR = "auditor"


class Cohort(StrEnum):
    """Whether rankings of a person may be trained on."""

    TRAIN = "train"
    HELDOUT = "heldout"


class Form(StrEnum):
    """Formats of an export."""

    RANKINGS = "rankings"
    PAIRS = "pairs"
    DEMONSTRATIONS = "demonstrations"
    PROMPTS = "prompts"
    ARGILLA = "argilla"
    LABEL_STUDIO = "label-studio"


class Tool(StrEnum):
    """Other tools whose files can be brought in."""

    ARGILLA = "argilla"
    LABEL_STUDIO = "label-studio"


def register(root: typer.Typer) -> None:
    """Add the group of verbs."""
    root.add_typer(app)


@app.command(
    "serve",
    help=with_examples(
        "Run the service in the foreground; SIGTERM or Ctrl-C drains it.",
        "fairlead feedback serve run.toml",
        "fairlead feedback serve --tasks answers.jsonl --set 'feedback.addresses=[\"127.0.0.1:8400\"]'",
    ),
)
def serve(
    run: ConfigFile = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option("--tasks", metavar="FILE", help="Add the tasks of JSON lines first; may be repeated."),
    ] = None,
) -> None:
    """Run the service in place of this process."""
    if tasks:
        overrides = [*(overrides or []), f"feedback.tasks={json.dumps([str(file) for file in tasks])}"]
    serve_service(Service.FEEDBACK, run, config, overrides)


@app.command(
    "invite",
    help=with_examples(
        "Add a person and print the link that signs them in, once.",
        "fairlead feedback invite anna --address 127.0.0.1:8400",
        "fairlead feedback invite ben --role reviewer --cohort heldout --address 127.0.0.1:8400",
    ),
)
def invite(
    handle: Annotated[str, typer.Argument(help="Name of the person.")],
    address: Address,
    role: Annotated[Role | None, typer.Option("--role", help="What they may do; labeler by default.")] = None,
    cohort: Annotated[
        Cohort | None,
        typer.Option("--cohort", help="heldout: their rankings are never trained on; train by default."),
    ] = None,
) -> None:
    """Add a person, or find one of this name, and print a new link."""
    with client_of(address) as client:
        known = next(
            (one for one in client.call("GET", "/people")["people"] if one["handle"] == handle), None
        )
        if known is None:
            given = {"role": role or Role.LABELER, "cohort": cohort or Cohort.TRAIN}
            known = client.call("POST", "/people", {"handle": handle, **given})
        for flag, value in (("role", role), ("cohort", cohort)):
            if value is not None and value != known[flag]:
                fail(
                    f"--{flag}: got {value.value}, but {handle} is there already with {known[flag]}, "
                    f"allowed: no --{flag}, which keeps it; a lead changes it on the page People"
                )
        found = client.call("POST", f"/people/{known['id']}/invitation")
    link = found["link"]
    say(
        f"works once, for {found['seconds'] / 86_400:.0f} days; who has it can sign in as {handle}",
        err=True,
        dim=True,
    )
    typer.echo(link if "://" in link else f"http://{address}{link}")


@app.command(
    "tasks",
    help=with_examples(
        "Add tasks from files of JSON lines: `prompt` and `responses`, as `fairlead generate --n 4` writes "
        "them. The same content again is the same task.",
        "fairlead feedback tasks answers.jsonl --address 127.0.0.1:8400",
        "fairlead feedback tasks prompts.jsonl --kind write --overlap 2 --address 127.0.0.1:8400",
    ),
)
def tasks(
    files: Annotated[list[Path], typer.Argument(help="Files of JSON lines; - is standard input.")],
    address: Address,
    project: Project = None,
    kind: Annotated[str | None, typer.Option("--kind", help="rank, pair, write, edit or prompt.")] = None,
    overlap: Annotated[
        int | None, typer.Option("--overlap", min=1, help="Judgments of each; by default the project's.")
    ] = None,
    priority: Annotated[int | None, typer.Option("--priority", help="Higher is given out first.")] = None,
) -> None:
    """Read the files and add their tasks."""
    given = {"kind": kind, "overlap": overlap, "priority": priority}
    fields = {name: value for name, value in given.items() if value is not None}
    with client_of(address) as client:
        new = [one for file in files for one in _add(client, file, fields, project)]
    say(f"{sum(new)} new tasks, {len(new) - sum(new)} known before")
    if not all(new) and (overlap is not None or priority is not None):
        say("tasks that were known keep their overlap and priority", err=True)


app.command(
    "sample",
    help=with_examples(
        "Turn accepted prompts of the deployed policy into tasks: sample answers of the policy as it is now.",
        "fairlead feedback sample --policy 127.0.0.1:5001 --k 4 --count 100 --address 127.0.0.1:8400",
        "fairlead feedback sample --policy a:5001 --random-share 0.5 --reward b:5002 --address c:8400",
    ),
)(sample)


@app.command(
    "status",
    help=with_examples(
        "Show the progress of a project.", "fairlead feedback status --address 127.0.0.1:8400"
    ),
)
def status(address: Address, project: Project = None, as_json: Json = False) -> None:
    """Print progress."""
    with client_of(address) as client:
        found = client.figures("progress", project=project)
    if as_json:
        typer.echo(json.dumps(found))
        return
    counts = found["tasks"]
    skipped = ", ".join(f"{count} {reason}" for reason, count in found["skipped"].items()) or "none"
    for name, value in (
        ("tasks", ", ".join(f"{counts.get(state, 0)} {state}" for state in ("open", "closed", "withdrawn"))),
        ("judgments", f"{found['done']} done, {found['late']} late, {found['wanted']} wanted"),
        ("in work", f"{found['leases']} leases, {found['expired']} ended without a judgment"),
        ("skipped", skipped),
        ("to review", str(found["review"])),
    ):
        typer.echo(f"{name:<10} {value}")


@app.command(
    "figures",
    help=with_examples(
        "Show figures of a project as JSON: agreement with intervals, labelers, model judges beside "
        "people, or biases.",
        "fairlead feedback figures agreement --address 127.0.0.1:8400",
    ),
)
def figures(
    name: Annotated[str, typer.Argument(help="agreement, labelers, judges, bias or progress.")],
    address: Address,
    project: Project = None,
) -> None:
    """Print figures."""
    with client_of(address) as client:
        typer.echo(json.dumps(client.figures(name, project=project), indent=1, ensure_ascii=False))


@app.command(
    "export",
    help=with_examples(
        "Make a snapshot of all judgments that may be trained on, write it as JSON lines (for Label Studio "
        "as JSON), and print its digest.",
        "fairlead feedback export --out rankings.jsonl --address 127.0.0.1:8400",
        "fairlead feedback export --format demonstrations --out written.jsonl --address 127.0.0.1:8400",
        "fairlead feedback export --format argilla --out records.jsonl --address 127.0.0.1:8400",
    ),
)
def export(
    address: Address,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")],
    form: Annotated[Form, typer.Option("--format", help="What to write.")] = Form.RANKINGS,
    cohort: Annotated[Cohort, typer.Option("--cohort", help="Whose judgments.")] = Cohort.TRAIN,
    project: Project = None,
) -> None:
    """Make a snapshot and write one file of it."""
    kinds = {
        Form.RANKINGS: ["rank", "pair"],
        Form.PAIRS: ["rank", "pair", "edit"],
        Form.DEMONSTRATIONS: ["write", "edit"],
        Form.PROMPTS: ["prompt"],
        Form.ARGILLA: ["rank", "pair"],
        Form.LABEL_STUDIO: ["rank", "pair"],
    }
    check_out(out)
    if not out.parent.is_dir():
        fail(f"--out: got {out}, allowed: a file in a folder that exists")
    wanted: dict[str, Any] = {"kinds": kinds[form], "cohorts": [cohort.value]}
    with client_of(address) as client:
        snapshot = client.snapshot(**wanted, **({"project": project} if project else {}))
        data = client.export(snapshot["digest"], form.value)
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        aside.write_bytes(data)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    count = len(data.splitlines())
    say(f"{out}: {count} lines of {snapshot['entries']} judgments", err=True, dim=True)
    typer.echo(snapshot["digest"])


@app.command(
    "card",
    help=with_examples(
        "Make a snapshot of all judgments and write it as a folder with a dataset card, which the hub, "
        '`datasets` and `data.preferences = "FOLDER/?config=rankings"` read. Rankings of held-out people are '
        "its split `test`.",
        "fairlead feedback card --out dataset --license cc-by-4.0 --address 127.0.0.1:8400",
    ),
)
def card(
    address: Address,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write; absent or empty.")],
    license_: Annotated[str, typer.Option("--license", help="Licence, as the hub has it.")],
    title: Annotated[str, typer.Option("--title", help="Name of the data set.")] = "Judgments of people",
    language: Annotated[list[str] | None, typer.Option("--language", help="Code; en by default.")] = None,
    withdrawal: Annotated[str, typer.Option("--withdrawal", help="How a part is withdrawn.")] = "",
    project: Project = None,
) -> None:
    """Make a snapshot and write it with its card."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        fail(f"--out: got {out}, allowed: a folder that is absent or empty")
    wanted: dict[str, Any] = {"kinds": ["rank", "pair", "write", "edit"], "cohorts": [*Cohort]}
    about = {"license": license_, "title": title, "languages": language or ["en"], "withdrawal": withdrawal}
    with client_of(address) as client:
        snapshot = client.snapshot(**wanted, **({"project": project} if project else {}))
        data = client.folder(snapshot["digest"], **about)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(out)
    say(f"{out}: {snapshot['entries']} judgments with a card", err=True, dim=True)
    typer.echo(snapshot["digest"])


@app.command(
    "import",
    help=with_examples(
        "Bring in rankings of another tool with their authors: records of Argilla as JSON lines or JSON, or "
        "the JSON that Label Studio exports. The same file again adds nothing.",
        "fairlead feedback import argilla records.jsonl --address 127.0.0.1:8400",
        "fairlead feedback import label-studio export.json --address 127.0.0.1:8400",
    ),
)
def bring_in(
    tool: Annotated[Tool, typer.Argument(help="Where the file comes from.")],
    file: Annotated[Path, typer.Argument(help="The file.")],
    address: Address,
    project: Project = None,
) -> None:
    """Read the file and add what is in it."""
    with client_of(address) as client:
        found = client.bring_in(tool.value, _foreign(file), project=project)
    say(f"{found['tasks']} new tasks, {found['judgments']} new judgments, {found['repeated']} known before")


@app.command(
    "follow",
    help=with_examples(
        "Append each ranking to a file of JSON lines as it comes, as `data.fresh_rankings` reads it. Started "
        "again, it continues after the last line of the file.",
        "fairlead feedback follow --out fresh.jsonl --address 127.0.0.1:8400",
    ),
)
def follow(
    address: Address,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to append to.")],
    project: Project = None,
    once: Annotated[bool, typer.Option("--once", help="Stop at the present end.")] = False,
) -> None:
    """Append rankings until stopped."""
    from fairlead.feedback_client.follow import RankingsFile

    file = RankingsFile(out, project=project)
    with client_of(address) as client:
        while True:
            file.append_new(client)
            if once:
                return
            time.sleep(_POLL_SECONDS)


app.command("judge", help=feedback_judge.HELP)(feedback_judge.judge)
app.command("reach", help=feedback_lineage.REACH_HELP)(feedback_lineage.reach)
app.command("forget", help=feedback_lineage.FORGET_HELP)(feedback_lineage.forget)


@app.command(
    "verify",
    help=with_examples(
        "Check every entry of the log and every snapshot, and print the end of the log, which "
        "proves later what came before.",
        "fairlead feedback verify --address 127.0.0.1:8400",
    ),
)
def verify(address: Address) -> None:
    """Verify the log and print its head, which proves later what came before."""
    with client_of(address) as client:
        found = client.call("GET", "/log/verification")
    head = found["head"]
    typer.echo(f"{head['seq']} entries, {found['erased']} erased, {found['snapshots']} snapshots: in order")
    typer.echo(head["id"])


def _add(
    client: FeedbackClient, file: Path, fields: Mapping[str, object], project: str | None
) -> Iterator[bool]:
    """Add the tasks of a file; yield for each whether it is new. An invalid task is named by its line."""
    from fairlead.errors import InvalidInput

    numbers: list[int] = []
    added = 0
    try:
        for one in client.add_tasks(_tasks(file, fields, numbers), project=project):
            added += 1
            yield one
    except InvalidInput as error:
        found = re.match(r"tasks\[(\d+)\][.:]?\s*(.*)", str(error), re.DOTALL)
        if found is None:
            raise
        before = f"; the tasks before line {numbers[added]} were added" if added else ""
        fail(f"{file}:{numbers[added + int(found[1])]}: {found[2]}{before}")


def _tasks(file: Path, fields: Mapping[str, object], numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the tasks of a file, and append the number of each line to `numbers`; keys that the API does not
    know are left out.
    """
    from fairlead.cli import lines

    known = ("prompt", "responses", "gold", "why", "round", "source", "consent", "user", "split_group")
    for line in lines.read(file, field="FILES", text_key=None):
        numbers.append(line.number)
        yield {name: line.values[name] for name in known if name in line.values} | dict(fields)


def _foreign(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file: an array in JSON, or JSON lines."""
    from fairlead.cli import lines

    try:
        with file.open("rb") as opened:
            if not opened.read(64).lstrip().startswith(b"["):
                yield from (dict(line.values) for line in lines.read(file, field="FILE", text_key=None))
                return
        found = json.loads(file.read_bytes())
    except OSError as error:
        fail(f"FILE: got {file} ({error.strerror}), allowed: a file that can be read")
    except ValueError as error:
        fail(f"FILE: got {file} ({error}), allowed: an array in JSON, or JSON lines")
    for item in found:
        if not isinstance(item, dict):
            fail(f"FILE: got {file} with {type(item).__name__} in its array, allowed: objects")
        yield item
