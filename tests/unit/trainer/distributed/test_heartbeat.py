"""Beats decide which rank is lost, and what the message says about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.distributed.heartbeat import Beat, Watch


def watch() -> Watch:
    return Watch(3, lost_seconds=10.0, stall_seconds=60.0, now=0.0)


def seen(beats: dict[int, Beat], *, now: float, by: Watch) -> None:
    for rank, beat in beats.items():
        assert by.see(rank, Beat.from_json(beat.to_json().encode()), now=now) is None


def test_a_rank_that_beats_is_not_lost_however_long_it_waits_for_orders():
    view = watch()
    for second in range(0, 100_000, 9):
        seen({rank: Beat("node", number=second, doing="waits") for rank in range(3)}, now=second, by=view)
        assert view.check(second + 8.9) is None


def test_a_rank_without_a_new_beat_is_lost_unless_it_has_finished():
    view = watch()
    beat = Beat("node-7", number=1, doing="learn: micro-batch 3 of 8", line="ppo/step.py:12 in optimise")
    for second in (1.0, 9.0):
        # The store returns the last beat of a dead rank again and again.
        seen(
            {0: replace(beat, number=int(second)), 1: beat, 2: replace(beat, done=True)}, now=second, by=view
        )
    assert view.check(11.0) is None
    loss = view.check(11.1)
    assert loss is not None
    assert loss.code == 1
    assert loss.message == (
        "rank 1 of 3 on node-7 has sent no heartbeat for 10 s (ranks.lost_seconds = 10); it was at: "
        "learn: micro-batch 3 of 8 (ppo/step.py:12 in optimise)"
    )


def test_a_suspended_observer_does_not_take_the_others_for_lost():
    view = watch()
    view.suspended(1_000.0)
    assert view.check(1_009.0) is None
    assert view.check(1_011.0) is not None


@pytest.mark.parametrize(
    ("beats", "names"),
    [
        # It has not taken the order.
        ([Beat(order=5, busy=True, steps=1), Beat(order=4), Beat(order=5, busy=True, steps=1)], [1]),
        # The others wait for it in a collective.
        (
            [
                Beat(order=5, busy=True, steps=3, in_collective=True),
                Beat(order=5, busy=True, steps=9, in_collective=True),
                Beat(order=5, busy=True, steps=9),
            ],
            [2],
        ),
        # All wait in collectives, one of them in an earlier one.
        ([Beat(order=5, busy=True, steps=3 + (rank > 0), in_collective=True) for rank in range(3)], [0]),
        # It has not carried out the order, the others have.
        ([Beat(order=5, busy=True, steps=3), Beat(order=5, steps=3), Beat(order=5, steps=3)], [0]),
        # No difference between them.
        ([Beat(order=5, busy=True, steps=3)] * 3, [0, 1, 2]),
    ],
)
def test_the_rank_that_the_others_wait_for_is_named(beats: list[Beat], names: list[int]):
    view = watch()
    for number, now in enumerate((1.0, 31.0, 61.0)):
        seen({rank: replace(beat, number=number) for rank, beat in enumerate(beats)}, now=now, by=view)
        assert view.check(now) is None
    seen({rank: replace(beat, number=9) for rank, beat in enumerate(beats)}, now=61.5, by=view)
    loss = view.check(61.5)
    assert loss is not None
    assert [rank for rank in range(3) if f"rank {rank} of 3" in loss.message] == names
    seen(
        {0: Beat(order=6, number=10), 1: Beat(order=6, number=10), 2: Beat(order=6, number=10)},
        now=62,
        by=view,
    )
    assert view.check(62.0) is None


def test_an_error_of_a_rank_is_passed_on_with_its_exit_code():
    loss = watch().see(2, Beat("node", number=1, code=5, reason="StoppedByGuard: KL 9 is above 8"), now=1.0)
    assert loss is not None
    assert (loss.code, loss.message) == (5, "rank 2 of 3 on node ended: StoppedByGuard: KL 9 is above 8")


def test_a_long_wait_in_a_collective_is_reported_with_the_ranks_that_are_outside():
    view = watch()
    waits = Beat("a", doing="loads its models", line="c10d.py:1 in gather", in_collective=True)
    reads = Beat("b", doing="loads its models", line="loading.py:7 in read")
    for number in range(40):
        moves = replace(waits, in_collective=number % 2 == 0)
        beats = {0: waits, 1: reads, 2: moves}
        seen({rank: replace(beat, number=number) for rank, beat in beats.items()}, now=number, by=view)
        assert view.wait(1, seconds=30, now=number) == view.wait(2, seconds=30, now=number) == ""
        assert bool(view.wait(0, seconds=30, now=number)) == (number >= 30)
    assert view.wait(0, seconds=30, now=39) == (
        "rank 0 of 3 on a has waited 39 s, at: loads its models (c10d.py:1 in gather), for rank 1 of 3 on b, "
        "at: loads its models (loading.py:7 in read)"
    )
    # All of them wait, each in another collective.
    seen({rank: replace(waits, number=99) for rank in (1, 2)}, now=100, by=view)
    assert view.wait(0, seconds=30, now=129) == ""
    assert "for rank 1 of 3 on a" in view.wait(0, seconds=30, now=131)
    assert " and rank 2 of 3 on a" in view.wait(0, seconds=30, now=131)
