"""What the preference stage learns from: which answer is matched with which prompt."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fairlead.nn.loading import load_tokenizer
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.stage_world import preference_run
from trainer.preference import data


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_next_other_is_found_by_walking_round_the_circle(prompts: list[str]):
    def walked(place: int) -> int:
        for steps in range(1, len(prompts)):
            other = (place + steps) % len(prompts)
            if prompts[other] != prompts[place]:
                return other
        return place

    assert data.next_others(prompts) == [walked(place) for place in range(len(prompts))]


def test_a_prompt_with_most_of_the_answers_costs_no_quadratic_time():
    count = 200_000  # walking would take 2 · 10¹⁰ steps
    prompts = ["common"] * (count - 1) + ["rare"]
    assert data.next_others(prompts) == [count - 1] * (count - 1) + [0]


def test_thumbs_of_one_prompt_only_are_matched_with_their_own_answers_and_a_warning(tmp_path: Path, caplog):
    base = str(tiny_causal_lm(tmp_path / "base"))
    lines = [{"prompt": "w1", "completion": f"w{n}", "label": n % 2 == 0} for n in range(2, 8)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = preference_run(tmp_path, path=base, loss="kto")
    thumbs = {"preferences": "", "thumbs": "t.jsonl", "heldout_fraction": 0.0}
    config = config.model_copy(update={"data": config.data.model_copy(update=thumbs)})
    found = data.load(config, load_tokenizer(base), max_tokens=64)
    assert len(found.train) == 6
    assert all(example.sequences[0] == example.sequences[1] for example in found.train)
    assert "all answers to train on are to one prompt" in caplog.text
