"""The guard: every signal against cases computed by hand, levels, state; healthy and hacked runs."""

from __future__ import annotations

import json
import logging
import math
import random

import pytest
import torch
from prometheus_client import CollectorRegistry
from scipy.stats import spearmanr

from fairlead.config import load
from fairlead.config.guard import GuardSection
from fairlead.errors import CorruptCheckpoint
from fairlead.metrics import TrainerMetrics
from trainer import durable
from trainer.ppo import signals
from trainer.ppo.batch import RolloutBatch
from trainer.ppo.guard import Alert, Guard, read_quantiles
from trainer.sequences import TokenSequence

PROMPT = (1, 2)


def batch(responses: list[tuple[int, ...]], scores: list[float], cut_off: list[bool] | None = None):
    lengths_B = torch.tensor([len(response) for response in responses])
    count = int(lengths_B.sum())
    return RolloutBatch(
        task_ids=tuple(range(len(responses))),
        sequences=tuple(TokenSequence((*PROMPT, *response), len(PROMPT)) for response in responses),
        groups_B=torch.arange(len(responses)),
        behaviour_N=torch.zeros(count),
        reference_N=torch.zeros(count),
        scores_B=torch.tensor(scores),
        cut_off_B=torch.tensor(cut_off or [False] * len(responses)),
        stale_B=torch.zeros(len(responses), dtype=torch.bool),
        lengths_B=lengths_B,
        mask_BT=torch.arange(int(lengths_B.max())) < lengths_B[:, None],
    )


def figures(**changes: float) -> dict[str, float]:
    return {"response_length": 4.0, "eos_rate": 1.0, "kl": 0.5, "kl_k3": 0.5, "entropy": 1.0} | changes


def test_measures_match_values_computed_by_hand():
    found = signals.measure(
        # 3-grams: (5,6,7) (6,7,5) (7,5,6) (5,6,7) → one of four again; none; too short for any.
        batch([(5, 6, 7, 5, 6, 7), (5, 6, 7, 8), (5, 6), (5, 6)], [1.0, 0.0, 3.0, -9.0]),
        {"response_length": 4.0},
        quantiles=(-1.0, 2.0),
    )
    assert found["repeated"] == pytest.approx(0.25 / 4)
    assert found["distinct"] == 0.75
    assert found["scores_outside"] == 0.5
    assert found["episodes"] == 4
    assert "entropy" not in found
    # Ranks of scores 3 2 4 1, of lengths 4 3 1.5 1.5: 0.75 − 0.25 − 1.5 + 1.5 over the spreads.
    assert found["score_length"] == pytest.approx(0.5 / math.sqrt(5 * 4.5))


def test_spearman_matches_scipy():
    rng = random.Random(1)
    for _ in range(20):
        x = [float(rng.randint(0, 6)) for _ in range(40)]
        y = [value + rng.gauss(0, 4) // 1 for value in x]
        assert signals.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert signals.spearman([1.0, 1.0], [1.0, 2.0]) is None


FIRST = {
    "response_length": 10.0,
    "eos_rate": 1.0,
    "kl": 0.0,
    "kl_k3": 0.0,
    "entropy": 2.0,
    "distinct": 0.8,
    "repeated": 0.02,
    "episodes": 256.0,
    "score_length": 0.0,
    "scores_outside": 0.01,
    "mismatch": 0.05,
}


@pytest.mark.parametrize(
    ("changed", "signal", "value", "level"),
    [
        ({"response_length": 7.1}, "length_ratio", 0.71, "quiet"),
        ({"response_length": 6.9}, "length_ratio", 0.69, "stop"),
        ({"response_length": 14.9}, "length_ratio", 1.49, "quiet"),
        ({"response_length": 15.1}, "length_ratio", 1.51, "stop"),
        ({"repeated": 0.10}, "repetition", 0.04, "quiet"),
        ({"repeated": 0.12}, "repetition", 0.06, "stop"),
        ({"eos_rate": 0.985}, "eos_ratio", 0.985, "quiet"),
        ({"eos_rate": 0.975}, "eos_ratio", 0.975, "stop"),
        ({"kl": 9.9}, "kl", 9.9, "quiet"),
        ({"kl": 10.1}, "kl", 10.1, "stop"),
        ({"kl_k3": 21.0}, "kl_k3", 21.0, "warn"),
        ({"entropy": 0.99}, "entropy_ratio", 0.495, "warn"),
        ({"distinct": 0.39}, "distinct_ratio", 0.4875, "warn"),
        ({"score_length": 0.81}, "score_length", 0.81, "warn"),
        ({"score_length": -0.95}, "score_length", -0.95, "quiet"),
        ({"scores_outside": 0.51}, "scores_outside", 0.51, "warn"),
        ({"mismatch": 0.11}, "mismatch", 0.11, "warn"),
    ],
)
def test_signals_at_their_limits(changed: dict[str, float], signal: str, value: float, level: str):
    found = signals.values(FIRST | changed, FIRST)
    assert tuple(found) == signals.SIGNALS
    assert found[signal] == pytest.approx(value)
    assert GuardSection().judge(signal, found[signal])[0] == level
    others = {name: GuardSection().judge(name, found[name])[0] for name in found if name != signal}
    assert set(others.values()) == {"quiet"}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("update", [1, 2])
def test_signal_that_is_not_finite_stops_the_run(number: float, update: int):
    guard = Guard(GuardSection(action="stop"))
    rollouts = batch([(5, 6), (7, 8)], [1.0, 0.0])
    for now in range(1, update):
        guard.judge(rollouts, figures(), update=now)
    found = guard.judge(rollouts, figures(entropy=number, kl=number), update=update)
    assert not math.isfinite(found["guard_entropy_ratio"])
    assert not math.isfinite(found["guard_kl"])
    assert [(alert.signal, alert.level, alert.threshold) for alert in guard.alerts] == [
        ("kl", "stop", None),
        ("entropy_ratio", "stop", None),
    ]
    assert str(guard.stopped_by) == f"kl is {number:.3g} at update {update}, which is not finite"
    restored = Guard(GuardSection(action="stop"))
    restored.load_state(json.loads(durable.dumps(guard.state())))
    assert [alert.signal for alert in restored.alerts] == ["kl", "entropy_ratio"]
    # The next finite value has a baseline, unless the first update had none.
    now = restored.judge(rollouts, figures(entropy=0.5), update=update + 1)
    assert now.get("guard_entropy_ratio") == (0.5 if update == 2 else None)


def test_baseline_of_an_asynchronous_run_is_the_mean_of_its_first_batches():
    short, long = (
        batch([(5, 6), (7, 8)], [1.0, 0.0]),
        batch([(5, 6), (7, 8), (5, 7), (7, 6)], [1.0, 0.0, 0.0, 0.5]),
    )
    guard = Guard(GuardSection(), baseline_updates=2)
    first = guard.judge(short, figures(response_length=10.0, entropy=2.0), update=1)
    assert "guard_length_ratio" not in first
    assert "guard_repetition" not in first
    assert "guard_kl" in first
    restored = Guard(GuardSection(), baseline_updates=2)
    restored.load_state(json.loads(durable.dumps(guard.state())))
    for one in (guard, restored):
        # 2 answers of 10 tokens and 4 of 16: 14 on average.
        found = one.judge(long, figures(response_length=16.0, entropy=math.inf), update=2)
        assert found["guard_length_ratio"] == pytest.approx(16 / 14)
        found = one.judge(short, figures(response_length=7.0, entropy=1.0), update=3)
        assert found["guard_length_ratio"] == 0.5
        assert found["guard_entropy_ratio"] == 0.5


def test_low_eos_rate_falls_only_beyond_chance():
    first = FIRST | {"eos_rate": 0.6}
    chance = 3 * math.sqrt(0.6 * 0.4 * 2 / 256)
    assert signals.values(first | {"eos_rate": 0.5}, first)["eos_ratio"] == 1.0
    assert signals.values(first | {"eos_rate": 0.4}, first)["eos_ratio"] == pytest.approx(
        (0.4 + chance) / 0.6
    )
    assert signals.values(first | {"eos_rate": 0.9}, first)["eos_ratio"] == pytest.approx(1.5)
    silent = FIRST | {"eos_rate": 0.0, "entropy": 0.0}
    assert {"eos_ratio", "entropy_ratio"}.isdisjoint(signals.values(silent, silent))


def test_alerts_are_logged_once_per_change(caplog: pytest.LogCaptureFixture):
    registry = CollectorRegistry()
    guard = Guard(
        GuardSection(kl_warn_above=5.0, action="stop"), quantiles=None, metrics=TrainerMetrics(registry)
    )
    rollouts = batch([(5, 6, 7, 8), (5, 6, 7, 9)], [0.0, 1.0])
    caplog.set_level(logging.INFO, logger="trainer.ppo.guard")
    levels = []
    for update, kl in enumerate((0.0, 6.0, 7.0, 4.0, 6.0, 11.0, 12.0), start=1):
        assert guard.judge(rollouts, figures(kl=kl), update=update)["guard_kl"] == kl
        levels.append(registry.get_sample_value("fairlead_trainer_guard", {"signal": "kl"}))
        assert (guard.stopped_by is not None) == (update >= 6)
    assert levels == [0, 1, 1, 0, 1, 2, 2]
    crossings = [
        registry.get_sample_value("fairlead_trainer_guard_crossings_total", {"signal": "kl", "level": level})
        for level in ("warn", "stop")
    ]
    assert crossings == [2, 1]
    found = [(alert.signal, alert.update, alert.level) for alert in guard.alerts]
    assert found == [("kl", 2, "warn"), ("kl", 5, "warn"), ("kl", 6, "stop")]
    assert guard.stopped_by == Alert("kl", 6, 11.0, 10.0, "stop")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING", "ERROR"]
    assert caplog.messages[-1] == "guard: kl is 11 at update 6, above 10"


@pytest.mark.parametrize(("action", "alerts"), [("off", 0), ("warn", 1)])
def test_only_action_stop_ends_the_run(action: str, alerts: int):
    guard = Guard(GuardSection(action=action))  # type: ignore[arg-type]
    rollouts = batch([(5, 6), (5, 7)], [0.0, 1.0])
    guard.judge(rollouts, figures(), update=1)
    assert guard.judge(rollouts, figures(kl=50.0), update=2)["guard_kl"] == 50.0
    assert len(guard.alerts) == alerts
    assert guard.stopped_by is None


def test_resumed_guard_keeps_baseline_and_alerts():
    rollouts = batch([(5, 6), (5, 7)], [0.0, 1.0])
    first = Guard(GuardSection())
    first.judge(rollouts, figures(entropy=2.0), update=1)
    first.judge(rollouts, figures(entropy=0.9), update=2)
    second = Guard(GuardSection())
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.judge(rollouts, figures(entropy=0.9), update=3)["guard_entropy_ratio"] == 0.45
    assert second.alerts == first.alerts
    second.load_state(None)
    with pytest.raises(CorruptCheckpoint, match="invalid guard"):
        second.load_state({"first": 3})


def test_quantiles_are_read_from_the_reward_model_result(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="trainer.ppo.guard")
    assert read_quantiles(tmp_path / "absent.json") is None
    assert "scores_outside is not measured" in caplog.text
    (tmp_path / "r.json").write_text('{"score_quantiles": [-2.0, 3.5]}')
    assert read_quantiles(tmp_path / "r.json") == (-2.0, 3.5)
    guard = Guard(GuardSection(), quantiles=None)
    assert "guard_scores_outside" not in guard.judge(batch([(5,), (6,)], [0.0, 1.0]), figures(), update=1)


# A healthy run of the quickstart: length, KL, KL by k3, entropy at every third update; all answers ended.
HEALTHY = [
    (17.86, 0.00, 0.00, 0.56),
    (17.41, 0.21, 0.20, 0.53),
    (15.75, 0.34, 0.42, 0.51),
    (16.79, 0.79, 0.72, 0.50),
    (16.29, 1.02, 1.10, 0.44),
    (16.59, 1.40, 1.29, 0.44),
    (15.75, 1.65, 1.63, 0.44),
    (15.57, 1.93, 1.79, 0.42),
    (16.06, 1.81, 1.81, 0.41),
]


def play(rows: list[tuple[float, ...]], responses: list[list[tuple[int, ...]]]) -> tuple[Alert, ...]:
    guard = Guard(GuardSection())
    for update, ((length, kl, k3, entropy), responses_of_update) in enumerate(
        zip(rows, responses, strict=True), start=1
    ):
        rng = random.Random(update)
        scores = [rng.gauss(0, 1) for _ in responses_of_update]
        changed = figures(response_length=length, kl=kl, kl_k3=k3, entropy=entropy)
        guard.judge(batch(responses_of_update, scores), changed, update=update)
    return guard.alerts


def answers(seed: int, *, stuck: float = 0.0) -> list[tuple[int, ...]]:
    """32 answers, in each of which the share `stuck` repeats one sentence."""
    rng = random.Random(seed)
    found = []
    for _ in range(32):
        free = [rng.randrange(10, 90) for _ in range(18)]
        cut = round(18 * (1 - stuck))
        found.append(tuple(free[:cut] + [5, 6, 7] * 6)[:18])
    return found


def test_healthy_run_raises_no_alert():
    assert play(HEALTHY, [answers(seed) for seed in range(len(HEALTHY))]) == ()


def test_hacked_run_raises_alerts():
    hacked = [(18.0 + 2 * u, 2.5 * u, 2.5 * u, 0.56 / (1 + u / 3)) for u in range(8)]
    alerts = play(hacked, [answers(u, stuck=min(1.0, u / 6)) for u in range(8)])
    fired = {alert.signal: (alert.update, alert.level) for alert in alerts}
    # KL 12.5 and 28 tokens at the sixth; entropy below one half at the fifth.
    assert fired["kl"] == (6, "stop")
    assert fired["length_ratio"] == (6, "stop")
    assert fired["entropy_ratio"] == (5, "warn")
    assert fired["repetition"][1] == "stop"
    assert fired["repetition"][0] <= 6


def test_limits_come_from_the_configuration():
    config = load(overrides={"guard.action": "stop", "guard.kl_stop_above": 3})
    assert (config.guard.action, config.guard.kl_stop_above, config.guard.eos_ratio_stop_below) == (
        "stop",
        3,
        0.98,
    )
    known = set(GuardSection.model_fields) - {"action", "fresh_label_pairs"}
    sides = {
        f"{s}_{level}_{side}"
        for s in (*signals.SIGNALS, signals.OVERCONFIDENCE)
        for level in ("warn", "stop")
        for side in ("below", "above")
    }
    assert known <= sides, "a limit that no signal reads"
