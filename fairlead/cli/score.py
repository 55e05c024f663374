"""`fairlead score`: scores of a running reward service for texts, line by line."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import Out, TimeoutSeconds, connection, fail, with_examples

if TYPE_CHECKING:
    from fairlead.clients import AsyncRewardClient
    from fairlead.data.lines import Line
    from fairlead.types import TextPair

_SCORE = with_examples(
    "Score texts with a running reward service.\n\n"
    'Reads lines {"prompt", "response"} or {"prompt", "responses": [...]}, prompts as text or messages, and '
    'writes each line with "score", or "scores" and "best" (the index of the highest), and "model_version".',
    "fairlead score answers.jsonl --address localhost:5002",
    "fairlead score answers.jsonl --address a:5002 --address b:5002 --out s.jsonl",
    "fairlead score --prompt 'my lamp broke .' --response sorry --address localhost:5002",
    "fairlead score replies.txt --text --prompt hello --address localhost:5002",
    "fairlead generate --file p.jsonl --address a:5001 --n 4 | fairlead score --address a:5002",
)

_MAX_REQUEST_CHARACTERS = 2 << 20

Address = Annotated[
    list[str],
    typer.Option("--address", metavar="HOST:PORT", help="Where the service is; once for every replica."),
]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line and what of it is scored."""

    line: Line
    items: tuple[TextPair, ...]
    """In the order of the responses."""
    many: bool
    """Whether the line holds a list of responses."""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("score", help=_SCORE)(score)


def score(
    address: Address,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="JSON lines (.gz too) or Parquet; - or nothing is standard input."
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Every line is a response as plain text, to --prompt.")
    ] = False,
    prompt: Annotated[str, typer.Option("--prompt", help="The prompt of --response, or of --text.")] = "",
    response: Annotated[
        list[str] | None, typer.Option("--response", help="Score this instead of a file; may be repeated.")
    ] = None,
    out: Out = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Responses of one request.")] = 64,
    timeout_seconds: TimeoutSeconds = 300.0,
) -> None:
    """Reads, asks, writes."""
    from fairlead.cli import lines
    from fairlead.data.lines import Line

    if response and (file is not None or text):
        fail("--response: got a file or --text beside it, allowed: one of them")
    if prompt and not (response or text):
        fail("--prompt: got a text for a file of JSON lines, allowed: with --response or --text")
    source = file or Path(lines.STANDARD_INPUT)
    if response:
        entries: Iterator[Line] = (
            Line("--response", number, {"response": text}) for number, text in enumerate(response, start=1)
        )
        total: int | None = len(response)
    else:
        entries = lines.read(source, field="file", text_key="response" if text else None)
        total = lines.count(source)
    if response or text:
        entries = (Line(one.file, one.number, {"prompt": prompt, **one.values}) for one in entries)
    asyncio.run(_score_all(entries, address, out, batch_size, timeout_seconds, total))


async def _score_all(
    entries: Iterator[Line],
    addresses: list[str],
    out: Path | None,
    batch_size: int,
    timeout_seconds: float,
    total: int | None,
) -> None:
    import sys

    from fairlead.cli import lines
    from fairlead.clients import AsyncRewardClient

    async with AsyncRewardClient(addresses, **connection(timeout_seconds)) as client:
        shown = out is not None or not sys.stdout.isatty()
        with lines.writing(out) as write, lines.progress("scoring", total=total, shown=shown) as advance:
            async for scored in _scored(client, entries, batch_size, at_once=4 * len(addresses)):
                for values in scored:
                    write(values)
                advance(len(scored))


async def _scored(
    client: AsyncRewardClient, entries: Iterator[Line], batch_size: int, *, at_once: int
) -> AsyncIterator[list[Mapping[str, object]]]:
    """Batches of lines with their scores, in order."""
    from fairlead.cli import lines

    async def work(batch: list[_Entry]) -> list[Mapping[str, object]]:
        return await _score_batch(client, batch)

    async for scored in lines.in_order(_batches(map(_entry, entries), batch_size), work, at_once=at_once):
        yield scored


def _batches(entries: Iterator[_Entry], size: int) -> Iterator[list[_Entry]]:
    """As many lines as make a request: `size` responses, one line at least, and not too much text."""
    batch: list[_Entry] = []
    responses = characters = 0
    for entry in entries:
        more = sum(len(item.prompt) + len(item.response) for item in entry.items)
        full = responses + len(entry.items) > size or characters + more > _MAX_REQUEST_CHARACTERS
        if batch and full:
            yield batch
            batch, responses, characters = [], 0, 0
        batch.append(entry)
        responses, characters = responses + len(entry.items), characters + more
        if responses >= size:
            # At once: who writes the lines may be waiting for these.
            yield batch
            batch, responses, characters = [], 0, 0
    if batch:
        yield batch


async def _score_batch(client: AsyncRewardClient, batch: list[_Entry]) -> list[Mapping[str, object]]:
    from fairlead.errors import RemoteInvalidInput

    items = [item for entry in batch for item in entry.items]
    try:
        found = await client.score(items)
    except RemoteInvalidInput as error:
        if error.index is None:
            raise
        owners = [entry.line for entry in batch for _ in entry.items]
        line = owners[error.index]
        raise RemoteInvalidInput(
            f"{line.file}:{line.number}: {error.field}: got {error.got}, allowed: {error.allowed}"
        ) from None
    scores = iter(found.scores)
    return [
        {**entry.line.values, **_result(entry, list(itertools.islice(scores, len(entry.items))))}
        | {"model_version": found.model_version}
        for entry in batch
    ]


def _result(entry: _Entry, scores: list[float]) -> dict[str, object]:
    if not entry.many:
        return {"score": scores[0]}
    return {"scores": scores, "best": scores.index(max(scores))}


def _entry(line: Line) -> _Entry:
    """What a line asks for.

    Raises:
        DataError: for a line that asks for nothing that can be scored.
    """
    from fairlead.data.chat import Chat, prompt_at
    from fairlead.types import Message, TextPair

    prompt = prompt_at(line)
    many = line.has("responses")
    if many == line.has("response"):
        raise line.error(
            got=f"the keys {', '.join(line.values)}", allowed="`response` or `responses` beside `prompt`"
        )
    responses = _responses(line) if many else [line.text("response")]
    if isinstance(prompt, Chat):
        turns = tuple(Message(turn.role, turn.content) for turn in prompt.messages)
        items = tuple(TextPair("", response, turns) for response in responses)
    else:
        items = tuple(TextPair(prompt, response) for response in responses)
    return _Entry(line, items, many)


def _responses(line: Line) -> list[str]:
    """Texts, or objects with a `text`, as `fairlead generate` writes them."""
    found = line.values["responses"]
    if not isinstance(found, list) or not found:
        raise line.error(got="`responses` without a response", allowed="an array of texts, at least one")
    if all(isinstance(response, str) for response in found):
        return found
    return [response.text("text") for response in line.objects("responses")]
