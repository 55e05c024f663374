"""One trace follows a task through the real processes of a run, reassembled by a receiver of OTLP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from fairlead.tracing import context, stored
from fairlead.tracing.stored import StoredSpan
from tests.integration.ppo_run import BATCH, check, make, started

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel")

ONE_IN = 2


def children(spans: Sequence[StoredSpan], parent: StoredSpan) -> Mapping[str, StoredSpan]:
    return {span.name: span for span in spans if span.parent_id == parent.span_id}


def check_task(spans: Sequence[StoredSpan], trace: str) -> StoredSpan:
    """Check the tree of a task that was trained, and return its gradient step."""
    mine = stored.of_trace(spans, trace)
    [dispatch] = [span for span in mine if not span.parent_id]
    assert dispatch.name == "dispatch"
    assert dispatch.service == "fairlead-trainer"
    after_dispatch = children(mine, dispatch)
    assert set(after_dispatch) == {"claim", "train"}
    claim, train = after_dispatch["claim"], after_dispatch["train"]
    work = children(mine, claim)
    assert set(work) == {"generate", "reward", "reference", "finish"}
    order = [dispatch, claim, work["generate"], work["reward"], work["finish"], train]
    assert [span.name for span in sorted(order, key=lambda span: span.begun)] == [s.name for s in order]
    assert work["generate"].ended <= min(work["reward"].begun, work["reference"].begun)
    assert max(work["reward"].begun, work["reference"].begun) < min(
        work["reward"].ended, work["reference"].ended
    )
    served = children(mine, work["generate"])["Generate"]
    assert served.service == "fairlead-policy"
    assert work["generate"].begun <= served.begun <= served.ended <= work["generate"].ended
    return train


def check_joined(spans: Sequence[StoredSpan], name: str, *, method: str, service: str) -> None:
    """Check that each joined call is served, and that its other tasks and the call refer to each other."""
    joined = [span for span in spans if span.name == name]
    assert joined
    by_id = {span.span_id: span for span in spans}
    for call in joined:
        served = children(spans, call)[method]
        assert served.service == service
        for trace, span_id in call.links:
            assert (call.trace_id, call.span_id) in by_id[span_id].links
            assert by_id[span_id].trace_id == trace != call.trace_id
    assert any(call.links for call in joined)


def check_updates(spans: Sequence[StoredSpan], trains: Sequence[StoredSpan]) -> None:
    """Check that the updates have their phases and swaps, and refer to the tasks that they trained."""
    updates = {span.trace_id: span for span in spans if span.name == "update"}
    for number in (1, 2):
        update = updates[f"{context.of_update('tiny', 1, number).trace_id:032x}"]
        mine = stored.of_trace(spans, update.trace_id)
        phases = children(mine, update)
        assert {"wait", "prepare", "train", "publish", "swap"} <= set(phases)
        assert set(children(mine, phases["swap"])) == {"fetch", "load"}
        assert phases["swap"].service == "fairlead-policy"
        step = phases["train"]
        linked = {span.trace_id for span in trains if (step.trace_id, step.span_id) in span.links}
        assert {trace for trace, _ in step.links} == linked


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trace_follows_a_task_from_dispatch_to_swap(tmp_path: Path):
    file = make(tmp_path, updates=3)
    from fairlead.tracing.sink import receiving

    collected = tmp_path / "traces.jsonl"
    with receiving(collected, host="127.0.0.1", port=0) as address:
        settings = (
            f"observe.otlp_endpoint={address}",
            f"observe.trace_one_in={ONE_IN}",
            "observe.log_style=json",
        )
        with started(file, *(word for each in settings for word in ("--set", each))) as run:
            code, output = run.finish(seconds=800)
            assert code == 0, output + run.log_tails()
            check(run.folder)
            logs = [
                json.loads(line)
                for line in run.folder.log("trainer").read_text().splitlines()
                if line.startswith("{")
            ]
    spans = stored.read(collected)
    ids = {task: context.of_task("tiny", task, (1, 1), one_in=ONE_IN) for task in range(3 * BATCH)}
    sampled = {f"{each.trace_id:032x}" for each in ids.values() if each.is_sampled}
    assert set(stored.traces_of_tasks(spans, run="tiny", task=None)) == sampled
    assert len(sampled) >= 4
    trains = [check_task(spans, trace) for trace in sampled]
    check_joined(spans, "reward call", method="Score", service="fairlead-reward")
    check_joined(spans, "reference call", method="LogProbs", service="fairlead-reference")
    check_updates(spans, trains)
    assert any({"run", "incarnation", "update"} <= line.keys() for line in logs)
    shown = subprocess.run(
        [sys.executable, "-m", "fairlead.cli", "traces", "show", str(collected)],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "120", "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
    ).stdout
    task = next(task for task, each in ids.items() if each.is_sampled)
    audited = subprocess.run(
        [sys.executable, "-m", "fairlead.cli", "audit", str(run.folder.root), "--task", str(task), "--json"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert json.loads(audited)["traces"] == {"1.1": f"{ids[task].trace_id:032x}"}
    names = [line.strip().removeprefix("⇢ ").split()[0] for line in shown.splitlines()[2:]]
    order = [
        names.index(name) for name in ("dispatch", "claim", "generate", "finish", "train", "publish", "swap")
    ]
    assert order == sorted(order)
    assert {"reward", "reference"} <= set(names)
