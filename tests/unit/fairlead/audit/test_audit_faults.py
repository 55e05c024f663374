"""The audit finds every fault injected into a sound run, by its kind and its tasks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.fairlead.audit.audit_world import MadeRun, kinds, sound


def remove_line(made: MadeRun) -> None:
    made.lines.remove(made.line_of(5))


def count_twice(made: MadeRun) -> None:
    made.outcome(5, 2, 7)


def train_dead_task(made: MadeRun) -> None:
    made.lines.append(made.line_of(30) | {"event": "trained", "versions": ["2-7"], "update": 7})


def reopen_in_ledger(made: MadeRun) -> None:
    made.checkpoint(2, 8, watermark=29, above=[30, 31])


def kill_in_ledger(made: MadeRun) -> None:
    made.checkpoint(2, 8, dead={"6": "r", "30": "r", "9": "r"})


def settle_beyond_cursor(made: MadeRun) -> None:
    made.checkpoint(2, 8, above=[40])


def leave_task_open(made: MadeRun) -> None:
    made.lines.remove(made.line_of(29))
    reopen_in_ledger(made)
    made.end(8, tasks_trained=29)


def train_stale_tokens(made: MadeRun) -> None:
    made.line_of(21)["versions"] = ["2-5", "1-4"]


def train_newer_tokens(made: MadeRun) -> None:
    made.line_of(21)["versions"] = ["2-6"]


def train_void_lineage(made: MadeRun) -> None:
    made.line_of(21)["versions"] = ["1-5"]


def train_unknown_version(made: MadeRun) -> None:
    made.line_of(21)["versions"] = ["7-5"]


def swap_two_batches(made: MadeRun) -> None:
    first, second = made.line_of(21), made.line_of(25)
    first["task"], second["task"] = 25, 21


def use_too_many(made: MadeRun) -> None:
    made.line_of(25).update(update=5, versions=["2-5"])


def write_without_a_claim(made: MadeRun) -> None:
    made.outcome(21, 9, 5)


def write_before_it_began(made: MadeRun) -> None:
    made.outcome(11, 2, 2, versions=["1-2"])
    made.lines.remove(next(line for line in made.lines if line["task"] == 11))


def record_another_lineage(made: MadeRun) -> None:
    made.lineage[0][1] = 1
    made.checkpoint(2, 8)


def delete_outcome_early(made: MadeRun) -> None:
    deleted = next(event for event in made.events if event["event"] == "deleted" and event["update"] == 6)
    made.events.remove(deleted)
    checkpoint = next(
        event for event in made.events if event["event"] == "checkpoint" and event["update"] == 6
    )
    made.events.insert(made.events.index(checkpoint), deleted)


def train_unsent_tasks(made: MadeRun) -> None:
    made.events[:] = [event for event in made.events if event.get("tasks") != [[20, 23]]]


def lose_last_checkpoint(made: MadeRun) -> None:
    shutil.rmtree(made.folder.checkpoints / "2-8")
    made.end(8)


def damage_last_checkpoint(made: MadeRun) -> None:
    (made.folder.checkpoints / "2-8" / "policy.safetensors").write_bytes(b"something else")
    made.end(8)


def report_other_result(made: MadeRun) -> None:
    made.end(8, tasks_trained=32)


LAST_TWO = tuple(range(24, 32))
FAULTS: list[tuple[Callable[[MadeRun], None], dict[str, tuple[int, ...]]]] = [
    (remove_line, {"lost": (5,), "wrong_batch": (5,)}),
    (count_twice, {"doubled": (5,), "wrong_batch": (5,)}),
    (train_dead_task, {"trained_and_dead": (30,), "ledger_differs": (30,), "wrong_batch": LAST_TWO[4:]}),
    (reopen_in_ledger, {"would_count_again": (29,)}),
    (kill_in_ledger, {"ledger_differs": (9,)}),
    (settle_beyond_cursor, {"lost": (40,), "beyond_cursor": (40,)}),
    (leave_task_open, {"lost": (29,), "wrong_batch": (29,)}),
    (train_stale_tokens, {"stale": (21,)}),
    (train_newer_tokens, {"stale": (21,)}),
    (train_void_lineage, {"invalid_version": (21,)}),
    (train_unknown_version, {"invalid_version": (21,)}),
    (swap_two_batches, {"wrong_batch": (21, 25, 21, 25), "would_count_again": (25,), "lost": (21,)}),
    (write_without_a_claim, {"unknown_incarnation": (21,)}),
    (write_before_it_began, {"before_it_began": (11,), "wrong_batch": tuple(range(8, 12))}),
    (record_another_lineage, {"lineage_differs": ()}),
    (delete_outcome_early, {"deleted_early": tuple(range(16, 20))}),
    (train_unsent_tasks, {"never_sent": tuple(range(20, 24))}),
    (lose_last_checkpoint, {"missing_checkpoint": LAST_TWO}),
    (damage_last_checkpoint, {"missing_checkpoint": LAST_TWO}),
    (report_other_result, {"result_differs": ()}),
]


@pytest.mark.parametrize(("fault", "expected"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_fault_is_found_and_its_tasks_are_named(
    fault: Callable[[MadeRun], None], expected: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    made = sound(tmp_path)
    fault(made)
    assert kinds(made) == expected
