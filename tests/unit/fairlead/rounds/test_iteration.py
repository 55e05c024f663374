"""Rounds with people: what decides that an earlier run continues, names of models, and the agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairlead.config import load
from fairlead.errors import CorruptData, StoppedByGate, exit_code
from fairlead.rounds.embedded import is_embedded
from fairlead.rounds.iteration import agreement_of, model_digest, steps_key


def test_only_settings_of_the_outcome_start_other_rounds() -> None:
    first = steps_key(load())
    same = {"iterate.gate": "warn", "iterate.rounds": 9, "iterate.min_agreement": 0.1, "feedback.replicas": 1}
    assert steps_key(load(overrides=same)) == first
    for name, value in (("iterate.tasks", 7), ("iterate.answers", 5), ("seed", 1), ("ppo.updates", 3)):
        assert steps_key(load(overrides={name: value})) != first, name


def test_service_is_embedded_without_a_port() -> None:
    assert is_embedded(load())
    assert not is_embedded(load(overrides={"feedback.addresses": ["feedback.example.com:443"]}))


def test_digest_of_a_model_is_that_of_its_weights(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match="no weights"):
        model_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = model_digest(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert model_digest(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert model_digest(tmp_path) != first


def test_agreement_of_exported_rankings() -> None:
    def said(labeler: str, order: str) -> dict[str, Any]:
        responses = [{"text": text, "rank": place, "answer": text} for place, text in enumerate(order, 1)]
        return {"prompt": "p", "task": "t", "labeler": labeler, "responses": responses}

    found = agreement_of([said("a", "xyz"), said("b", "xzy")], seed=0)
    assert found.rate == pytest.approx(2 / 3)
    assert agreement_of([said("a", "xyz")], seed=0).rate is None
    assert exit_code(StoppedByGate("")) == 6
