"""The ledger against a plain set, the journal with cut lines, and counting of made-up outcomes."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import CorruptCheckpoint, SchemaTooNew
from fairlead.transports.rollouts.base import OutcomeEntry, Sending
from fairlead.transports.weights.base import Ancestor
from fairlead.types import (
    Completion,
    DeadLetter,
    FinishReason,
    Outcome,
    PromptTask,
    Rollout,
    SamplingParams,
    VersionSpan,
    WeightVersion,
)
from trainer.checkpoint import Checkpoint
from trainer.ppo.progress import Ledger, TrainingProgress
from trainer.ppo.result import count_outcomes
from trainer.ppo.task_records import Journal, as_ranges, read_journal


def entry(task_id: int, *, dead: bool = False, entry_id: str = "1", samples: int = 1) -> OutcomeEntry:
    version = WeightVersion(1, 0)
    completion = Completion((4, 2), (-1.0, -2.0), FinishReason.STOP, (VersionSpan(version, 0, 2),))
    result = (
        DeadLetter("too_long", "…")
        if dead
        else tuple(Rollout(completion, 0.5 + number, "r", (-1.0, -2.0)) for number in range(samples))
    )
    task = PromptTask(task_id, (1,), "", SamplingParams(), version, num_samples=samples)
    return OutcomeEntry(entry_id, Sending(1, 1), Outcome(task, result, "worker-a", 2, 1))


@given(
    st.permutations(range(12)),
    st.sets(st.integers(0, 11)),
    st.sets(st.integers(0, 11)),
    st.integers(0, 12),
)
def test_ledger_matches_a_plain_set(order, dead, no_signal, count):
    ledger, settled, no_signal = Ledger(), set(), no_signal - dead
    for task_id in order[:count]:
        reason = "r" if task_id in dead else None
        ledger.settle(task_id, dead_reason=reason, no_signal=task_id in no_signal)
        settled.add(task_id)
        ledger = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
        assert {task for task in range(15) if ledger.is_settled(task)} == settled
        assert ledger.dead.keys() == settled & dead
        assert ledger.no_signal == settled & no_signal
        assert ("no_signal" in ledger.to_json()) == bool(settled & no_signal)  # as older versions wrote it
        assert ledger.watermark == next(n for n in range(15) if n not in settled)
    for task_id in settled:
        with pytest.raises(ValueError, match="already settled"):
            ledger.settle(task_id)


def test_ledger_rejects_invalid_json():
    for value in (None, {}, {"watermark": "x", "above": [], "dead": {}}):
        with pytest.raises(CorruptCheckpoint):
            Ledger.from_json(value)


def test_journal_records_outcomes_and_survives_a_cut_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    journal = Journal(path, incarnation=1)
    journal.append([entry(0), entry(1, dead=True)], update=3)
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"task": 2, "eve')
    journal = Journal(path, incarnation=2)
    journal.append([entry(2)], event="stale", update=4)
    journal.close()
    lines = list(read_journal(path))
    assert [(line["task"], line["event"], line["incarnation"], line["update"]) for line in lines] == [
        (0, "trained", 1, 3),
        (1, "dead_letter", 1, 3),
        (2, "stale", 2, 4),
    ]
    assert (lines[0]["worker"], lines[0]["deliveries"], lines[0]["failures"]) == ("worker-a", 2, 1)
    assert lines[0]["versions"] == ["1-0"]
    assert lines[1]["reason"] == "too_long"


def test_journal_has_one_line_for_a_group(tmp_path):
    path = tmp_path / "ledger.jsonl"
    journal_of(path, [(1, 0, [entry(0, samples=4), entry(1, dead=True, samples=4), entry(2, samples=4)])])
    first, dead, _ = read_journal(path)
    assert (first["samples"], first["score"], first["scores"]) == (4, 2.0, [0.5, 1.5, 2.5, 3.5])
    assert (first["tokens"], first["finishes"], first["versions"]) == (8, ["stop"] * 4, ["1-0"])
    assert "samples" not in dead
    found = count_outcomes(path, ledger=settled(1, below=3), cursor=3, lineage=(Ancestor(1, 0),))
    assert (found.trained, found.episodes, found.dead_letters, found.lost) == (2, 8, 1, 0)
    assert found.scores == {0: (2.0, 2.0)}


def settled(*dead: int, below: int) -> Ledger:
    return Ledger(watermark=below, dead=dict.fromkeys(dead, "r"))


def journal_of(path, appends: list[tuple[int, int, list[OutcomeEntry]]]) -> None:
    for incarnation, update, entries in appends:
        journal = Journal(path, incarnation=incarnation)
        journal.append(entries, update=update)
        journal.close()


def test_only_the_lineage_of_the_final_weights_counts(tmp_path):
    path = tmp_path / "ledger.jsonl"
    # Incarnation 1 trained updates 0 and 1; incarnation 2 resumed from update 1 and did the second again.
    journal_of(
        path,
        [
            (1, 0, [entry(0), entry(1)]),
            (1, 1, [entry(2), entry(3, dead=True)]),
            (2, 1, [entry(2, dead=True), entry(3)]),
        ],
    )
    lineage = (Ancestor(1, 0), Ancestor(2, 1))
    found = count_outcomes(path, ledger=settled(2, below=4), cursor=4, lineage=lineage)
    assert (found.trained, found.dead_letters, found.duplicated, found.lost) == (3, 1, 0, 0)
    assert found.scores == {0: (0.5, 0.5), 1: (0.5,)}


def test_count_outcomes_finds_duplicated_and_lost_tasks(tmp_path):
    path = tmp_path / "ledger.jsonl"
    journal_of(path, [(1, 0, [entry(0), entry(1)]), (1, 1, [entry(1), entry(3)])])
    found = count_outcomes(path, ledger=settled(below=4), cursor=4, lineage=(Ancestor(1, 0),))
    assert (found.duplicated, found.lost) == (1, 1)
    # a task that is dead in the ledger but trained in the journal counts as lost, too
    found = count_outcomes(path, ledger=settled(0, below=4), cursor=4, lineage=(Ancestor(1, 0),))
    assert found.lost == 2


@given(st.sets(st.integers(0, 60)))
def test_as_ranges_holds_exactly_the_numbers(numbers):
    ranges = as_ranges(numbers)
    assert [n for first, last in ranges for n in range(first, last + 1)] == sorted(numbers)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(ranges))


def test_progress_rejects_a_newer_schema():
    state = TrainingProgress(update=3, cursor=24).state(seconds=1.0)
    assert TrainingProgress.from_checkpoint(Checkpoint(WeightVersion(1, 3), {}, state)).update == 3
    del state["schema"]  # as the first release wrote it
    assert TrainingProgress.from_checkpoint(Checkpoint(WeightVersion(1, 3), {}, state)).cursor == 24
    with pytest.raises(SchemaTooNew, match="checkpoint 1-3 has schema 2, .* reads schemas up to 1: upgrade"):
        TrainingProgress.from_checkpoint(Checkpoint(WeightVersion(1, 3), {}, state | {"schema": 2}))
