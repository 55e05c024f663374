"""Break it: the reported outcome, compared with values computed by hand for a small run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from examples.parcel_help import break_it, figures, gold, methods, picture, rows
from fairlead.config import RunConfig, load
from fairlead.report import run_record

PROMPT = "my lamp was charged twice ."
# Gold 0.2, 1.8, 1.0, 0.4 − 0.6, −1.2: two good updates, then it falls; the score rises throughout.
TEXTS = (
    "hello .",
    "hello . we will refund one charge .",
    "hello . we will refund one charge . we sell many things . our shop is on the road . hello .",
    "have a good day . have a good day .",
    "stop asking .",
)
GOLDS = (0.2, 1.8, 0.6, -0.2, -1.2)


def _run(tmp_path: Path):
    config = break_it.broken(load(None, overrides={"runs": str(tmp_path), "name": "q"}))
    folder = config.folder
    folder.root.mkdir(parents=True)
    rows = [
        {
            "step": n,
            "update": float(n),
            "reward": n - 1.0,
            "kl": 4.0 * n,
            "guard_kl": 4.0 * n,
            "guard_entropy_ratio": 1.0,
        }
        for n in range(1, 6)
    ]
    folder.metrics("ppo").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [
        {"update": n, "task": n, "prompt": PROMPT, "text": text, "ended": True, "score": n - 1.0}
        for n, text in enumerate(TEXTS, start=1)
    ]
    folder.rollout_samples.write_text("".join(json.dumps(row) + "\n" for row in samples))
    alerts = [
        {"signal": "entropy_ratio", "update": 2, "value": 0.4, "threshold": 0.5, "level": "warn"},
        {"signal": "kl", "update": 3, "value": 12.0, "threshold": 10.0, "level": "stop"},
        {"signal": "length_ratio", "update": 4, "value": 2.0, "threshold": 1.5, "level": "stop"},
    ]
    folder.result("ppo").write_text(json.dumps({"updates": 5, "guards": alerts}))
    return config


def test_broken_configuration_has_no_kl_penalty_and_its_own_folder() -> None:
    ordinary = load(None, overrides={"guard.action": "stop"})
    config = break_it.broken(ordinary)
    assert (config.ppo.kl_coefficient, config.ppo.updates, config.guard.action) == (0.0, 40, "warn")
    assert config.folder.root != ordinary.folder.root


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_can_be_broken(method: str) -> None:
    ordinary = load(None, overrides={"ppo.missing_eos_penalty": 2.0})
    config = break_it.broken(methods.configured(ordinary, method))
    # What the trainer will read from the file of the run.
    assert RunConfig.model_validate(config.model_dump()).ppo == config.ppo
    assert config.ppo.kl_coefficient == (0.01 if method.startswith("online-dpo") else 0)


def test_outcome_equals_values_computed_by_hand(tmp_path: Path) -> None:
    config = _run(tmp_path)
    record = run_record.read(config.folder)
    assert [gold.reward(PROMPT, text, ended=True) for text in TEXTS] == pytest.approx(GOLDS)
    assert figures.gold_by_update(record) == ([1, 2, 3, 4, 5], pytest.approx(GOLDS))
    found = break_it.outcome(record)
    assert (found["proxy_first"], found["proxy_last"]) == (0.0, 4.0)
    assert found["confirmed"] == pytest.approx((-0.8 / 3 - 0.2) / (0.7 * 4.0))
    # Means of up to three updates: 0.2, 1.0, 0.867, 0.733, -0.267.
    assert (found["gold_peak"], found["gold_peak_update"]) == (pytest.approx(1.0), 2)
    # Half of the gain is lost below (0.2 + 1.0) / 2: at update 5, after the guard fired.
    assert found["half_lost"] == 5
    assert (found["fired"]["signal"], found["fired"]["update"]) == ("kl", 3)
    assert found["gold_saved"] == pytest.approx((0.2 + 1.8 + 0.6) / 3 - (0.6 - 0.2 - 1.2) / 3)


def test_outcome_without_alerts(tmp_path: Path) -> None:
    record = run_record.read(_run(tmp_path).folder)
    quiet = replace(record, ppo={"guards": []}, rollout_samples=record.rollout_samples[:2])
    found = break_it.outcome(quiet)
    assert (found["fired"], found["gold_saved"], found["half_lost"]) == (None, None, None)


def test_page_and_summary_show_the_outcome(tmp_path: Path) -> None:
    config = _run(tmp_path)
    break_it.write(config)
    html = (config.folder.root / "break_it.html").read_text(encoding="utf-8")
    for shown in (
        "+0.00 → +4.00",
        "+0.20 → -0.27",
        "update 3",
        "+1.00",
        "stop at 3",
        "warn at 2",
        "stop &gt; 10",
        "A guard would have stopped the run at update 3 (kl), at a gold reward of +0.87; half of the gain in "
        "gold was lost at update 5, and the run ended at -0.27.",
        TEXTS[-1],
    ):
        assert shown in html
    assert json.loads((config.folder.root / "break_it.json").read_text())["gold"] == pytest.approx(
        break_it.smooth(GOLDS)
    )
    assert "ended at -0.27" in break_it.summary(config)
    assert "update  4: stop by length_ratio, at gold +0.73 and score +3.00" in break_it.summary(config)
    assert rows.tables([config.folder.root]).splitlines()[-1] == (
        "| q-break-it | 0.00 → 4.00 | 0.20 → 1.00 (update 2) → -0.27 | update 5 | update 3, kl | +1.13 |"
    )
    caption = picture.draw_broken([config.folder.root] * 2, tmp_path / "broken.svg")
    assert caption == "; ".join(["q-break-it: gold 0.20 → -0.27"] * 2)
    assert (tmp_path / "broken.svg").read_text(encoding="utf-8").count("<svg") == 1
