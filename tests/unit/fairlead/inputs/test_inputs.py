"""What a result was made from: every change of a setting or of contents is named, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from fairlead import inputs
from fairlead.config import RunConfig, load

MODELS = ("base", "sft", "rm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("demonstrations", "preferences", "prompts"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a"}\n')
    for name in MODELS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode() * 100)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "runs" / "run").mkdir(parents=True)
    return tmp_path


def configured(folder: Path, **changes: object) -> RunConfig:
    settings: dict[str, object] = {"runs": str(folder / "runs"), "base": str(folder)}
    settings |= {f"data.{name}": f"{name}.jsonl" for name in ("demonstrations", "preferences", "prompts")}
    settings |= {"model.path": str(folder / "base"), "reward_model.path": str(folder / "sft")}
    settings |= {"policy.path": str(folder / "sft"), "reference.path": str(folder / "sft")}
    settings |= {"reward.path": str(folder / "rm")}
    return load(overrides=settings | {key.replace("__", "."): value for key, value in changes.items()})


def started(stage: str, config: RunConfig) -> None:
    inputs.record_start(stage, config, inputs.collect(stage, config))


def changed(stage: str, config: RunConfig) -> list[str]:
    return inputs.differences(stage, config, inputs.collect(stage, config))


@pytest.mark.parametrize(
    ("stage", "change", "expected"),
    [
        ("sft", {"sft__epochs": 7}, ["sft.epochs: 2 before, 7 now"]),
        ("sft", {"sft__lora": {"rank": 8}}, ["sft.lora.rank: 0 before, 8 now"]),
        ("sft", {"seed": 5}, ["seed: 0 before, 5 now"]),
        ("sft", {"data__heldout_fraction": 0.5}, ["data.heldout_fraction: 0.1 before, 0.5 now"]),
        ("reward_model", {"data__tie_margin": 1}, ["data.tie_margin: 0.0 before, 1.0 now"]),
        ("ppo", {"sampling__temperature": 2}, ["sampling.temperature: 1.0 before, 2.0 now"]),
        ("ppo", {"reward__ensemble": "min"}, ['reward.ensemble: "mean" before, "min" now']),
        ("ppo", {"policy__dtype": "bfloat16"}, ['policy.dtype: "float32" before, "bfloat16" now']),
        (
            "sft",
            {"model__template_arguments": {"a": 1}, "data__heldout_demonstrations": "demonstrations.jsonl"},
            [
                'model.template_arguments: {} before, {"a": 1} now',
                "data.heldout_demonstrations: nothing before, demonstrations.jsonl now",
            ],
        ),
        # With `policy.path` PPO starts from a model that gets the template too.
        ("ppo", {"model__chat_template": "t"}, ["model.chat_template: nothing before, t now"]),
        ("reward_model", {"reward_model__lora": {"rank": 8}}, ["reward_model.lora.rank: 0 before, 8 now"]),
        # More updates change the learning rates, unless the schedule counts to another number.
        ("ppo", {"ppo__updates": 200}, ["ppo.schedule_updates: 100 before, 200 now"]),
        ("ppo", {"ppo__updates": 50, "ppo__schedule_updates": 100}, []),
        # Speed, memory, the length of PPO, and what another stage reads.
        ("sft", {"sft__threads": 3, "sft__device": "cpu", "ppo__epochs": 3, "data__tie_margin": 1}, []),
        ("ppo", {"ppo__max_micro_batch_tokens": 9, "reward__replicas": 3}, []),
    ],
)
def test_changed_settings_are_named(folder: Path, stage: str, change: dict, expected: list[str]) -> None:
    config = configured(folder)
    started(stage, config)
    assert changed(stage, config) == []
    assert changed(stage, configured(folder, **change)) == expected


def test_more_updates_change_the_schedule_of_beta_unless_it_counts_to_another_number(folder: Path) -> None:
    falling = {
        "ppo__kl_control": "linear",
        "ppo__kl_coefficient_end": 0.01,
        "ppo__learning_rate_schedule": "constant",
    }
    started("ppo", configured(folder, **falling))
    expected = ["ppo.kl_schedule_updates: 100 before, 200 now"]
    assert changed("ppo", configured(folder, **falling, ppo__updates=200)) == expected
    longer = {"ppo__updates": 200, "ppo__kl_schedule_updates": 100}
    assert changed("ppo", configured(folder, **falling, **longer)) == []


@pytest.mark.parametrize(
    ("stage", "file", "key"),
    [
        ("sft", "demonstrations.jsonl", "data.demonstrations: demonstrations.jsonl"),
        ("sft", "base/model.safetensors", "model.path: {}/base"),
        ("reward_model", "preferences.jsonl", "data.preferences: preferences.jsonl"),
        ("reward_model", "sft/model.safetensors", "reward_model.path: {}/sft"),
        ("ppo", "prompts.jsonl", "data.prompts: prompts.jsonl"),
        ("ppo", "rm/config.json", "reward.path: {}/rm"),
    ],
)
def test_changed_contents_are_named_also_at_equal_size_and_time(
    folder: Path, stage: str, file: str, key: str
) -> None:
    config = configured(folder)
    started(stage, config)
    path = folder / file
    before, status = path.read_bytes(), path.stat()
    path.write_bytes(bytes(reversed(before[:-1])) + b" ")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    [line] = changed(stage, config)
    assert line.startswith(f"{key.format(folder)} now has other contents (")
    path.write_bytes(before)
    assert changed(stage, config) == []


@pytest.mark.parametrize("name", ["model.gguf", "tokenizer.json", "base/model.safetensors"])
def test_changes_next_to_a_gguf_file_and_of_the_base_of_an_adapter_are_named(folder: Path, name: str) -> None:
    (folder / "model.gguf").write_bytes(b"GGUF" * 50)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "rm" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(folder / "base")})
    )
    config = configured(folder, policy__path=str(folder / "model.gguf"))
    started("ppo", config)
    assert changed("ppo", config) == []
    file = folder / name
    file.write_bytes(bytes(reversed(file.read_bytes())))
    [line] = changed("ppo", config)
    assert f"{file if file.parent == folder else file.parent} now has other contents (" in line


def test_other_folder_counts_only_with_other_contents(folder: Path) -> None:
    started("ppo", configured(folder))
    shutil.copytree(folder / "rm", folder / "copy")
    (folder / "moved.jsonl").write_bytes((folder / "prompts.jsonl").read_bytes())
    same = configured(folder, reward__path=str(folder / "copy"), data__prompts="moved.jsonl")
    assert changed("ppo", same) == []
    assert inputs.collect("ppo", same).digest == inputs.collect("ppo", configured(folder)).digest
    [line] = changed("ppo", configured(folder, reward__path=str(folder / "sft")))
    assert line == (
        f"reward.path: {folder}/sft instead of {folder}/rm, with other contents (202 bytes before, 302 now)"
    )
    [line] = changed("ppo", configured(folder, data__prompts=["prompts.jsonl", "moved.jsonl"]))
    assert line == "data.prompts: prompts.jsonl before, prompts.jsonl, moved.jsonl now"


def test_unchanged_files_are_not_read_again(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        os.utime(path, (1, 1))
    config = configured(folder)
    first = inputs.collect("ppo", config)
    # Files changed in the last seconds are read again: only later starts rely on the cache.
    cache = {
        str(path.resolve()): [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, "f" * 64]
        for path in folder.rglob("*.*")
        if path.is_file()
        for s in [path.stat()]
    }
    config.folder.digests.write_text(json.dumps(cache))
    assert inputs.collect("ppo", config).sources["data.prompts"][0].digest == "f" * 64
    config.folder.digests.write_text("{")
    assert inputs.collect("ppo", config) == first


@pytest.mark.parametrize("name", ["absent.jsonl", "org/dataset?split=test"])
def test_source_that_cannot_be_read_counts_by_its_name(folder: Path, name: str) -> None:
    config = configured(folder, data__prompts=name)
    started("ppo", config)
    assert changed("ppo", config) == []
    assert changed("ppo", configured(folder)) == [f"data.prompts: {name} before, prompts.jsonl now"]


def test_continued_run_is_warned_of_and_the_change_is_kept(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, other = configured(folder), configured(folder, reward__path=str(folder / "sft"))
    started("ppo", config)
    inputs.warn_if_continued("ppo", other, changed("ppo", other))
    assert caplog.messages == []  # it has no checkpoint
    checkpoint = config.folder.checkpoints / "1-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    found = changed("ppo", other)
    inputs.warn_if_continued("ppo", other, found)
    [message] = caplog.messages
    assert "continues a run that began with other inputs" in message
    assert "--set name=" in message
    assert found[0] in message
    started("ppo", other)
    assert changed("ppo", other) == []
    [entry] = json.loads(config.folder.inputs("ppo").read_text())["changes"]
    assert entry["changed"] == found


def test_inputs_that_were_changed_for_one_start_are_not_called_a_reason_to_begin_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A start with a mistake in its inputs ends before it looks at the checkpoint, which is still good."""
    config, mistaken = configured(folder), configured(folder, sft__epochs=9)
    started("sft", config)
    checkpoint = config.folder.stage_checkpoints("sft") / "1-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    started("sft", mistaken)
    found = changed("sft", config)
    inputs.warn_if_continued("sft", config, found)
    [message] = caplog.messages
    assert "the inputs of sft have changed since its last start" in message
    assert "from the beginning" not in message
    assert found[0] in message
