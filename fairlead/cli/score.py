"""`fairlead score`: score texts with a reward model, line by line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import (
    OptionalAddresses,
    Out,
    TimeoutSeconds,
    check_out,
    connection,
    fail,
    say,
    with_examples,
)

if TYPE_CHECKING:
    from fairlead.cli.scoring import ScoringOptions
    from fairlead.data.lines import Line
    from fairlead.errors import DataError

_SCORE = with_examples(
    "Score texts with the reward model of a running service (--address), or start a service for a model "
    "(--model).\n\n"
    'Reads {"prompt", "response"}, {"prompt", "completion"}, {"prompt", "responses": [...]}, pairs of chosen '
    "and rejected, messages that end with an answer, and whole texts; prompts are text or messages. Adds to "
    'each line "score", or "scores" and "best" (the index of the highest), or "score_chosen", '
    '"score_rejected" and "margin"; and "model_version".\n\n'
    "With --out, repeating the command continues an interrupted run.",
    "fairlead score answers.jsonl --address localhost:5002",
    "fairlead score pairs.jsonl.gz --address a:5002 --address b:5002 --out scored.jsonl",
    "fairlead score data.parquet --model runs/quickstart/reward_model --out scored.jsonl",
    "fairlead score --prompt 'my lamp broke .' --response sorry --address localhost:5002",
    "fairlead score replies.txt --text --prompt hello --address localhost:5002",
    "fairlead generate --file p.jsonl --address a:5001 --n 4 | fairlead score --address a:5002",
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("score", help=_SCORE)(score)


def score(  # noqa: PLR0913, PLR0917 - a flag each
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="JSON lines (also .gz) or Parquet; - or no file reads standard input.",
        ),
    ] = None,
    address: OptionalAddresses = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Folder or hub id of a reward model, instead of --address."),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Read every line as a plain-text response to --prompt.")
    ] = False,
    prompt: Annotated[str, typer.Option("--prompt", help="The prompt for --response or --text.")] = "",
    response: Annotated[
        list[str] | None,
        typer.Option("--response", help="Score this response instead of a file; repeatable."),
    ] = None,
    out: Out = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what an interrupted run to --out has written.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip lines that cannot be scored, and report them.")
    ] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Divide scores by the model's calibration temperature.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Responses in one request.")] = 64,
    timeout_seconds: TimeoutSeconds = 300.0,
) -> None:
    """Read the lines, score them and write the results."""
    from fairlead.cli.named_models import model_service
    from fairlead.cli.scoring import ScoringOptions

    _check_flags(file, text=text, prompt=prompt, response=response, out=out, restart=restart)
    if bool(address) == bool(model):
        fail("--address: got both or neither of --address and --model, allowed: one of them")
    source = _Source(file, text=text, prompt=prompt, response=response)
    # Before anything is started or scored: an error in the last line would otherwise appear after hours.
    total = source.check(skip_bad=skip_bad)
    service = (
        nullcontext("") if model is None else model_service("reward", model, ready_seconds=timeout_seconds)
    )
    with service as started:
        addresses = address or [started]
        options = ScoringOptions(
            batch_size=batch_size, streams=len(addresses), calibrated=calibrated, skip_bad=skip_bad
        )
        resumable = out if source.is_file else None
        try:
            asyncio.run(_score_all(source, addresses, out, options, timeout_seconds, total, restart=restart))
        except KeyboardInterrupt:
            if resumable is not None:
                say(f"interrupted; the same command continues and writes {resumable}", err=True)
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
        fail("--response: got a file or --text as well, allowed: one of them")
    if prompt and not (response or text):
        fail("--prompt: got a file of JSON lines as well, allowed: --prompt with --response or --text")
    if out is not None and out.suffix in (".gz", ".parquet"):
        fail(f"--out: got {str(out)!r}, allowed: the name of a file of JSON lines")
    if out is not None:
        check_out(out)
    if restart and out is None:
        fail("--restart: got no --out, allowed: --restart with --out")


class _Source:
    """The source of the lines: a file, standard input, or the `--response` flags."""

    def __init__(self, file: Path | None, *, text: bool, prompt: str, response: list[str] | None) -> None:
        from fairlead.cli import lines

        self._file = file
        self._text = text
        self._prompt = prompt
        self._response = response
        self.is_file = (
            file is not None and str(file) != lines.STANDARD_INPUT and (file.is_file() or not file.exists())
        )
        """Whether it can be read twice: it is checked first, and an interrupted run can continue."""

    def read(self) -> Iterator[Line | DataError]:
        """Yield every line; for a bad line, its error."""
        from fairlead.cli import lines
        from fairlead.data.lines import Line

        if self._response:
            for number, response in enumerate(self._response, start=1):
                yield Line("--response", number, {"prompt": self._prompt, "response": response})
            return
        source = self._file or Path(lines.STANDARD_INPUT)
        key = "response" if self._text else None
        for line in lines.scan(source, field="file", text_key=key):
            if self._text and isinstance(line, Line):
                yield Line(line.file, line.number, {"prompt": self._prompt, **line.values})
            else:
                yield line

    def check(self, *, skip_bad: bool) -> int | None:
        """Return how many lines can be scored; None if the source can be read only once.

        Raises:
            DataError: for the first line that cannot be scored, unless it is skipped.
        """
        from fairlead.cli import scoring

        return scoring.check(self.read(), skip_bad=skip_bad) if self.is_file or self._response else None


async def _score_all(
    source: _Source,
    addresses: list[str],
    out: Path | None,
    options: ScoringOptions,
    timeout_seconds: float,
    total: int | None,
    *,
    restart: bool,
) -> None:
    from fairlead.cli import lines, scoring
    from fairlead.clients import AsyncRewardClient
    from fairlead.clients.bulk import progress_bar
    from fairlead.data.scorable import ADDED

    entries = scoring.good(source.read(), skip_bad=options.skip_bad, checked=source.is_file)
    async with AsyncRewardClient(addresses, **connection(timeout_seconds)) as client:
        if out is None or not source.is_file:
            shown = out is not None or not sys.stdout.isatty()
            with lines.writing(out) as write, progress_bar("scoring", total=total, shown=shown) as advance:
                async with aclosing(scoring.scored(client, entries, options)) as found:
                    async for batch in found:
                        for values in batch:
                            write(values)
                        advance(len(batch))
            return
        with lines.resumable(out, added=ADDED, restart=restart) as partial:
            done, last = scoring.skip_done(entries, partial, skip_bad=options.skip_bad)
            if done:
                scoring.check_model(partial, done, last, await client.info(), options)
            with progress_bar("scoring", total=total, shown=True, done=done) as advance:
                async with aclosing(scoring.scored(client, entries, options)) as found:
                    async for batch in found:
                        partial.write(batch)
                        advance(len(batch))
