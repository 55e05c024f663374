"""`fairlead score`: scores of a reward model for texts, line by line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import Out, TimeoutSeconds, connection, fail, say, with_examples

if TYPE_CHECKING:
    from fairlead.cli.scoring import How
    from fairlead.data.lines import Line
    from fairlead.errors import DataError

_SCORE = with_examples(
    "Score texts with a reward model: a running service's (--address), or one of your own for as long as it "
    "takes (--model).\n\n"
    'Reads {"prompt", "response"}, {"prompt", "completion"}, {"prompt", "responses": [...]}, pairs of chosen '
    "and rejected, messages that end with an answer, and whole texts; prompts as text or messages. Writes "
    'each line with "score", with "scores" and "best" (the index of the highest), or with "score_chosen", '
    '"score_rejected" and "margin"; and with "model_version".\n\n'
    "With --out a run that was interrupted, however, goes on where it stopped: the same command does it.",
    "fairlead score answers.jsonl --address localhost:5002",
    "fairlead score pairs.jsonl.gz --address a:5002 --address b:5002 --out scored.jsonl",
    "fairlead score data.parquet --model runs/quickstart/reward_model --out scored.jsonl",
    "fairlead score --prompt 'my lamp broke .' --response sorry --address localhost:5002",
    "fairlead score replies.txt --text --prompt hello --address localhost:5002",
    "fairlead generate --file p.jsonl --address a:5001 --n 4 | fairlead score --address a:5002",
)

Address = Annotated[
    list[str],
    typer.Option("--address", metavar="HOST:PORT", help="Where the service is; once for every replica."),
]


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("score", help=_SCORE)(score)


def score(  # noqa: PLR0913, PLR0917 - a flag each
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="JSON lines (.gz too) or Parquet; - or nothing is standard input."
        ),
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option("--address", metavar="HOST:PORT", help="Where the service is; once for every replica."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Folder or hub id of a reward model, instead of --address."),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Every line is a response as plain text, to --prompt.")
    ] = False,
    prompt: Annotated[str, typer.Option("--prompt", help="The prompt of --response, or of --text.")] = "",
    response: Annotated[
        list[str] | None, typer.Option("--response", help="Score this instead of a file; may be repeated.")
    ] = None,
    out: Out = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what an interrupted run to --out has done.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out lines that cannot be scored, and say which.")
    ] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Divide scores by the model's calibration temperature.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Responses of one request.")] = 64,
    timeout_seconds: TimeoutSeconds = 300.0,
) -> None:
    """Reads, asks, writes."""
    from fairlead.cli.own_service import reward_service
    from fairlead.cli.scoring import How

    _check_flags(file, text=text, prompt=prompt, response=response, out=out, restart=restart)
    if bool(address) == bool(model):
        fail("--address: got both or neither of it and --model, allowed: one of them")
    source = _Source(file, text=text, prompt=prompt, response=response)
    # Before anything is started or scored: a mistake in the last line would come after hours.
    total = source.check(skip_bad=skip_bad)
    own = nullcontext("") if model is None else reward_service(model, ready_seconds=timeout_seconds)
    with own as place:
        addresses = address or [place]
        how = How(batch_size=batch_size, streams=len(addresses), calibrated=calibrated, skip_bad=skip_bad)
        resumes = out if source.is_file else None
        try:
            asyncio.run(_score_all(source, addresses, out, how, timeout_seconds, total, restart=restart))
        except KeyboardInterrupt:
            if resumes is not None:
                say(f"interrupted; the same command goes on from there and writes {resumes}", err=True)
            raise


def _check_flags(
    file: Path | None,
    *,
    text: bool,
    prompt: str,
    response: list[str] | None,
    out: Path | None,
    restart: bool,
) -> None:
    if response and (file is not None or text):
        fail("--response: got a file or --text beside it, allowed: one of them")
    if prompt and not (response or text):
        fail("--prompt: got a text for a file of JSON lines, allowed: with --response or --text")
    if out is not None and out.suffix in (".gz", ".parquet"):
        fail(f"--out: got {str(out)!r}, allowed: the name of a file of JSON lines")
    if restart and out is None:
        fail("--restart: got no --out beside it, allowed: with --out")


class _Source:
    """Where the lines come from."""

    def __init__(self, file: Path | None, *, text: bool, prompt: str, response: list[str] | None) -> None:
        from fairlead.cli import lines

        self._file, self._text, self._prompt, self._response = file, text, prompt, response
        self.is_file = (
            file is not None and str(file) != lines.STANDARD_INPUT and (file.is_file() or not file.exists())
        )
        """Whether it can be read again: checked first, and gone on with after an interruption."""

    def read(self) -> Iterator[Line | DataError]:
        """Every line, bad ones too."""
        from fairlead.cli import lines
        from fairlead.data.lines import Line

        if self._response:
            for number, said in enumerate(self._response, start=1):
                yield Line("--response", number, {"prompt": self._prompt, "response": said})
            return
        source = self._file or Path(lines.STANDARD_INPUT)
        key = "response" if self._text else None
        for line in lines.scan(source, field="file", text_key=key):
            if self._text and isinstance(line, Line):
                yield Line(line.file, line.number, {"prompt": self._prompt, **line.values})
            else:
                yield line

    def check(self, *, skip_bad: bool) -> int | None:
        """How many lines can be scored, where that can be known.

        Raises:
            DataError: the first that cannot.
        """
        from fairlead.cli import scoring

        return scoring.check(self.read(), skip_bad=skip_bad) if self.is_file or self._response else None


async def _score_all(
    source: _Source,
    addresses: list[str],
    out: Path | None,
    how: How,
    timeout_seconds: float,
    total: int | None,
    *,
    restart: bool,
) -> None:
    from fairlead.cli import lines, scoring
    from fairlead.cli.partial import resumable
    from fairlead.clients import AsyncRewardClient
    from fairlead.clients.bulk import progress_bar
    from fairlead.data.scorable import ADDED

    entries = scoring.good(source.read(), skip_bad=how.skip_bad, checked=source.is_file)
    async with AsyncRewardClient(addresses, **connection(timeout_seconds)) as client:
        if out is None or not source.is_file:
            import sys

            shown = out is not None or not sys.stdout.isatty()
            with lines.writing(out) as write, progress_bar("scoring", total=total, shown=shown) as advance:
                async with aclosing(scoring.scored(client, entries, how)) as found:
                    async for batch in found:
                        for values in batch:
                            write(values)
                        advance(len(batch))
            return
        with resumable(out, added=ADDED, restart=restart) as partial:
            done, last = scoring.pass_over(entries, partial, skip_bad=how.skip_bad)
            if done:
                scoring.check_model(partial, done, last, await client.info(), how)
            with progress_bar("scoring", total=total, shown=True, done=done) as advance:
                async with aclosing(scoring.scored(client, entries, how)) as found:
                    async for batch in found:
                        partial.write(batch)
                        advance(len(batch))
