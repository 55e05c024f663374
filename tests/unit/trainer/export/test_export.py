"""`fairlead export`: which weights, which target, and model cards with correct contents and working code."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fairlead.config import RunConfig, load
from fairlead.config.saving import save
from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError, CorruptCheckpoint, FairleadError, ModelLoadError
from fairlead.types import TextPair
from services.reward.scorer import RewardScorer
from tests.evaluation_cards import known_card
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.ppo_world import World
from trainer import durable
from trainer.export.export import ExportOptions, export
from trainer.ppo.train import PpoTrainer
from trainer.reward_model.train import train as train_reward_model

SETTINGS = {
    "ppo.updates": 4,
    "ppo.batch_size": 8,
    "ppo.mini_batch_size": 8,
    "ppo.learning_rate": 3e-3,
    "ppo.device": "cpu",
    "sampling.max_new_tokens": 4,
    "sampling.temperature": 0.9,
    "checkpoint.every_updates": 2,
    "checkpoint.keep": 3,
    "reward_model.device": "cpu",
    "reward_model.ensemble_size": 1,
    "observe.tensorboard": False,
    "queue.give_up_seconds": 60,
}


def write(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def trained(folder: Path, **changes: object) -> RunConfig:
    """A run with a reward model and four updates of PPO, from a tiny SFT model."""
    config = load(
        overrides={
            "runs": str(folder),
            "base": str(folder),
            "name": "done",
            "data.prompts": "prompts.jsonl",
            "data.preferences": "pairs.jsonl",
        }
        | SETTINGS
        | changes
    )
    write(folder / "prompts.jsonl", [{"prompt": f"w{n} w{n + 1}"} for n in range(20)])
    pairs = [{"prompt": f"w{n}", "chosen": f"w{n + 1} w7", "rejected": f"w{n + 2}"} for n in range(30)]
    write(folder / "pairs.jsonl", pairs)
    tiny_causal_lm(config.folder.sft_model)
    train_reward_model(config)
    with World(config.folder.sft_model, config.weights_path, score=lambda a: float(len(set(a)))) as world:
        PpoTrainer(config, queue=world.broker.trainer(), store=world.store).run()
    save(config, config.folder.config)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return trained(tmp_path_factory.mktemp("run"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return any(not torch.equal(one[name], other[name]) for name in one)


def test_export_last_weights(run: RunConfig, tmp_path: Path):
    summaries = export(ExportOptions(run=run.folder.root, target=tmp_path / "out"))
    assert summaries == {"policy": "the last weights, version 1-4", "reward_model": "one model"}
    assert not differ(weights(tmp_path / "out" / "policy"), weights(run.folder.policy_model))
    settings = json.loads((tmp_path / "out" / "policy" / "generation_config.json").read_text())
    assert (settings["temperature"], settings["top_k"], settings["max_new_tokens"]) == (0.9, 0, 4)
    assert settings["eos_token_id"] == [2]
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert {"policy/model.safetensors", "reward_model/README.md"} < record["sha256"].keys()


def test_export_weights_by_name(run: RunConfig, tmp_path: Path):
    """From checkpoints, from the weight store if the checkpoint is deleted, and the weights before PPO."""
    found = {}
    for which in ("1-2", "1-3", "1-4", "sft"):
        export(ExportOptions(run=run.folder.root, target=tmp_path / which, which=which, parts=("policy",)))
        found[which] = weights(tmp_path / which / "policy")
        assert not (tmp_path / which / "reward_model").exists()
    assert not (run.folder.checkpoints / "1-3").exists(), "else the weight store was not asked"
    assert not differ(found["1-4"], weights(run.folder.policy_model))
    assert not differ(found["sft"], weights(run.folder.sft_model))
    assert differ(found["1-2"], found["1-3"])
    assert differ(found["1-3"], found["1-4"])


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("1-9", r"which: got '1-9', allowed: last, sft, 1-2, 1-3, 1-4"),
        ("lest", r"which: got 'lest', allowed: last, sft, 1-2"),
        ("best", r"which: got 'best', allowed: .*`best` exists once PPO has ended with evaluations"),
    ],
)
def test_missing_weights_error_lists_existing_ones(run, tmp_path, which, message):
    with pytest.raises(ConfigError, match=message):
        export(ExportOptions(run=run.folder.root, target=tmp_path / "out", which=which))
    assert not (tmp_path / "out").exists()


def test_export_of_an_unfinished_run_uses_its_newest_checkpoint(run: RunConfig, tmp_path: Path):
    result = run.folder.result("ppo")
    kept = result.read_bytes()
    result.unlink()
    try:
        summaries = export(ExportOptions(run=run.folder.root, target=tmp_path / "out", parts=("policy",)))
    finally:
        result.write_bytes(kept)
    assert summaries == {"policy": "the last weights, version 1-4"}
    assert not differ(weights(tmp_path / "out" / "policy"), weights(run.folder.policy_model))


def test_export_in_bfloat16_halves_the_size(run: RunConfig, tmp_path: Path):
    export(ExportOptions(run=run.folder.root, target=tmp_path / "out", dtype="bfloat16"))
    for part in ("policy", "reward_model"):
        assert json.loads((tmp_path / "out" / part / "config.json").read_text())["dtype"] == "bfloat16"
    halved = weights(tmp_path / "out" / "policy")
    for name, tensor in weights(run.folder.policy_model).items():
        torch.testing.assert_close(halved[name].float(), tensor, rtol=1e-2, atol=1e-3)


def test_export_replaces_only_earlier_exports(run: RunConfig, tmp_path: Path):
    target = tmp_path / "models" / "new"
    export(ExportOptions(run=run.folder.root, target=target, parts=("policy",)))
    with pytest.raises(ConfigError, match=r"an earlier export', allowed: another folder, or --force"):
        export(ExportOptions(run=run.folder.root, target=target))
    export(ExportOptions(run=run.folder.root, target=target, parts=("reward_model",), force=True))
    assert sorted(path.name for path in target.iterdir()) == ["export.json", "reward_model"]
    assert [path.name for path in target.parent.iterdir()] == ["new"], "no other file was written"

    (tmp_path / "mine").mkdir()
    export(ExportOptions(run=run.folder.root, target=tmp_path / "mine", parts=("policy",)))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    for target, message in (
        ("photos", "which is not empty"),
        ("photos/cat.jpg", "a folder, or a name that does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(ExportOptions(run=run.folder.root, target=tmp_path / target, force=True))
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow", "--force replaces only exports"
    with pytest.raises(ConfigError, match=r"allowed: the folder of a run, with its config.toml"):
        export(ExportOptions(run=tmp_path, target=tmp_path / "x"))


@contextlib.contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Limit the size of files, so that writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_failed_write_leaves_target_unchanged(run: RunConfig, tmp_path: Path):
    target = tmp_path / "out"
    for force in (False, True):
        with (
            small_files(40_000),
            pytest.raises(FairleadError, match=r"cannot write .*out: .*it is unchanged"),
        ):
            export(ExportOptions(run=run.folder.root, target=target, force=force))
        assert [path.name for path in tmp_path.iterdir()] == (["out"] if force else [])
        export(ExportOptions(run=run.folder.root, target=target, force=force))


def test_damaged_weights_are_found_before_writing(run: RunConfig, tmp_path: Path):
    for path, error, request in (
        (run.folder.checkpoints / "1-2" / "policy.safetensors", CorruptCheckpoint, {"which": "1-2"}),
        (run.folder.reward_model / "model.safetensors", ModelLoadError, {}),
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[:-8])
        try:
            with pytest.raises(error):
                export(ExportOptions(run=run.folder.root, target=tmp_path / "out", **request))
        finally:
            path.write_bytes(whole)
    assert list(tmp_path.iterdir()) == []


def python_of(card: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Run the code of the card in its folder; return the variables that it sets."""
    [block] = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    monkeypatch.chdir(card.parent)
    left: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as output, torch.random.fork_rng():
        torch.manual_seed(0)  # the code samples, and an answer may be empty
        exec(block.replace("…", "w1 w2"), left)
    assert output.getvalue().strip()
    return left


def test_model_cards_are_correct_and_their_code_runs(run, tmp_path, monkeypatch):
    os.utime(run.base / "pairs.jsonl", (1, 1))
    durable.write_json(run.folder.result("sft"), {"heldout_loss": 0.123456, "demonstrations": 1200})
    later = run.folder.result("sft").stat().st_mtime + 10
    os.utime(run.base / "prompts.jsonl", (later, later))
    run.folder.evaluation.mkdir()
    durable.write_json(run.folder.evaluation / "card.json", known_card())
    export(ExportOptions(run=run.folder.root, target=tmp_path / "out"))
    policy, reward = (tmp_path / "out" / part / "README.md" for part in ("policy", "reward_model"))
    text = policy.read_text()
    result = json.loads(run.folder.result("ppo").read_text())
    digest = hashlib.sha256((run.base / "pairs.jsonl").read_bytes()).hexdigest()
    for line in (
        "pipeline_tag: text-generation",
        "aligned by PPO against the reward model of the run, after 4 updates",
        f"| reward model | `pairs.jsonl` | {(run.base / 'pairs.jsonl').stat().st_size:,} | `{digest}` |",
        "| fine-tuning: held-out loss | 0.123 |",
        f"| PPO: mean score in the last update | {result['proxy_last']:.3f} |",
        "| `ppo.learning_rate` | 0.003 |",
        "| safety: harmful prompts refused (n = 20) | 0.0% (0% to 16%) → 100.0% (84% to 100%) |",
        "- Fine-tuning: 1,200 demonstrations, 0 held out",
        "- PPO: 32 answers to prompts",
        "- Weights: the last weights, version 1-4",
        "- Incarnation 1 of the trainer began at update 0",
    ):
        assert line in text
    assert re.search(r"\| PPO \| `prompts.jsonl` \| .*changed after training \|", text)
    assert "/secret" not in text
    assert "reward prefers padding" not in text
    assert "| bias: reward prefers padding (n = 20) | 100.0% (84% to 100%) |" in reward.read_text()
    assert str(run.base) not in text, "folders of this machine must not be published"
    left = python_of(policy, monkeypatch)
    assert left["output"].shape[1] <= left["inputs"]["input_ids"].shape[1] + 4
    score = python_of(reward, monkeypatch)["score"]
    scorer = RewardScorer(str(run.folder.reward_model), RewardSection(device="cpu"))
    for pair in (("w1 w2", "w3"), ("w9", "w7 w7 w7")):
        assert score(*pair) == pytest.approx(scorer.score(scorer.encode([TextPair(*pair)]))[0], abs=1e-5)


def test_export_of_an_ensemble(tmp_path, monkeypatch):
    config = trained(tmp_path, **{"reward_model.ensemble_size": 2, "ppo.updates": 1})
    summaries = export(
        ExportOptions(run=config.folder.root, target=tmp_path / "out", parts=("reward_model",))
    )
    assert summaries == {"reward_model": "an ensemble of 2"}
    folder = tmp_path / "out" / "reward_model"
    sequences = [(5, 6, 7, 2), (9, 9, 2)]
    theirs = RewardScorer(str(config.folder.reward_model), RewardSection(device="cpu"))
    ours = RewardScorer(str(folder), RewardSection(device="cpu"))
    assert ours.score(sequences) == pytest.approx(theirs.score(sequences), abs=1e-5)
    for member in ("member-0", "member-1"):
        assert AutoModelForSequenceClassification.from_pretrained(folder / member).config.num_labels == 1
    python_of(folder / "README.md", monkeypatch)


def test_export_of_a_run_without_ppo(run: RunConfig, tmp_path: Path):
    config = load(overrides={"runs": str(tmp_path), "name": "without_ppo"})
    save(config, config.folder.config)
    for parts, message in (
        (("policy", "reward_model"), r"which: got 'last', allowed: nothing: the run has no weights"),
        (("reward_model",), "a run that has trained a reward model"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(ExportOptions(run=config.folder.root, target=tmp_path / "out", parts=parts))
