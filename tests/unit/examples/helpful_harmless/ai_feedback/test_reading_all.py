"""What the untuned model makes of pairs is computed once, and the command prints the tables from it."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from examples.helpful_harmless.ai_feedback import __main__ as command
from examples.helpful_harmless.ai_feedback import questions
from examples.helpful_harmless.baselines import read_sides
from fairlead.config import load
from tests.tiny import tiny_causal_lm

TEMPLATE = (
    "{% for message in messages %}w50 {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}w50 {% endif %}"
)


def _pairs(data: Path, count: int) -> Path:
    file = data / "hh_rlhf" / "harmless.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"w{number % 40} w{number // 40}"}],
            "chosen": [{"role": "assistant", "content": f"w{number % 20} w1"}],
            "rejected": [{"role": "assistant", "content": f"w{20 + number % 20} w2 w3"}],
        }
        for number in range(count)
    ]
    with gzip.open(file, "wt", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(row)}\n" for row in rows)
    return data


def test_command_reads_once_and_prints_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_causal_lm(tmp_path / "model", max_position_embeddings=512)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    config = tmp_path / "run.toml"
    config.write_text(f'[model]\npath = "{model}"\n[reward]\ndevice = "cpu"\n')
    data, folder = _pairs(tmp_path / "data", 80), tmp_path / "build"
    flags = [*map(str, (data, folder, "--config", config)), "--repetitions", "2", "--learnt", "32"]
    assert command.main([*flags, "--judges", "48"]) == 2
    assert "32 + 48 of 80 pairs" in capsys.readouterr().err
    assert not folder.exists()
    flags += ["--judges", "20", "--ask"]
    assert command.main(flags) == 0
    printed = capsys.readouterr().out
    assert "2 repetitions; 80 pairs of 80 questions" in printed
    figures = json.loads((folder / "ai_feedback.json").read_text())
    right = {row["judge"]: row["value"] for row in figures["judges"]}
    assert f"| bag of words, trained on other pairs | {right['words']:.1%} " in printed
    settings, asked = load(config), questions.load(data)
    first = command.evidence_of(
        settings, asked, read_sides(settings, asked.pairs, folder / "readings_all.npz"), folder, ask=True
    )
    # All is kept: without the model the result is the same.
    shutil.rmtree(model)
    again = command.evidence_of(
        settings, asked, read_sides(settings, asked.pairs, folder / "readings_all.npz"), folder, ask=True
    )
    assert again.better_PF.tolist() == first.better_PF.tolist()
    assert {name: values.tolist() for name, values in again.margins.items()} == {
        name: values.tolist() for name, values in first.margins.items()
    }
    # Other pairs are not in the files.
    assert command.main(flags) == 0
    _pairs(data, 70)
    assert command.main(flags) == 2
    assert "model" in capsys.readouterr().err
