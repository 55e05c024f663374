"""`fairlead data check` as a user runs it, and stages that stop at invalid data and run after its repair."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fairlead.cli.data import DataKind
from fairlead.cli.main import app
from fairlead.config import load
from fairlead.data.kinds import KINDS, detect
from fairlead.data.records import is_heldout
from fairlead.errors import DataError
from tests.hub_stand_in import hub
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from trainer.sft import train as sft

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ 'w1 ' if m.role == 'user' else 'w2 ' }}{{ m.content }} {{ '</s> ' if m.role == 'assistant' else '' }}"
    "{% endfor %}{% if add_generation_prompt %}w2 {% endif %}"
)


CHECKS = """
import json, sys
from typer.testing import CliRunner
from fairlead.cli.main import app

found = {}
for name in sys.argv[1:]:
    result = CliRunner().invoke(app, ["data", "check", name, "--as", "preferences", "--json"])
    found[name] = [result.exit_code, result.stdout, result.stderr]
print(json.dumps(found))
"""


def checked_in_a_process(*names: str, cwd: Path, endpoint: str) -> dict[str, tuple[int, str, str]]:
    """Check datasets in one process, since the hub's client reads its address only once.

    Returns:
        Exit code, output and errors for each.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHECKS, *names],
        cwd=cwd,
        env=os.environ | {"HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(*arguments: object, cwd: Path) -> Result:
    """Run `fairlead data check` in this process, which has already imported torch."""
    with contextlib.chdir(cwd):
        return CliRunner().invoke(app, ["data", "check", *map(str, arguments)], env={"COLUMNS": "120"})


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def sides(count: int) -> tuple[list[str], list[str]]:
    """Return questions of the training side and of the held-out side, at a held-out fraction of 0.3."""
    config = load(overrides={"data.heldout_fraction": 0.3})
    asked = [f"Question {number}" for number in range(200)]
    held = [text for text in asked if is_heldout(config, text)]
    return [text for text in asked if text not in held][:count], held[:count]


def test_every_fault_of_a_file_is_reported_by_line(tmp_path):
    train, held = sides(6)
    pair = {"prompt": train[0], "chosen": "a b", "rejected": "a"}
    leaking = next(
        text
        for text in (f"{train[0]}{' ' * number}" for number in range(1, 200))
        if is_heldout(load(overrides={"data.heldout_fraction": 0.3}), text)
    )
    rows = [
        pair,
        pair,
        {"prompt": train[1], "chosen": "same", "rejected": "same"},
        "{not json",
        {"prompt": held[0], "responses": [{"text": t, "rank": r} for t, r in (("x", 1), ("y", 1), ("z", 2))]},
        {"prompt": train[2], "responses": [{"text": "x", "rank": 1}, {"text": "y", "rank": 1}]},
        {"prompt": leaking, "chosen": "", "rejected": "no"},
        {"prompt": train[3], "chosen": "\ud800", "rejected": "no"},
        {"prompt": train[4], "chosen": 3, "rejected": "no"},
    ]
    write(tmp_path / "pairs.jsonl", *rows)
    result = check("pairs.jsonl", "--set", "data.heldout_fraction=0.3", "--json", cwd=tmp_path)
    assert result.exit_code == 2
    assert result.stderr == "error: 4 bad lines\n"
    found = json.loads(result.stdout)["preferences"]
    assert [error.split(": got")[0] for error in found["errors"]] == [
        f"{tmp_path / 'pairs.jsonl'}:{number}" for number in (3, 4, 8, 9)
    ]
    expected = {
        **{"lines": 9, "bad": 4, "broken": 0, "train": 3, "heldout": 2, "unit": "words", "limit": None},
        **{"duplicates": 1, "repeated_prompts": 1, "on_both_sides": 1, "elsewhere": 0, "ties": 2},
        **{"all_tied": 1, "alike": 1, "empty_answers": 1, "truncated": None, "dropped": None},
        "formats": {"chosen, rejected": 3, "responses": 2},
    }
    assert {key: found[key] for key in expected} == expected
    shown = check("pairs.jsonl", "--set", "data.heldout_fraction=0.3", "--limit", 3, cwd=tmp_path)
    assert shown.exit_code == 2
    for sentence in (
        "preferences: 1 line duplicates an earlier line",
        "preferences: 1 held-out line has a prompt that is also trained on (ignoring case and white space)",
        "preferences: 2 pairs are tied",
        "preferences: 1 ranking is left out: all its answers are tied",
        "preferences: 1 answer is empty",
        "lengths are counted in words",
        "and 1 more in preferences; --limit shows more",
    ):
        assert sentence in shown.stdout
    mended = [row for number, row in enumerate(rows, start=1) if number not in (3, 4, 8, 9)]
    write(tmp_path / "pairs.jsonl", *mended)
    assert check("pairs.jsonl", cwd=tmp_path).exit_code == 0


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """Return the file of a run with a tiny model whose chat template has no system role."""
    base = tiny_causal_lm(tmp_path / "base", max_position_embeddings=16)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(base)
    words = [f"w{number}" for number in range(5, 45)]
    write(tmp_path / "demos.jsonl", *({"prompt": word, "completion": "w3 w4"} for word in words))
    turns = [{"role": "user", "content": "w7"}, {"role": "assistant", "content": "w8"}]
    write(tmp_path / "chats.jsonl", {"messages": turns})
    write(tmp_path / "pairs.jsonl", *({"prompt": w, "chosen": "w3", "rejected": "w4"} for w in words))
    write(tmp_path / "prompts.jsonl", *({"prompt": word} for word in words))
    (tmp_path / "run.toml").write_text(
        """
        name = "tiny"
        [model]
        path = "base"
        [data]
        demonstrations = ["demos.jsonl", "chats.jsonl"]
        preferences = "pairs.jsonl"
        prompts = "prompts.jsonl"
        [sft]
        epochs = 1
        max_sequence_tokens = 12
        [sampling]
        max_new_tokens = 8
        [observe]
        tensorboard = false
        """
    )
    return tmp_path / "run.toml"


def test_run_is_checked_with_its_tokenizer_and_limits(run_file):
    folder = run_file.parent
    long = " ".join(["w5"] * 12)
    with (folder / "demos.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "w5 w6", "completion": long}) + "\n")  # 3 + 13 tokens
        file.write(json.dumps({"prompt": long, "completion": "w5"}) + "\n")  # 13 + 2
        file.write(json.dumps({"text": long * 3}) + "\n")  # continues in other sequences
    with (folder / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "w5 " * 15}) + "\n")  # 16 of 16
        file.write(json.dumps({"prompt": "w5 " * 10}) + "\n")  # 11 and 8 more
    result = check("run.toml", "--json", cwd=folder)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert list(found) == ["demonstrations", "preferences", "prompts"]
    assert {kind: (r["unit"], r["limit"]) for kind, r in found.items()} == {
        "demonstrations": ("tokens", 12),
        "preferences": ("tokens", 16),
        "prompts": ("tokens", 16),
    }
    demonstrations, prompts = found["demonstrations"], found["prompts"]
    assert demonstrations["formats"] == {"completion": 42, "messages": 1, "text": 1}
    assert (demonstrations["truncated"], demonstrations["dropped"]) == (1, 1)
    assert (prompts["truncated"], prompts["dropped"]) == (1, 1)
    assert prompts["prompt"] == {"median": 2, "p90": 2, "p99": pytest.approx(13.95), "longest": 16}
    assert found["preferences"]["answer"]["longest"] == 2


def test_pairs_that_cannot_be_learnt_are_counted_as_the_stage_counts_them(run_file):
    folder = run_file.parent
    long, longer = "w5 " * 15, "w5 " * 16
    rows = [
        {"prompt": "w1", "chosen": long, "rejected": "w3"},
        {"prompt": "w5 " * 13, "chosen": "w3", "rejected": "w4 w5 w6"},
        {"prompt": "w1", "chosen": "unknown", "rejected": "other"},
        {"prompt": "w2", "responses": [{"text": t, "rank": n} for n, t in enumerate(("w3", "w4", longer))]},
    ]
    write(folder / "pairs.jsonl", *rows)
    result = check("run.toml", "--json", cwd=folder)
    assert result.exit_code == 2
    assert result.stderr == "error: most pairs cannot be learnt, so the reward model refuses them\n"
    found = json.loads(result.stdout)["preferences"]
    assert (found["truncated"], found["dropped"]) == (2, 2)
    file = folder / "pairs.jsonl"
    assert found["left_out"] == {
        **{"pairs": 6, "too_long": 3, "alike": 1},
        "too_long_at": [f"{file}:1 `chosen`", *[f"{file}:4 `responses[2].text`"] * 2],
        "alike_at": [f"{file}:3 `chosen` and `rejected`"],
    }
    write(folder / "pairs.jsonl", *rows[1:3], rows[1] | {"prompt": "w7"})
    shown = check("run.toml", cwd=folder)
    assert shown.exit_code == 0
    assert (
        "preferences: 1 of 3 pairs are left out: the tokenizer reads both answers as the same" in shown.stdout
    )


def test_keys_and_rendered_templates_are_reported(run_file):
    folder = run_file.parent
    turns = [{"role": "user", "content": "w7", "name": "x"}, {"role": "assistant", "content": "w8"}]
    rows = [
        {"messages": turns, "id": 1},
        {"instruction": "w5", "output": "w6", "id": 2},
        {"prompt": "w5 </s>", "completion": "w6"},
        {"text": "w5 </s> w6"},
    ]
    write(folder / "chats.jsonl", *rows)
    found = json.loads(check("run.toml", "--json", cwd=folder).stdout)["demonstrations"]
    assert found["formats"] == {"completion": 41, "messages": 1, "messages (Alpaca)": 1, "text": 1}
    assert found["not_read"] == {"messages[].name": 1, "id": 2}
    assert found["read_as"]["output"] == "assistant message"
    assert found["control_tokens"] == {"</s>": 2}
    shown = " ".join(check("run.toml", cwd=folder).stdout.split())
    assert "`instruction` as user message, `output` as assistant message" in shown
    assert "demonstrations: not read: `id` (2 ×), `messages[].name` (1 ×)" in shown
    assert "demonstrations: 2 plain prompts or texts contain </s>, which is read as ordinary text" in shown


def test_heldout_source_is_checked_with_its_kind(run_file):
    folder = run_file.parent
    rows = [{"prompt": f"W{n}", "chosen": "w3", "rejected": "w4"} for n in range(43, 49)]
    write(folder / "test.jsonl", *rows, {"prompt": "w1", "chosen": "w3"})
    named = ("run.toml", "--set", "data.heldout_preferences=test.jsonl")
    result = check(*named, "--json", cwd=folder)
    assert result.exit_code == 2
    found = json.loads(result.stdout)["preferences"]
    assert (found["train"], found["heldout"], found["bad"], found["on_both_sides"]) == (40, 6, 1, 2)
    assert found["errors"][0].startswith(f"{folder / 'test.jsonl'}:7: got")
    shown = check(*named, cwd=folder).stdout
    assert "preferences, held out: test.jsonl" in shown
    assert "2 held-out lines have a prompt that is also trained on" in shown


def test_stage_reads_data_after_it_is_repaired(run_file):
    folder = run_file.parent
    turns = [{"role": "system", "content": "w5"}, {"role": "user", "content": "w6"}]
    write(folder / "chats.jsonl", {"messages": [*turns, {"role": "assistant", "content": "w7"}]})
    where = f"{folder / 'chats.jsonl'}:1: got '`messages` that the chat template rejects: no system role'"
    checked = check("run.toml", cwd=folder)
    assert checked.exit_code == 2
    assert where in checked.stdout
    config = load(run_file, overrides={"base": str(folder), "runs": str(folder / "runs")})
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"path": str(folder / "base")})}
    )
    with pytest.raises(DataError) as stopped:
        sft.train(config)
    assert where in str(stopped.value)
    write(folder / "chats.jsonl", {"messages": [turns[1], {"role": "assistant", "content": "w7"}]})
    sft.train(config)
    assert config.folder.result("sft").exists()


def test_hub_datasets_and_their_errors(tmp_path):
    rows = "".join(
        json.dumps({"prompt": f"p {n}", "chosen": "a", "rejected": "a" if n == 3 else "b"}) + "\n"
        for n in range(9)
    ).encode()
    held = {"org/pairs": {"data/train.jsonl": rows, "data/test.jsonl": rows}, "org/gated": None}
    refusals = {
        "org/gated": "is a gated dataset on the Hub.*accept its terms on its page and log in with",
        "org/absent": "doesn't exist on the Hub or cannot be accessed.*check the name",
        "org/pairs?config=other": "BuilderConfig 'other' not found",
    }
    names = ("org/pairs", "org/pairs?split=train[:3]", *refusals)
    with hub(held) as address:
        found = checked_in_a_process(*names, cwd=tmp_path, endpoint=address)
    code, output, _ = found["org/pairs"]
    assert code == 2
    report = json.loads(output)["preferences"]
    assert (report["lines"], report["bad"]) == (9, 1)
    assert report["errors"][0].startswith("org/pairs?split=train:4: got 'identical `chosen` and `rejected`'")
    assert found["org/pairs?split=train[:3]"][0] == 0
    for name, words in refusals.items():
        code, output, errors = found[name]
        assert code == 2
        assert errors.endswith("error: 1 unreadable source\n")
        (error,) = json.loads(output)["preferences"]["errors"]
        assert error.startswith(f"data.preferences: got '{name.split('?')[0]}?")
        assert re.search(words, error)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("absent.jsonl",), "file: got '{folder}/absent.jsonl', allowed: a file that exists"),
        (("absent.toml",), "config: got 'absent.toml', allowed: a TOML file that exists"),
        (
            ("bare.toml", "--as", "prompts"),
            "--as: got a run's file, allowed: a file, a folder or a dataset of the hub",
        ),
        (("odd.jsonl",), "{folder}/odd.jsonl:1: got 'the keys question', allowed: the keys of a format in"),
        (("bare.toml",), "data: got no source in bare.toml, allowed: at least one"),
        (("p.jsonl", "--tokenizer", "./none"), "no model folder './none'"),
    ],
)
def test_mistake_prints_one_line_and_exits_with_2(tmp_path, arguments, error):
    write(tmp_path / "odd.jsonl", {"question": "a"})
    write(tmp_path / "p.jsonl", {"prompt": "a"})
    (tmp_path / "bare.toml").write_text('name = "bare"\n')
    result = check(*arguments, cwd=tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {error.format(folder=tmp_path)}")
    assert len(result.stderr.splitlines()) == 1


def test_kinds_of_the_flag_match_the_data():
    assert tuple(DataKind) == KINDS


def test_kind_of_a_file_is_detected(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for kind, row in (
        ("demonstrations", {"prompt": "a", "completion": "b"}),
        ("demonstrations", {"messages": turns}),
        ("demonstrations", {"text": "a b c"}),
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ("preferences", {"chosen": "a b", "rejected": "a c"}),
        ("prompts", {"prompt": "a"}),
        ("prompts", {"messages": turns[:1]}),
        ("sentences", {"text": "a b c d", "label": 1}),
    ):
        write(tmp_path / "file", "no json", row)
        assert detect(load(overrides={"base": str(tmp_path)}), "file") == kind
