"""`fairlead generate`: answer prompts with a running policy service, as text or as JSON lines."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import (
    Addresses,
    Json,
    MaxNewTokens,
    Out,
    Seed,
    Stop,
    Temperature,
    TimeoutSeconds,
    TopP,
    connection,
    fail,
    say,
    with_examples,
)

if TYPE_CHECKING:
    from fairlead.clients import AsyncPolicyClient
    from fairlead.data.lines import Line
    from fairlead.types import Completion, SamplingParams

_GENERATE = with_examples(
    "Answer prompts with a running policy service.\n\n"
    'Prompts are arguments, or lines {"prompt"} of --file or of standard input. On a terminal the answers '
    "are shown as text; otherwise, or with --json or --out, each prompt is written as a line with its "
    '"responses", which `fairlead score` reads. The same seed and weights give the same answers.',
    "fairlead generate 'my lamp is broken .' --address localhost:5001 --n 4",
    "fairlead generate hello --address localhost:5001 --temperature 0 --stream",
    "fairlead generate --file prompts.jsonl --address localhost:5001 --out answers.jsonl",
    "fairlead generate --file p.jsonl --address a:5001 --n 4 | fairlead score --address a:5002",
)
_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class _Request:
    """One prompt and how to answer it."""

    line: Line
    prompt: str
    sampling: SamplingParams
    num_samples: int


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("generate", help=_GENERATE)(generate)


def generate(  # noqa: PLR0913, PLR0917 - a flag each
    address: Addresses,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Prompts, as text.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="File with one prompt per line; - is standard input."),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Read every line as a plain-text prompt.")] = False,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to each prompt.")] = 1,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: Annotated[
        int, typer.Option("--top-k", min=0, help="Number of most likely tokens to keep; 0 keeps all.")
    ] = 0,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    stop: Stop = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show each answer while it is generated.")] = False,
    json_lines: Json = False,
    out: Out = None,
    timeout_seconds: TimeoutSeconds = 300.0,
) -> None:
    """Read the prompts, generate and write the answers."""
    from fairlead.types import SamplingParams

    if prompts and (file is not None or text):
        fail("prompts: got arguments and --file or --text, allowed: one of them")
    if stream and (json_lines or out is not None or n > 1):
        fail("--stream: got --json, --out or --n above 1 as well, allowed: one answer per prompt, as text")
    sampling = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        stop_strings=tuple(stop or ()),
        seed=seed,
    )
    requests = _requests(prompts, file, text=text, sampling=sampling, num_samples=n)
    if stream:
        asyncio.run(_stream_all(requests, address, timeout_seconds))
        return
    pretty = not json_lines and out is None and sys.stdout.isatty()
    total = len(prompts) if prompts else None
    asyncio.run(_answer_all(requests, address, out, timeout_seconds, pretty=pretty, total=total))


def _requests(
    prompts: list[str] | None,
    file: Path | None,
    *,
    text: bool,
    sampling: SamplingParams,
    num_samples: int,
) -> Iterator[_Request]:
    from fairlead.cli import lines
    from fairlead.data.lines import Line

    if prompts:
        found: Iterator[Line] = (
            Line("prompt", number, {"prompt": prompt}) for number, prompt in enumerate(prompts, start=1)
        )
    else:
        source = file or Path(lines.STANDARD_INPUT)
        found = lines.read(source, field="--file", text_key="prompt" if text else None)
    for index, line in enumerate(found):
        # Equal prompts must not get equal answers.
        seeded = dataclasses.replace(sampling, seed=sampling.seed + index)
        yield _Request(line, line.text("prompt", empty=False), seeded, num_samples)


async def _answer_all(
    requests: Iterator[_Request],
    addresses: list[str],
    out: Path | None,
    timeout_seconds: float,
    *,
    pretty: bool,
    total: int | None,
) -> None:
    from fairlead.cli import lines
    from fairlead.clients import AsyncPolicyClient
    from fairlead.clients.bulk import progress_bar

    async with AsyncPolicyClient(addresses, **connection(timeout_seconds)) as client:

        async def work(request: _Request) -> tuple[_Request, list[Completion]]:
            return request, await _answer(client, request)

        shown = not pretty and (out is not None or not sys.stdout.isatty())
        with lines.writing(out) as write, progress_bar("generating", total=total, shown=shown) as advance:
            async for request, completions in lines.in_order(requests, work, at_once=_AT_ONCE):
                if pretty:
                    _show(request, completions)
                else:
                    write({**request.line.values, "responses": [_as_json(one) for one in completions]})
                advance(1)


async def _answer(client: AsyncPolicyClient, request: _Request) -> list[Completion]:
    """Return the completions of a prompt.

    Raises:
        RemoteInvalidInput: if the service refuses the prompt; names file and line.
    """
    from fairlead.errors import RemoteInvalidInput

    try:
        return await client.generate(request.prompt, request.sampling, num_samples=request.num_samples)
    except RemoteInvalidInput as error:
        raise RemoteInvalidInput(f"{request.line.file}:{request.line.number}: {error}") from None


async def _stream_all(requests: Iterator[_Request], addresses: list[str], timeout_seconds: float) -> None:
    from fairlead.clients import AsyncPolicyClient

    async with AsyncPolicyClient(addresses, **connection(timeout_seconds)) as client:
        for request in requests:
            say(request.prompt, bold=True)
            last = None
            async for _, delta in client.generate_stream(request.prompt, request.sampling):
                typer.echo(delta.text, nl=False)
                last = delta
            typer.echo()
            if last is not None:
                say(_ending(last), dim=True)


def _show(request: _Request, completions: list[Completion]) -> None:
    say(request.prompt, bold=True)
    for completion in completions:
        typer.echo(f"  {completion.text.strip()}")
        say(f"    {_ending(completion)}, {len(completion.token_ids)} tokens", dim=True)


def _ending(completion: Completion) -> str:
    versions = " ".join(_versions(completion))
    why = "cut off" if completion.finish_reason and completion.finish_reason.value == "length" else "ended"
    return f"{why}, weights {versions}"


def _versions(completion: Completion) -> list[str]:
    return [
        str(version) for version, _ in itertools.groupby(span.version for span in completion.version_spans)
    ]


def _as_json(completion: Completion) -> dict[str, object]:
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason.value if completion.finish_reason else None,
        "num_tokens": len(completion.token_ids),
        "weight_versions": _versions(completion),
    }
