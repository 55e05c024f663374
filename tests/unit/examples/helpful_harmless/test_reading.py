"""Log-probs and features of answers against a plain forward pass of one sequence at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.helpful_harmless import reading
from fairlead.config.base import ComputeSection
from tests.tiny import tiny_causal_lm

ANSWERS = [("w1 w2 w3", "w4 w5"), ("w6", "w7 w8 w9 w10"), ("w1 w2 w3 w4 w5 w6", "w7")]


def test_readings_equal_a_plain_forward_pass(tmp_path: Path) -> None:
    path = str(tiny_causal_lm(tmp_path / "model"))
    found = reading.read(path, ANSWERS, ComputeSection(device="cpu"))
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    for place, (prompt, answer) in enumerate(ANSWERS):
        asked = tokenizer(prompt)["input_ids"]
        said = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            output = model(torch.tensor([[*asked, *said]]), output_hidden_states=True)
        predictors = slice(len(asked) - 1, -1)
        logprobs = output.logits[0, predictors].log_softmax(-1)[range(len(said)), said]
        hidden = output.hidden_states[-1][0, predictors]
        assert found.tokens_N[place] == len(said)
        assert found.logprobs_N[place] == pytest.approx(float(logprobs.sum()), abs=1e-4)
        expected = torch.cat([hidden.mean(0), hidden[-1]]).tolist()
        assert found.features_NF[place].tolist() == pytest.approx(expected, abs=1e-4)
    assert found.mean_logprobs.tolist() == pytest.approx((found.logprobs_N / found.tokens_N).tolist())


def test_groups_are_read_as_one(tmp_path: Path) -> None:
    path = str(tiny_causal_lm(tmp_path / "model"))
    section = ComputeSection(device="cpu")
    whole = reading.read(path, ANSWERS, section)
    groups = reading.read_groups(path, {"a": ANSWERS[:1], "b": ANSWERS[1:]}, section)
    assert groups["b"].logprobs_N.tolist() == pytest.approx(whole.logprobs_N[1:].tolist())
    assert groups["a"].features_NF.shape == (1, 64)


def test_long_sequence_loses_its_prompt_first() -> None:
    found = reading.fitting([1, 2, 3, 4], [5, 6, 7], max_tokens=5)
    assert (found.token_ids, found.prompt_length) == ((3, 4, 5, 6, 7), 2)
    found = reading.fitting([1, 2, 3, 4], [5, 6, 7, 8, 9], max_tokens=4)
    assert (found.token_ids, found.prompt_length) == ((4, 5, 6, 7), 1)


def test_saved_readings_are_those_of_the_same_answers_only(tmp_path: Path) -> None:
    path = str(tiny_causal_lm(tmp_path / "model"))
    groups = reading.read_groups(
        path, {"a": ANSWERS[:1], "known_b": ANSWERS[1:]}, ComputeSection(device="cpu")
    )
    file = tmp_path / "run" / "readings.npz"
    assert reading.load_readings(file, "one") is None
    reading.save_readings(file, "one", groups)
    assert reading.load_readings(file, "another") is None
    found = reading.load_readings(file, "one")
    assert found is not None
    assert list(found) == ["a", "known_b"]
    assert found["known_b"].features_NF.tolist() == groups["known_b"].features_NF.tolist()
    assert found["a"].logprobs_N.tolist() == groups["a"].logprobs_N.tolist()
    assert [one.name for one in file.parent.iterdir()] == ["readings.npz"]


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_damaged_readings_are_read_again(part: float, tmp_path: Path) -> None:
    file = tmp_path / "readings.npz"
    ones = np.ones(2)
    reading.save_readings(file, "one", {"a": reading.Readings(ones, ones, np.ones((2, 3)))})
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    assert reading.load_readings(file, "one") is None
    file.write_text("not an archive")
    assert reading.load_readings(file, "one") is None
