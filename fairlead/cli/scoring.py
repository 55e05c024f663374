"""The work of `fairlead score`: lines → requests of a stream → lines with their scores, in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairlead.cli import lines
from fairlead.cli.output import say
from fairlead.cli.partial import Partial
from fairlead.clients.bulk import fan_out, in_order
from fairlead.data.lines import Line
from fairlead.data.scorable import Scorable, scorable
from fairlead.errors import DataError, FairleadError, InvalidInput, RemoteInvalidInput
from fairlead.types import RewardInfo, ScoreItem, Scores

if TYPE_CHECKING:
    from fairlead.clients import AsyncRewardClient

_MAX_REQUEST_CHARACTERS = 2 << 20
_IN_FLIGHT = 16
"""Requests of a stream at a time: enough that the service always has the next batch at hand."""
_MAX_TOLD = 10

Scored = list[Mapping[str, object]]
"""Lines with their scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What the flags say of the work."""

    batch_size: int
    """Responses of one request."""
    streams: int
    """As many as there are replicas."""
    calibrated: bool
    """Divide scores by the model's temperature."""
    skip_bad: bool
    """Leave out lines that cannot be scored."""


def good(found: Iterable[Line | DataError], *, skip_bad: bool, checked: bool) -> Iterator[Scorable]:
    """What can be scored; a bad line is raised, or left out and told, unless `check` has told it."""
    for line in found:
        try:
            if isinstance(line, DataError):
                raise line
            yield scorable(line)
        except DataError as error:
            if not skip_bad:
                raise
            if not checked:
                say(f"left out: {error}", err=True)


def check(found: Iterable[Line | DataError], *, skip_bad: bool) -> int:
    """Reads everything before anything is scored; returns how many lines can be.

    Raises:
        DataError: the first bad line, with the others told on standard error; not where they are left out.
    """
    count, bad = 0, list[DataError]()
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
    shown = bad[:_MAX_TOLD] if skip_bad else bad[1:_MAX_TOLD]
    for one in shown:
        say(f"{'left out' if skip_bad else 'error'}: {one}", err=True)
    if len(bad) > _MAX_TOLD:
        say(f"… and {len(bad) - _MAX_TOLD} more", err=True)
    if not skip_bad:
        raise bad[0]
    return count


def pass_over(
    entries: Iterator[Scorable], partial: Partial, *, skip_bad: bool
) -> tuple[int, Mapping[str, object]]:
    """Passes over what an earlier run has done.

    Args:
        entries: of the whole input; afterwards, those that are left.
        partial: what is done.
        skip_bad: lines that the service refused may be missing among those that are done.

    Returns:
        How many lines are done, and the last of them.

    Raises:
        ConfigError: what is done is of another input.
    """
    count, written = 0, dict[str, object]()
    for written in partial.done():
        count += 1
        for entry in entries:
            if partial.is_of(written, entry.line.values):
                break
            if not skip_bad:
                raise partial.mismatch(count, f"is not line {entry.line.number} of the input, scored")
        else:
            raise partial.mismatch(count, "is of no line of this input")
    return count, written


def check_model(
    partial: Partial, count: int, written: Mapping[str, object], info: RewardInfo, how: How
) -> None:
    """What is done and what is left come from the same model, told in the same way.

    Raises:
        ConfigError: they would not.
    """
    version, divided = written.get("model_version"), "calibration_temperature" in written
    if version != info.model_version:
        raise partial.mismatch(count, f"is scored by model {version!r}, and served is {info.model_version!r}")
    if divided is not how.calibrated:
        raise partial.mismatch(count, f"is {'' if divided else 'not '}calibrated")


async def scored(
    client: AsyncRewardClient, entries: Iterator[Scorable], how: How
) -> AsyncGenerator[Scored, None]:
    """Batches of lines with their scores, in order.

    Raises:
        RemoteInvalidInput: a line that the service refuses, by file and number, once all before it are done.
        FairleadError: the service cannot be reached, or no longer.
    """
    asked: deque[list[Scorable]] = deque()

    async def requests() -> AsyncIterator[Sequence[ScoreItem]]:
        async for batch in lines.read_aside(_batches(entries, how.batch_size), ahead=_IN_FLIGHT):
            asked.append(batch)
            yield _items(batch)

    def work(given: AsyncIterator[Sequence[ScoreItem]]) -> AsyncIterator[tuple[int, Scores | FairleadError]]:
        def stream(
            share: AsyncIterator[Sequence[ScoreItem]],
        ) -> AsyncIterator[tuple[int, Scores | FairleadError]]:
            return client.score_stream(share, max_in_flight=_IN_FLIGHT)

        return fan_out(given, stream, streams=how.streams)

    found = in_order(requests(), work, ahead=4 * _IN_FLIGHT * how.streams)
    async with aclosing(found):
        async for outcome in found:
            yield await _told(client, asked.popleft(), outcome, how)


async def _told(
    client: AsyncRewardClient, batch: list[Scorable], outcome: Scores | FairleadError, how: How
) -> Scored:
    from fairlead.clients.ranking import calibrated

    if isinstance(outcome, Scores):
        found = calibrated(outcome) if how.calibrated else outcome
        scores = iter(found.scores)
        return [
            {
                **entry.line.values,
                **entry.with_scores(list(itertools.islice(scores, len(entry.items)))),
                "model_version": found.model_version,
                **({"calibration_temperature": found.calibration_temperature} if how.calibrated else {}),
            }
            for entry in batch
        ]
    if not isinstance(outcome, InvalidInput):
        raise outcome
    if not how.skip_bad:
        raise _named(batch, outcome)
    if len(batch) > 1:
        return [line for entry in batch for line in await _alone(client, entry, how)]
    say(f"left out: {_named(batch, outcome)}", err=True)
    return []


async def _alone(client: AsyncRewardClient, entry: Scorable, how: How) -> Scored:
    """One line of a request that was refused for the sake of another."""
    from fairlead.types import Priority

    outcome: Scores | FairleadError
    try:
        outcome = await client.score(_items([entry]), priority=Priority.BULK)
    except InvalidInput as error:
        outcome = error
    return await _told(client, [entry], outcome, how)


def _named(batch: Sequence[Scorable], error: InvalidInput) -> InvalidInput:
    """The mistake with the file and line that it is of."""
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
    """As many lines as make a request: `size` responses, one line at least, and not too much text."""
    batch: list[Scorable] = []
    responses = characters = 0
    for entry in entries:
        full = responses + len(entry.items) > size
        if batch and (full or characters + entry.num_characters > _MAX_REQUEST_CHARACTERS):
            yield batch
            batch, responses, characters = [], 0, 0
        batch.append(entry)
        responses, characters = responses + len(entry.items), characters + entry.num_characters
        if responses >= size:
            # At once: who writes the lines may be waiting for these.
            yield batch
            batch, responses, characters = [], 0, 0
    if batch:
        yield batch
