"""Pauses between attempts, and what ends the retries."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import pytest

from fairlead import backoff as backoff_module
from fairlead.backoff import Backoff, retry, retry_blocking
from fairlead.errors import (
    DeadlineExceeded,
    FairleadError,
    InvalidInput,
    Overloaded,
    QueueUnavailable,
    ReplicaLost,
    StaleWeights,
    Stalled,
    Transient,
    Unavailable,
)

SHORT = Backoff(0.001, 0.002)

Run = Callable[..., Awaitable[object]]


@pytest.fixture(params=["async", "blocking"])
def run(request: pytest.FixtureRequest) -> Run:
    """Both interfaces, called in the same way."""

    async def run_async(action, **options):
        async def attempt():
            return action()

        return await retry(attempt, **options)

    async def run_blocking(action, **options):
        return retry_blocking(action, **options)

    return run_async if request.param == "async" else run_blocking


def failing(times: int, error: FairleadError):
    """An action that fails, then returns the number of its attempts."""
    attempts = 0

    def action() -> int:
        nonlocal attempts
        attempts += 1
        if attempts <= times:
            raise error
        return attempts

    return action


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("full", retry_after_seconds=0.001),
        Unavailable("loading"),
        QueueUnavailable("no answer"),
        ReplicaLost("socket closed"),
        StaleWeights("version 1"),
        DeadlineExceeded("out of time"),
    ],
)
async def test_transient_errors_are_retried(run: Run, error: FairleadError):
    assert isinstance(error, Transient)
    assert await run(failing(2, error), what="a service", backoff=SHORT) == 3


async def test_other_errors_end_the_retries(run: Run):
    with pytest.raises(InvalidInput, match="seed"):
        await run(failing(1, InvalidInput("seed", got=-1, allowed="0")), what="a service", backoff=SHORT)
    with pytest.raises(Unavailable):
        await run(failing(1, Unavailable("away")), what="a service", backoff=SHORT, on=Overloaded)


def test_pauses_double_up_to_the_longest():
    exact = Backoff(0.1, 0.5, jitter=0.0)
    assert [exact.seconds(failures) for failures in (0, 1, 2, 3, 4, 5, 100_000)] == pytest.approx(
        [0.1, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5]
    )
    assert Backoff(0.1, 9.0, factor=3.0, jitter=0.0).seconds(3) == pytest.approx(0.9)


@pytest.mark.parametrize("jitter", [0.5, 1.0])
def test_jitter_shortens_a_pause_by_at_most_its_share(jitter: float):
    pauses = [Backoff(1.0, 1.0, jitter=jitter).seconds(1) for _ in range(500)]
    assert 1.0 - jitter <= min(pauses) < 1.0 - 0.9 * jitter
    assert 0.95 < max(pauses) <= 1.0


async def test_delay_of_overloaded_replaces_the_pause(run: Run):
    began = time.monotonic()
    busy = Overloaded("full", retry_after_seconds=0.1)
    await run(failing(1, busy), what="a service", backoff=SHORT)
    assert time.monotonic() - began >= 0.1
    began = time.monotonic()
    await run(failing(1, busy), what="a service", backoff=Backoff(60.0, 60.0))
    assert time.monotonic() - began < 30


async def test_pause_past_the_deadline_raises_the_last_error_at_once(run: Run):
    began = time.monotonic()
    error = Overloaded("full", retry_after_seconds=60.0)
    with pytest.raises(Overloaded) as raised:
        await run(failing(1, error), what="a service", backoff=SHORT, deadline=began + 30)
    assert raised.value is error
    assert time.monotonic() - began < 10


async def test_stalled_after_give_up_seconds_names_what_and_why(run: Run):
    began = time.monotonic()
    with pytest.raises(Stalled, match="s for the queue: no answer") as raised:
        await run(
            failing(10**6, QueueUnavailable("no answer")),
            what="the queue",
            backoff=SHORT,
            give_up_seconds=0.05,
        )
    assert time.monotonic() - began >= 0.05
    assert isinstance(raised.value.__cause__, QueueUnavailable)


async def test_on_wait_sees_every_error_and_may_end_the_retries(run: Run):
    seen: list[FairleadError] = []
    assert await run(failing(3, Unavailable("away")), what="it", backoff=SHORT, on_wait=seen.append) == 4
    assert [str(error) for error in seen] == ["away"] * 3

    def stop(error: FairleadError) -> None:
        raise error

    with pytest.raises(Unavailable):
        await run(failing(3, Unavailable("away")), what="it", backoff=SHORT, on_wait=stop)


async def test_wait_is_logged_at_once_and_then_every_few_seconds(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    with caplog.at_level(logging.WARNING):
        await run(failing(20, Unavailable("no route")), what="the policy service", backoff=SHORT)
    assert caplog.messages == ["waiting for the policy service, 0 s so far: no route"]
    caplog.clear()
    monkeypatch.setattr(backoff_module, "_LOG_SECONDS", 0.0)
    await run(failing(20, Unavailable("no route")), what="the policy service", backoff=SHORT)
    assert len(caplog.messages) == 20


async def test_nothing_is_logged_without_a_name(run: Run, caplog: pytest.LogCaptureFixture):
    await run(failing(3, Unavailable("away")), what="", backoff=SHORT)
    assert caplog.messages == []
