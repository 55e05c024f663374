"""The audit of handmade runs: sound ones are clean, and their reports are right."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fairlead.audit import audit
from fairlead.audit.snapshot import TrainingSettings
from fairlead.cli.main import app
from fairlead.transports.rollouts.base import QueuedOutcome, QueuedPrompt, QueueSnapshot, Sending
from tests.unit.fairlead.audit.audit_world import BATCH, MadeRun, kinds, sound


def test_sound_run_is_clean_with_right_figures(tmp_path: Path) -> None:
    made = sound(tmp_path)
    made.lines.append(made.line_of(3) | {"event": "repeated", "entry": "1-1"})
    made.end(8)
    report, _ = audit(made.write())
    assert report.findings == ()
    assert (report.ended, report.updates, report.checkpoint) == (True, 8, "2-8")
    assert (report.tasks, report.trained, report.dead, report.open) == (32, 30, 2, 0)
    assert (report.resent, report.void, report.discarded) == (0, 4, {"repeated": 1})
    assert report.dead_reasons == {"prompt_too_long": 2}
    assert report.max_staleness_seen == 0
    first, second = report.incarnations
    assert (first.trained, first.dead, first.void, first.discarded) == (15, 1, 4, 1)
    assert (second.resumed_from, second.trained, second.dead) == (4, 15, 1)
    assert report.queue is None


def test_active_run_and_new_run_are_clean(tmp_path: Path) -> None:
    made = sound(tmp_path / "working")
    made.event("sent", 2, 8, tasks=[[32, 35]])
    made.outcome(33, 2, 8)  # half of a batch is written
    report, _ = audit(made.write())
    assert report.is_clean
    assert (report.tasks, report.trained, report.open) == (36, 31, 3)
    begun = MadeRun(tmp_path / "begun")
    begun.claim(1, None)
    assert kinds(begun) == {}


def test_run_that_advances_while_it_is_read_is_clean(tmp_path: Path) -> None:
    made = sound(tmp_path)
    folder = made.write()
    advanced = []

    def advance() -> QueueSnapshot:
        """Train the next update after the events and checkpoints were read, before the journal is."""
        update = 8 + len(advanced)
        advanced.append(update)
        made.event("sent", 2, update, tasks=[[update * BATCH, update * BATCH + BATCH - 1]])
        for task in range(update * BATCH, update * BATCH + BATCH):
            made.outcome(task, 2, update)
        made.event("deleted", 2, update, entries=[made.lines[-1]["entry"]])
        made.write()
        return QueueSnapshot(incarnation=2, prompts=(), outcomes=(), failures={})

    report, _ = audit(folder, read_queue=advance)
    assert report.findings == ()
    assert (report.tasks, report.trained) == (36, 34)
    assert len(advanced) == 1


def test_replaced_trainer_without_results_may_be_unknown_to_its_successor(
    tmp_path: Path,
) -> None:
    made = MadeRun(tmp_path)
    made.incarnation(1, resumed_from=0, until=4)
    made.incarnation(3, resumed_from=4, until=6)
    made.claim(2, 4)
    made.outcome(16, 2, 4)  # void: its successor resumed from 4
    assert kinds(made) == {}


def test_incarnation_that_was_fenced_off_never_began(tmp_path: Path) -> None:
    made = sound(tmp_path)
    made.claim(3, None)
    record = {"resumed_from": None, "shut_out_by": 4}
    (made.folder.checkpoints / "incarnation-3.resumed-from.json").write_text(json.dumps(record))
    report, _ = audit(made.write())
    assert report.findings == ()
    assert [(one.number, one.resumed_from) for one in report.incarnations] == [(1, 0), (2, 4), (3, None)]


def test_earlier_result_does_not_end_a_continued_run(tmp_path: Path) -> None:
    made = sound(tmp_path)
    made.end(4, incarnations=1)
    assert kinds(made) == {}


def test_run_without_events_is_checked_against_its_configuration(tmp_path: Path) -> None:
    made = sound(tmp_path)
    made.events.clear()
    report, _ = audit(made.write(), settings=TrainingSettings(BATCH, 0))
    assert report.is_clean
    report, _ = audit(made.write(), settings=TrainingSettings(BATCH + 1, 0))
    assert {finding.kind for finding in report.findings} == {"wrong_batch"}


def test_groups_are_counted_as_tasks_and_must_be_whole(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, samples=4, dead=frozenset({2}))
    made.incarnation(1, resumed_from=0, until=4)
    made.end(4, tasks_trained=15, dead_letters=1)
    report, _ = audit(made.write())
    assert report.findings == ()
    assert (report.tasks, report.trained, report.dead) == (16, 15, 1)
    made.line_of(5)["samples"] = 3
    assert kinds(made) == {"wrong_batch": (5,)}


def with_dynamic_sampling(root: Path, first: str, second: str, *, extra: int = 4) -> MadeRun:
    """Two synchronous updates; each task is t (trained) or n (no signal)."""
    made = MadeRun(root, samples=2)
    made.claim(1, 0)
    terms = {
        "batch_size": 2 * BATCH,
        "num_samples": 2,
        "max_staleness": 0,
        "updates": 2,
        "extra_tasks": extra,
    }
    made.event("begun", 1, 0, terms=terms)
    made.event("sent", 1, 0, tasks=[[0, len(first + second) + 3]])  # more than the last update needed
    kinds_of_tasks = {"t": "trained", "n": "no_signal"}
    for task, kind in enumerate(first + second):
        made.outcome(task, 1, int(task >= len(first)), event=kinds_of_tasks[kind])
    made.settled[2] = len(first + second)
    without = [task for task, kind in enumerate(first + second) if kind == "n"]
    made.checkpoint(1, 2, no_signal=without)
    made.event("checkpoint", 1, 2)
    made.end(2, tasks_trained=2 * BATCH, tasks_no_signal=len(without))
    return made


def test_update_with_dynamic_sampling_uses_the_next_tasks_of_which_a_batch_has_a_signal(
    tmp_path: Path,
) -> None:
    made = with_dynamic_sampling(tmp_path / "sound", "tnttnt", "nnttnntt")
    report, history = audit(made.write())
    assert report.findings == ()
    assert (report.tasks, report.trained, report.no_signal, report.open) == (14, 8, 6, 0)
    assert "without signal" in history.of_task(1)[-1].text
    late = with_dynamic_sampling(tmp_path / "late", "tttt", "ttttn")
    assert kinds(late) == {"wrong_batch": (8,)}
    many = with_dynamic_sampling(tmp_path / "many", "tttt", "nnttnntt", extra=3)
    assert kinds(many) == {"wrong_batch": (4, 5, 8, 9)}
    made.line_of(1)["event"] = "trained"
    assert "ledger_differs" in kinds(made)


def test_torn_line_is_named_and_its_task_lost(tmp_path: Path) -> None:
    made = sound(tmp_path)
    folder = made.write()
    lines = folder.ledger.read_bytes().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if json.loads(line)["task"] == 5)
    lines[number] = lines[number][:20] + b"\n"
    folder.ledger.write_bytes(b"".join(lines) + b'{"task": 32, "eve')
    report, _ = audit(folder)
    assert report.lost == (5,)
    damaged = [finding.words for finding in report.findings if finding.kind == "damaged"]
    assert damaged == [
        f"ledger.jsonl:{number + 1}: is torn (21 bytes)",
        f"ledger.jsonl:{len(lines) + 1}: is torn, or is still being written (17 bytes)",
    ]


@pytest.mark.parametrize(
    "line", ['{"task": 1}', "[]", '{"task": "x", "event": "trained"}', '{"event": 1, "incarnation": {}}']
)
def test_invalid_lines_are_named_not_guessed(line: str, tmp_path: Path) -> None:
    folder = sound(tmp_path).write()
    for path in (folder.ledger, folder.events):
        with path.open("a") as file:
            file.write(line + "\n")
    report, _ = audit(folder)
    damaged = [finding.words for finding in report.findings if finding.kind == "damaged"]
    assert [words.partition(":")[0] for words in damaged] == ["events.jsonl", "ledger.jsonl"]
    assert report.is_clean


def test_damaged_checkpoint_of_active_run_is_a_warning(tmp_path: Path) -> None:
    made = sound(tmp_path)
    (made.folder.checkpoints / "2-8" / "state.json").write_bytes(b"{}")
    report, _ = audit(made.write())
    assert (report.is_clean, report.checkpoint) == (True, "2-6")
    assert [finding.words for finding in report.findings] == [
        "checkpoints/2-8: is damaged: state.json does not match its checksum in the manifest"
    ]


def test_tensors_can_be_skipped(tmp_path: Path) -> None:
    made = sound(tmp_path)
    (made.folder.checkpoints / "2-8" / "policy.safetensors").write_bytes(b"something else")
    folder = made.write()
    assert audit(folder)[0].checkpoint == "2-6"
    assert audit(folder, tensors=False)[0].checkpoint == "2-8"


def test_run_ended_by_a_guard_gives_up_open_tasks(tmp_path: Path) -> None:
    made = sound(tmp_path, max_staleness=1)
    made.event("sent", 2, 8, tasks=[[32, 35]])
    made.claim(3, 6)
    dead = {"tasks_trained": 22 + 1, "dead_letters": 1}
    made.end(6, **dead, stopped_by_guard="length at update 8")
    report, _ = audit(made.write())
    assert report.findings == ()
    assert (report.given_up, report.updates, report.trained, report.void) == (True, 6, 23, 12)


def test_trainer_that_begins_while_reading_causes_a_second_reading(tmp_path: Path) -> None:
    made = sound(tmp_path)
    folder = made.write()
    calls = []

    def read_queue() -> QueueSnapshot:
        """Called after the checkpoints were read and before the journal."""
        calls.append(len(calls))
        if len(calls) == 1:
            made.incarnation(3, resumed_from=8, until=10)
            made.write()
        return QueueSnapshot(incarnation=3, prompts=(), outcomes=(), failures={})

    report, _ = audit(folder, read_queue=read_queue)
    assert calls == [0, 1]
    assert report.findings == ()
    assert (report.checkpoint, report.trained, len(report.incarnations)) == ("3-10", 38, 3)


@pytest.mark.parametrize("passes", [True, False])
def test_error_counts_only_if_the_next_reading_has_it_too(tmp_path: Path, passes: bool) -> None:
    made = sound(tmp_path)
    folder = made.write()
    lines = list(made.lines)
    made.lines.remove(made.line_of(5))
    readings = []

    def read_queue() -> QueueSnapshot:
        """Called before the journal is read, from which a line is missing for now."""
        readings.append(len(readings))
        made.write()
        if passes:
            made.lines[:] = lines
        return QueueSnapshot(incarnation=2, prompts=(), outcomes=(), failures={})

    report, _ = audit(folder, read_queue=read_queue)
    assert (report.is_clean, report.lost) == ((True, ()) if passes else (False, (5,)))
    assert readings == [0, 1]


def test_batch_size_and_staleness_may_change_at_a_resume(tmp_path: Path) -> None:
    made = MadeRun(tmp_path)
    made.incarnation(1, resumed_from=0, until=4)
    made.batch = 2
    made.incarnation(2, resumed_from=4, until=6)
    made.batch, made.max_staleness = 8, 1
    made.incarnation(3, resumed_from=6, until=8)
    assert kinds(made) == {}
    made.line_of(17)["update"] = 5
    assert 17 in kinds(made)["wrong_batch"]


def test_open_task_lost_by_the_queue_is_a_warning(tmp_path: Path) -> None:
    made = sound(tmp_path)
    made.checkpoint(2, 8)
    state = made.folder.checkpoints / "2-8" / "state.json"
    made.event("sent", 2, 8, tasks=[[32, 35]])
    state.write_text(json.dumps(json.loads(state.read_text()) | {"cursor": 36}))
    made.sign(2, 8)
    held = QueuedPrompt("1-1", 33, Sending(2, 1), True, "w", 1, 0.5, False)
    closed = QueuedPrompt("1-2", 34, Sending(1, 1), False, "w", 1, 0.5, False)
    back = QueuedPrompt("1-4", 33, Sending(2, 1), True, "returned", 4, 0.5, False)
    waits = QueuedOutcome("1-3", 35, Sending(2, 1), 100)
    contents = QueueSnapshot(incarnation=2, prompts=(held, closed), outcomes=(waits,), failures={33: 0})
    report, history = audit(made.write(), read_queue=lambda: contents)
    assert report.is_clean
    [finding] = report.findings
    assert (finding.kind, finding.tasks) == ("to_be_resent", (32, 34))
    assert [event.text for event in history.of_task(34)] == [
        "sent by incarnation 2 after update 8",
        "now: sending 1.1, closed, delivery 1, held by w",
        "now: open",
    ]
    for prompt, words in (
        (
            replace(held, deliveries=4),
            "delivery 4, held by w, 1 failed before, 2 expired before",
        ),
        (back, "given back, waiting for a worker, 1 failed before, 3 expired before"),
    ):
        contents = QueueSnapshot(incarnation=2, prompts=(prompt,), outcomes=(), failures={33: 1})
        _, history = audit(made.write(), read_queue=lambda contents=contents: contents)
        assert [event.text for event in history.of_task(33)][1:] == [
            f"now: sending 2.1, {words}",
            "now: open",
        ]
    stranger = QueueSnapshot(incarnation=7, prompts=(held, closed), outcomes=(waits,), failures={})
    report, _ = audit(made.write(), read_queue=lambda: stranger)
    assert [finding.words for finding in report.findings if finding.is_error] == [
        "incarnation 7 holds the queue's fence, but has no claim in this folder"
    ]


def test_events_of_a_task_are_in_order(tmp_path: Path) -> None:
    made = sound(tmp_path)
    made.line_of(17).update(deliveries=4, failures=1)
    _, history = audit(made.write())
    assert [event.text for event in history.of_task(17)] == [
        "finished by a: sending 1.1, delivery 1, weights 1-4",
        "trained in update 4 of incarnation 1; void: this lineage was abandoned",
        "sent by incarnation 2 after update 4",
        "finished by a: sending 2.1, delivery 4, 1 failed before, 2 expired before, weights 2-4",
        "trained in update 4 of incarnation 2",
        "saved in checkpoint 2-6",
        f"outcome {made.line_of(17)['entry']} deleted from the queue",
        "now: trained in checkpoint 2-8",
    ]
    assert [event.text for event in history.of_task(30)][
        -1
    ] == "now: dead (prompt_too_long) in checkpoint 2-8"
    assert [event.text for event in history.of_task(99)] == ["now: not sent yet"]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_one_fault_in_any_history_is_found_and_nothing_else(data: st.DataObject) -> None:
    """Incarnations die after any update; then one outcome that counts is removed or duplicated."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = MadeRun(Path(folder))
        kept = 0
        for number in range(1, data.draw(st.integers(2, 5))):
            died = kept + data.draw(st.integers(0, 5))
            made.incarnation(number, resumed_from=kept, until=died, every=2)
            lost = data.draw(st.integers(0, died - kept))
            for update in range(died - lost + 1, died + 1):
                shutil.rmtree(made.folder.checkpoints / f"{number}-{update}", ignore_errors=True)
            kept = max((update for update in range(died - lost + 1) if is_kept(made, update)), default=0)
        made.incarnation(9, resumed_from=kept, until=kept + 2, every=1)
        assert kinds(made) == {}
        counted = [line for line in made.lines if counts(line, made.lineage)]
        assert len(counted) == (kept + 2) * BATCH
        line = data.draw(st.sampled_from(counted))
        report, _ = audit(made.write())
        assert (report.trained, report.void) == (len(counted), len(made.lines) - len(counted))
        if data.draw(st.booleans()):
            made.lines.remove(line)
            assert audit(made.write())[0].lost == (line["task"],)
        else:
            made.lines.insert(0, dict(line))
            assert audit(made.write())[0].duplicated == (line["task"],)


def is_kept(made: MadeRun, update: int) -> bool:
    return any(made.folder.checkpoints.glob(f"*-{update}/manifest.json"))


def counts(line: dict[str, object], lineage: list[list[int]]) -> bool:
    """Return whether no later incarnation resumed from an update before or at the line's."""
    return all(line["update"] < from_ for number, from_ in lineage if number > line["incarnation"])  # type: ignore[operator]


def test_command_exits_with_1_and_names_tasks(tmp_path: Path) -> None:
    made = sound(tmp_path)
    folder = str(made.write().root)
    runner = CliRunner()
    fine = runner.invoke(app, ["audit", folder])
    assert (fine.exit_code, fine.output.splitlines()[-1]) == (
        0,
        "clean: 30 trained and 2 dead, each once; none lost, none duplicated",
    )
    life = runner.invoke(app, ["audit", folder, "--task", "9", "--json"])
    assert json.loads(life.output)["life"][-1] == {"time": None, "what": "now: trained in checkpoint 2-8"}
    made.lines.remove(made.line_of(5))
    made.write()
    broken = runner.invoke(app, ["audit", folder])
    assert broken.exit_code == 1
    assert "lost: task 5: settled in checkpoint 2-8, but has no outcome that counts" in broken.output
    assert broken.output.splitlines()[-1] == "not clean: 1 lost"
    found = json.loads(runner.invoke(app, ["audit", folder, "--json"]).output)
    assert (found["clean"], found["lost"], found["duplicated"]) == (False, [5], [])
    nothing = runner.invoke(app, ["audit", str(tmp_path / "checkpoints")])
    assert nothing.exit_code == 2
    assert "allowed: the folder of a run that has started PPO" in nothing.output
