"""The screen of a run in five states at three widths, against texts in `screens/`.

`GOLDEN_SCREENS=write pytest tests/unit/fairlead/local/test_screen.py` writes them again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from fairlead.local.run_files import StageProgress
from fairlead.local.screen import draw, sparkline
from fairlead.local.status import RunStatus, ServiceStatus, SignalStatus

SCREENS = Path(__file__).parent / "screens"
FIGURES = {
    "reward": 2.3581,
    "kl": 4.85,
    "entropy": 0.3716,
    "response_length": 16.13,
    "eos_rate": 1.0,
    "tokens_per_second": 5109.9,
    "staleness_mean": 0.25,
    "staleness_max": 1.0,
    "queue_waiting": 0.0,
    "queue_in_flight": 256.0,
    "queue_outcomes": 256.0,
}
RECENT = {
    "reward": [-0.35, 0.1, 0.6, 0.4, 1.2, 1.9, 2.41, 2.3581],
    "kl": [0.0, 0.4, 1.1, 1.9, 2.6, 3.1, 4.2, 4.85],
    "entropy": [0.55, 0.54, 0.5, 0.48, 0.44, 0.4, 0.38, 0.3716],
    "response_length": [17.7, 16.4, 16.0, 16.2, 15.9, 16.1, 16.2, 16.13],
    "tokens_per_second": [2723.0, 4800.0, 5000.0, 5100.0, 4900.0, 5200.0, 5000.0, 5109.9],
}


def signals(**levels: float) -> tuple[SignalStatus, ...]:
    """Return three signals, of which those named are beyond a limit of 0.5 or 0.7."""
    beyond = [
        SignalStatus(
            name=name,
            value=value,
            level="stop" if name == "length_ratio" else "warn",
            limit=0.7 if name == "length_ratio" else 0.5,
        )
        for name, value in levels.items()
    ]
    quiet = [
        SignalStatus(name=name, value=0.9, level="quiet", limit=None)
        for name in ("length_ratio", "kl", "entropy_ratio", "distinct_ratio")
        if name not in levels
    ]
    return (*beyond, *quiet)


def service(name: str, **changes: object) -> ServiceStatus:
    values: dict[str, object] = {
        "name": name,
        "state": "ready",
        "pid": 4_100 + len(name),
        "restarts": 0,
        "up_seconds": 754.0,
        "healthy": True,
        "version": "1-71" if name.startswith("policy") else "",
        "waiting": "",
        "log": f"runs/obs/logs/{name}.log",
    }
    return ServiceStatus(**(values | changes))  # type: ignore[arg-type]


def services(**changes: Mapping[str, object]) -> tuple[ServiceStatus, ...]:
    names = ("valkey", "trainer", "policy-0", "policy-1", "reward-0", "reference-0", "rollout-worker-0")
    return tuple(service(name, **changes.get(name.replace("-", "_"), {})) for name in names)


def progress(**changes: object) -> StageProgress:
    values: dict[str, object] = {
        "stage": "ppo",
        "phase": "wait",
        "step": 71,
        "total": 120,
        "figures": FIGURES,
        "since": 1.0,
        "waiting_for": "107 of 256 rollouts of update 71: tasks 18181, 18187, 18190",
        "eta_seconds": 750.0,
    }
    return StageProgress(**(values | changes))  # type: ignore[arg-type]


def running(**changes: object) -> RunStatus:
    values: dict[str, object] = {
        "run": "runs/obs",
        "state": "running",
        "stage": "ppo",
        "progress": progress(),
        "said_seconds_ago": 1.0,
        "phase_seconds": 2.0,
        "rollouts_per_second": 40.03,
        "services": services(),
        "signals": signals(),
        "recent": RECENT,
        "best_reward": (70, 2.41),
        "figures_step": 71,
        "figures_seconds_ago": 2.0,
        "share_waiting": 0.45,
    }
    return RunStatus(**(values | changes))  # type: ignore[arg-type]


def states() -> dict[str, RunStatus]:
    loading = {
        "state": "starting",
        "healthy": False,
        "version": "",
        "waiting": "loading the weights of runs/obs/sft",
    }
    waits = {"waiting": "the queue's answer", "waiting_seconds": 28.4}
    done = tuple(service(name, state="ended", pid=None, up_seconds=None) for name in ("valkey", "trainer"))
    return {
        "start": running(
            progress=None,
            recent={},
            signals=(),
            best_reward=None,
            figures_step=None,
            rollouts_per_second=None,
            share_waiting=None,
            services=services(policy_0=loading, policy_1=loading | {"waiting": ""}),
        ),
        "wait": running(
            services=services(trainer={"waiting": "107 of 256 rollouts", "waiting_seconds": 2.0})
        ),
        "outage": running(
            phase_seconds=28.0,
            figures_seconds_ago=31.0,
            services=services(
                valkey={"healthy": False},
                trainer=waits,
                rollout_worker_0=waits,
                policy_1={"state": "restarting", "pid": None, "restarts": 2, "up_seconds": None},
            ),
            last_error="rollout-worker-0 at 2026-11-28T23:05:20.100Z: the queue does not answer: timed out",
        ),
        "guard": running(
            phase_seconds=3.0,
            progress=progress(phase="train", waiting_for=None),
            signals=signals(length_ratio=0.66, entropy_ratio=0.29, distinct_ratio=0.4),
        ),
        "ended": running(
            state="stopped",
            reason="guard: length_ratio is 0.66 at update 14, below 0.7; back to the checkpoint of update 8",
            progress=progress(phase="done", step=8, waiting_for=None, eta_seconds=0.0),
            services=done,
            signals=signals(length_ratio=0.66),
            figures_step=14,
            figures_seconds_ago=9_000.0,
            finished_stages={"sft": {"heldout_loss": 0.505, "seconds": 12.7}},
        ),
    }


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("state", ["start", "wait", "outage", "guard", "ended"])
def test_screen_equals_its_golden_text(state: str, width: int) -> None:
    text = "\n".join(line.rstrip() for line in draw(states()[state], width).plain.splitlines()) + "\n"
    file = SCREENS / f"{state}-{width}.txt"
    if os.environ.get("GOLDEN_SCREENS") == "write":
        SCREENS.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert max(map(len, text.splitlines())) <= width
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", range(20, 200, 7))
def test_what_a_process_waits_for_is_shown_at_every_width(width: int) -> None:
    long = "the answer of policy-1 at 127.0.0.1:20000 to a call of Generate with 32 prompts"
    found = running(services=services(trainer={"waiting": long, "waiting_seconds": 12.0}))
    text = draw(found, width).plain
    assert "the answer" in text
    assert ", 12 s" in text
    assert max(map(len, text.splitlines())) <= width


def test_figures_keep_their_places_when_their_values_change() -> None:
    one = draw(running(), 80).plain.splitlines()
    wide = FIGURES | {"reward": -123456.0, "kl": 1.2e-9, "tokens_per_second": 12.0}
    other = draw(running(progress=progress(figures=wide)), 80).plain.splitlines()
    none = draw(running(progress=progress(figures={}), best_reward=None), 80).plain.splitlines()
    for label in ("reward", "KL", "best", "entropy", "length", "rollouts/s", "ended", "tokens/s"):
        places = {
            next((row, line.index(label)) for row, line in enumerate(lines) if label in line)
            for lines in (one, other, none)
        }
        assert len(places) == 1


def test_sparkline() -> None:
    assert sparkline([0.0, 1.0, 2.0, 3.0], 3) == "▁▅█"
    assert sparkline([1.0, float("nan"), 1.0], 9) == "▁ ▁"
    assert sparkline([], 9) == ""
