"""The work of `fairlead score`: turn lines into requests, and responses into scored lines, in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairlead.cli import lines
from fairlead.cli.lines import PartialOutput
from fairlead.cli.output import say
from fairlead.clients.bulk import fan_out, in_order
from fairlead.data.lines import Line
from fairlead.data.scorable import Scorable, scorable
from fairlead.errors import DataError, FairleadError, InvalidInput, RemoteInvalidInput
from fairlead.types import RewardInfo, ScoreItem, Scores

if TYPE_CHECKING:
    from fairlead.clients import AsyncRewardClient

_MAX_REQUEST_CHARACTERS = 2 << 20
_IN_FLIGHT = 16
"""Requests of a stream in flight: enough that the service always has a next batch."""
_MAX_SHOWN = 10

Scored = list[Mapping[str, object]]
"""Lines with their scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringOptions:
    """The flags of `fairlead score` that affect how lines are scored."""

    batch_size: int
    """Responses in one request."""
    streams: int
    """Number of streams, one per replica."""
    calibrated: bool
    """Divide scores by the model's calibration temperature."""
    skip_bad: bool
    """Skip lines that cannot be scored."""


def good(found: Iterable[Line | DataError], *, skip_bad: bool, checked: bool) -> Iterator[Scorable]:
    """Yield the lines that can be scored.

    Args:
        found: lines, and the errors of bad ones.
        skip_bad: skip bad lines and report them, instead of raising the first.
        checked: whether `check` has already reported the bad lines.

    Raises:
        DataError: for the first bad line, unless bad lines are skipped.
    """
    for line in found:
        try:
            if isinstance(line, DataError):
                raise line
            yield scorable(line)
        except DataError as error:
            if not skip_bad:
                raise
            if not checked:
                say(f"skipped: {error}", err=True)


def check(found: Iterable[Line | DataError], *, skip_bad: bool) -> int:
    """Read everything before anything is scored; return how many lines can be scored.

    Bad lines are reported on standard error.

    Raises:
        DataError: for the first bad line, unless bad lines are skipped.
    """
    count = 0
    bad: list[DataError] = []
    for line in found:
        try:
            if isinstance(line, DataError):
                raise line
            scorable(line)
            count += 1
        except DataError as error:
            bad.append(error)
    if not bad:
        return count
    shown = bad[:_MAX_SHOWN] if skip_bad else bad[1:_MAX_SHOWN]
    for one in shown:
        say(f"{'skipped' if skip_bad else 'error'}: {one}", err=True)
    if len(bad) > _MAX_SHOWN:
        say(f"… and {len(bad) - _MAX_SHOWN} more", err=True)
    if not skip_bad:
        raise bad[0]
    return count


def skip_done(
    entries: Iterator[Scorable], partial: PartialOutput, *, skip_bad: bool
) -> tuple[int, Mapping[str, object]]:
    """Advance the input past the lines that an earlier run has scored.

    Args:
        entries: the lines of the input; afterwards it yields the remaining ones.
        partial: the output of the earlier run.
        skip_bad: accept that lines of the input which the service refused are missing in the output.

    Returns:
        The number of lines that are done, and the last of them.

    Raises:
        ConfigError: if the output belongs to another input.
    """
    count = 0
    written: dict[str, object] = {}
    for written in partial.done():
        count += 1
        for entry in entries:
            if partial.is_of(written, entry.line.values):
                break
            if not skip_bad:
                raise partial.mismatch(count, f"does not match line {entry.line.number} of the input")
        else:
            raise partial.mismatch(count, "matches no line of the input")
    return count, written


def check_model(
    partial: PartialOutput,
    count: int,
    written: Mapping[str, object],
    info: RewardInfo,
    options: ScoringOptions,
) -> None:
    """Check that the finished and the remaining lines get scores of the same model and kind.

    Args:
        partial: the output of the earlier run.
        count: number of its lines.
        written: the last of them.
        info: the model that the service serves.
        options: the flags.

    Raises:
        ConfigError: if they would not.
    """
    version = written.get("model_version")
    is_calibrated = "calibration_temperature" in written
    if version != info.model_version:
        raise partial.mismatch(
            count, f"was scored by model {version!r}, but the service has {info.model_version!r}"
        )
    if is_calibrated is not options.calibrated:
        raise partial.mismatch(count, f"is {'' if is_calibrated else 'not '}calibrated")


async def scored(
    client: AsyncRewardClient, entries: Iterator[Scorable], options: ScoringOptions
) -> AsyncGenerator[Scored, None]:
    """Yield batches of lines with their scores, in order.

    Raises:
        RemoteInvalidInput: if the service refuses a line, after all lines before it; names file and line.
        FairleadError: if the service cannot be reached.
    """
    sent: deque[list[Scorable]] = deque()

    async def requests() -> AsyncIterator[Sequence[ScoreItem]]:
        async for batch in lines.read_aside(_batches(entries, options.batch_size), ahead=_IN_FLIGHT):
            sent.append(batch)
            yield _items(batch)

    def work(given: AsyncIterator[Sequence[ScoreItem]]) -> AsyncIterator[tuple[int, Scores | FairleadError]]:
        def stream(
            share: AsyncIterator[Sequence[ScoreItem]],
        ) -> AsyncIterator[tuple[int, Scores | FairleadError]]:
            return client.score_stream(share, max_in_flight=_IN_FLIGHT)

        return fan_out(given, stream, streams=options.streams)

    found = in_order(requests(), work, ahead=4 * _IN_FLIGHT * options.streams)
    async with aclosing(found):
        async for outcome in found:
            yield await _with_scores(client, sent.popleft(), outcome, options)


async def _with_scores(
    client: AsyncRewardClient,
    batch: list[Scorable],
    outcome: Scores | FairleadError,
    options: ScoringOptions,
) -> Scored:
    """Return the lines of a batch with their scores; without refused lines if those are skipped."""
    from fairlead.clients.ranking import calibrated

    if isinstance(outcome, Scores):
        found = calibrated(outcome) if options.calibrated else outcome
        scores = iter(found.scores)
        return [
            {
                **entry.line.values,
                **entry.with_scores(list(itertools.islice(scores, len(entry.items)))),
                "model_version": found.model_version,
                **({"calibration_temperature": found.calibration_temperature} if options.calibrated else {}),
            }
            for entry in batch
        ]
    if not isinstance(outcome, InvalidInput):
        raise outcome
    if not options.skip_bad:
        raise _named(batch, outcome)
    if len(batch) > 1:
        return [line for entry in batch for line in await _score_separately(client, entry, options)]
    say(f"skipped: {_named(batch, outcome)}", err=True)
    return []


async def _score_separately(client: AsyncRewardClient, entry: Scorable, options: ScoringOptions) -> Scored:
    """Score one line of a request that was refused, possibly because of another line."""
    from fairlead.types import Priority

    outcome: Scores | FairleadError
    try:
        outcome = await client.score(_items([entry]), priority=Priority.BULK)
    except InvalidInput as error:
        outcome = error
    return await _with_scores(client, [entry], outcome, options)


def _named(batch: Sequence[Scorable], error: InvalidInput) -> InvalidInput:
    """Return the error with the file and line that caused it."""
    owners = [entry.line for entry in batch for _ in entry.items]
    if error.index is None or error.index >= len(owners):
        return error
    line = owners[error.index]
    return RemoteInvalidInput(
        f"{line.file}:{line.number}: {error.field}: got {error.got}, allowed: {error.allowed}"
    )


def _items(batch: Sequence[Scorable]) -> list[ScoreItem]:
    return [item for entry in batch for item in entry.items]


def _batches(entries: Iterator[Scorable], size: int) -> Iterator[list[Scorable]]:
    """Yield lines in batches of up to `size` responses and limited text, at least one line each."""
    batch: list[Scorable] = []
    responses = characters = 0
    for entry in entries:
        full = responses + len(entry.items) > size
        if batch and (full or characters + entry.num_characters > _MAX_REQUEST_CHARACTERS):
            yield batch
            batch = []
            responses = 0
            characters = 0
        batch.append(entry)
        responses += len(entry.items)
        characters += entry.num_characters
        if responses >= size:
            # Without reading on: the writer of the lines may wait for these scores.
            yield batch
            batch = []
            responses = 0
            characters = 0
    if batch:
        yield batch
